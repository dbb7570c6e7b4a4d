"""AUPIMO of a real run, beside that of anomalib on the same maps."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from src.commands.evaluate import evaluate_run
from src.composing import compose
from src.data.images import read_mask, read_sample
from src.detector import Detector, checked_data
from src.evaluation.overlap import BOUNDS, image_overlaps
from src.evaluation.pixels import PixelStore
from src.experiment import run_experiment
from src.saved_run import SavedRun

ROOT = os.environ.get("DATA_DIR")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(not ROOT, reason="needs real images: set DATA_DIR"),
]


def test_aupimo_of_bottles_at_their_original_size_is_that_of_anomalib(tmp_path):
    peer = pytest.importorskip(
        "anomalib.metrics.pimo.functional",
        reason="pip install -r tests/bench/peers/requirements.txt",
    )
    if not (Path(str(ROOT)) / "mvtec/bottle").is_dir():
        pytest.skip(f"no {ROOT}/mvtec/bottle")
    words = ["data=mvtec", f"data.root={ROOT}/mvtec", "data.category=bottle", "transform.crop=256",
             "backbone=efficientnet_lite0", "data.shots=60", f"runs_dir={tmp_path}",
             "report.enabled=false", "evaluation.bootstrap=0"]  # fmt: skip
    run = run_experiment(compose("run", words)).run
    asked = [f"run={run.directory}", "evaluation.size=original", f"out={tmp_path / 'out'}"]
    metrics = evaluate_run(compose("evaluate", asked))
    detector, maps, masks = Detector.load(run.directory, "cpu"), [], []
    for sample in checked_data(run, None).test_samples:
        if sample.label and int(sample.image_path.stem) % 3:
            continue  # theirs takes seconds an image
        image = read_sample(sample)
        size = (image.height, image.width)
        maps.append(detector.to_original(detector.detect([image])[0].anomaly_map, size))
        masks.append(read_mask(sample.mask_path) if sample.mask_path else np.zeros(size, bool))
    store = PixelStore(1)
    for index, (one, mask) in enumerate(zip(maps, masks, strict=True)):
        store.add(index, one, mask)
    bad = np.stack(masks).any(axis=(1, 2))
    ours = SavedRun(tmp_path / "out").scores()
    known = ours[ours.label.eq(0) | (ours.path.str[-7:-4].astype(int) % 3).eq(0)]
    assert known.aupimo.to_numpy() == pytest.approx(image_overlaps(store), abs=1e-4, nan_ok=True)
    assert metrics["test/aupimo"] == pytest.approx(ours.aupimo.mean(), abs=1e-9)
    # Theirs takes the nearest rate to each bound, ours is exact there: give it two that exist.
    pixels = sum(mask.size for mask in masks if not mask.any())
    low, high = (round(bound * pixels) / pixels for bound in BOUNDS)
    *_, theirs, _ = peer.aupimo_scores(
        torch.from_numpy(np.stack(maps)), torch.from_numpy(np.stack(masks)), fpr_bounds=(low, high)
    )
    theirs = theirs.numpy()[bad]
    assert image_overlaps(store, (low, high))[bad] == pytest.approx(theirs, abs=1e-3)
