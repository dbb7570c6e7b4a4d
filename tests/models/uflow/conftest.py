"""A toy backbone, toy images on disk and U-Flow with the options of its config file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torch.nn import functional as F

from src.composing import CONF
from src.data.datamodule import AnomalyDataModule
from src.models.build import read_options
from src.models.uflow.module import UFlow
from src.models.uflow.options import UFlowOptions

SIDE = 32


class ToyBackbone(nn.Module):
    """Fixed random convolutions at strides 4 and 8, with a BatchNorm that must not move."""

    channels, reductions, identity = (6, 10), (4, 8), "toy@1"

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.fine, self.coarse = nn.Conv2d(3, 6, 4, 4), nn.Conv2d(3, 10, 8, 8)
        self.norm = nn.BatchNorm2d(6)
        for conv in (self.fine, self.coarse):
            nn.init.normal_(conv.weight, 0, 0.3, generator=generator)
            nn.init.zeros_(conv.bias)
        self.requires_grad_(False)
        self.images = 0
        self.eval()

    def train(self, mode=True):
        return super().train(False)

    @torch.no_grad()
    def forward(self, image):
        self.images += len(image)
        return [self.norm(self.fine(image)), F.relu(self.coarse(image))]


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory):
    """18 good images to train on, 4 good and 4 with a bright square to test on."""
    root = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    for split, kind, count in (("train", "good", 18), ("test", "good", 4), ("test", "spot", 4)):
        folder = root / "part" / split / kind
        folder.mkdir(parents=True)
        for n in range(count):
            image = rng.normal(110, 12, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
            if kind == "spot":
                image[8:18, 10:20] = 250
                mask = np.zeros((SIDE, SIDE), np.uint8)
                mask[8:18, 10:20] = 255
                masks = root / "part" / "ground_truth" / kind
                masks.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(masks / f"{n:03d}_mask.png")
            Image.fromarray(image).save(folder / f"{n:03d}.png")
    return root


@pytest.fixture
def toy_data(toy_root):
    """A function that builds the data module."""

    def build(protocol="honest", fraction=0.25, seed=0, validation=0.36):
        data = {"name": "toy", "category": "part", "root": str(toy_root), "batch_size": 4,
                "bit_depth": None, "cache": "memory",
                "index": {"_target_": "src.data.mvtec.index_mvtec"}}  # fmt: skip
        paper = protocol == "paper"
        return AnomalyDataModule(OmegaConf.create({
            "seed": seed,
            "protocol": protocol,
            "data": OmegaConf.to_container(OmegaConf.load(CONF / "base" / "data.yaml")) | data,
            "transform": {"resize": SIDE, "crop": None, "interpolation": "bilinear",
                          "antialias": True, "mean": [0.5] * 3, "std": [0.5] * 3},
            "calibration": {"fraction": 0.0 if paper else fraction, "at_least": 2},
            "validation": {"fraction": 0.0 if paper else validation},
            "hardware": {"num_workers": 0},
        }))  # fmt: skip

    return build


@pytest.fixture
def toy_model():
    """A function that builds U-Flow from conf/model/uflow.yaml with changes."""
    text = Path(__file__).parents[3] / "conf" / "model" / "uflow.yaml"
    options = OmegaConf.load(text).model
    for key in ("_target_", "name", "stages", "recipe"):
        del options[key]
    options.merge_with(
        {
            "standardise": True,
            "likelihood": "paper",
            "apart": 0,
            "map_size": SIDE,
            "blur": 0.0,
            "score": "max",
            "patience": None,
            "check_every": 3,
            "protocol": "honest",
            "seed": 0,
            "weights": None,
            "optimizer": {"lr": 3e-3},
            "judge": {"view": {"grid": SIDE}},
            "nfa": {"tests": "per_size", "calibrate": True},
            "cache": {"folder": "unused"},
        }
    )

    def build(backbone=None, **changes):
        merged = OmegaConf.merge(options, changes)
        chosen = read_options(UFlowOptions, OmegaConf.to_container(merged, resolve=True))
        return UFlow(backbone or ToyBackbone(), (SIDE, SIDE), chosen)

    return build
