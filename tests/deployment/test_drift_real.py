"""The drift monitor on real good parts: silent on the official ones, awake in another light."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image, ImageEnhance

from src.commands.predict import DriftMonitor
from src.composing import compose
from src.detector import Detector
from src.experiment import run_experiment

ROOT = os.environ.get("DATA_DIR")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(not ROOT, reason="needs real images: set DATA_DIR"),
]


@pytest.mark.parametrize(
    ("folder", "moves"),
    # a fifth more light changes the scores of screws by less than their spread: nothing to see
    [("mvtec/bottle", True), ("mvtec/screw", False), ("mpdd/metal_plate", True)],
)
def test_official_good_parts_raise_no_alarm_and_a_fifth_more_light_does(folder, moves, tmp_path):
    root = Path(str(ROOT)) / folder
    if not root.is_dir():
        pytest.skip(f"no {root}")
    words = ["data=folder", f"data.root={root}", "data.normal_dir=train/good",
             "data.normal_test_dir=test/good", "data.abnormal_dir=test",
             "data.mask_dir=ground_truth", "backbone=efficientnet_lite0",
             f"runs_dir={tmp_path}"]  # fmt: skip
    run = run_experiment(compose("run", words)).run
    detector = Detector.load(run.directory, "cpu")
    pictures = [Image.open(path).convert("RGB") for path in sorted((root / "test/good").iterdir())]
    for light, expected in ((1.0, False), (1.2, moves)):
        monitor = DriftMonitor(run.calibration().image, window=len(pictures), alpha=0.001)
        shown = [ImageEnhance.Brightness(picture).enhance(light) for picture in pictures]
        said = [monitor.update(detector.detect([picture])[0].score) for picture in shown]
        assert bool(any(said)) is expected, (folder, light, said[-1])
