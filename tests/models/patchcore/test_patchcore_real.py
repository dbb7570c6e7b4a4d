"""PatchCore on the real bottle category: accuracy, streaming, official picks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from src.data.datamodule import AnomalyDataModule
from src.evaluation.ranking import auroc
from src.models.build import build_model
from src.models.patchcore.coreset import greedy_coreset, random_projection
from src.models.patchcore.nearest import nearest
from tests.reference_patchcore import k_center_official

ROOT = os.environ.get("MVTEC_AD_ROOT")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.skipif(not ROOT, reason="needs real images: set MVTEC_AD_ROOT"),
]
CONF = Path(__file__).parents[3] / "conf"


def run(*overrides: str):
    """Fit on bottle; returns module, data and the AUROC of images and of pixels."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "run",
            ["model=patchcore", "backbone=efficientnet_lite0", "model.embedding=concat",
             "data=mvtec", f"data.root={ROOT}", "data.category=bottle", *overrides],
        )  # fmt: skip
    data = AnomalyDataModule(cfg)
    data.setup()
    model = build_model(cfg, data.image_size)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    model.eval()
    model.after_fit(data.ordered_train_dataloader())
    scores, maps, labels, masks = [], [], [], []
    for batch in data.test_dataloader():
        found = model(batch["image"])
        scores.append(found.score)
        maps.append(found.anomaly_map.flatten())
        labels.append(batch["label"] == 1)
        masks.append(batch["mask"].flatten())
    image = auroc(torch.cat(scores).numpy(), torch.cat(labels).numpy())
    pixel = auroc(torch.cat(maps).numpy(), torch.cat(masks).numpy())
    return model, data, image, pixel


def features(model, data) -> torch.Tensor:
    with torch.no_grad():
        parts = [
            model.patches(batch["image"])[0].flatten(0, 2)
            for batch in data.ordered_train_dataloader()
        ]
    return torch.cat(parts)


@pytest.fixture(scope="module")
def held():
    model, data, image, pixel = run()
    return model, features(model, data), image, pixel


def test_bottle_reaches_the_reference_accuracy(held):
    model, _, image, pixel = held
    assert image >= 0.998
    assert pixel >= 0.976
    held_out = model.held_out_scores()
    assert held_out is not None and len(held_out.image) == 209


def test_streaming_keeps_accuracy_and_cover_radius(held):
    model, patches, image, pixel = held
    streamed, _, image_streamed, pixel_streamed = run("model.memory_budget_gb=0.08")
    assert len(streamed.memory.bank) == len(model.memory.bank)
    radius = [
        float(nearest(patches, one.memory.bank.vectors(), 1).distance.max()) ** 0.5
        for one in (model, streamed)
    ]
    assert radius[1] <= 1.08 * radius[0]
    assert abs(image_streamed - image) <= 0.003
    assert abs(pixel_streamed - pixel) <= 0.003


def test_first_picks_on_real_features_are_those_of_one_by_one_greedy(held):
    points = random_projection(held[1][::8].contiguous(), 16, 0)
    found = greedy_coreset(points, 200, start="official", seed=1, block=256)
    starts = np.random.RandomState(1).choice(len(points), 10, replace=False)
    assert found.rows.tolist() == k_center_official(points, 200, starts)
