"""A small stand-in for frozen features, and images, shared by the PatchCore tests."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from src.models.patchcore.module import PatchCore

SIZE = (32, 48)
OPTIONS = {
    "image_size": SIZE,
    "embedding": "concat",
    "patch_size": 3,
    "patch_stride": 1,
    "pretrain_dim": 16,
    "target_dim": 16,
    "coreset": {
        "method": "greedy",
        "ratio": 0.2,
        "start": "official",
        "projection_dim": None,
        "stop_radius": None,
        "block": 64,
    },
    "neighbors": 1,
    "distance": "euclidean",
    "search": {"backend": "flat", "cells": None, "nprobe": 4, "dtype": "float32"},
    "reweight": "none",
    "reweight_neighbors": 4,
    "squared": False,
    "sigma": 2.0,
    "memory_budget_gb": None,
    "seed": 0,
}


class TwoMaps(torch.nn.Module):
    """Fixed random filters at strides 4 and 8, as frozen features."""

    channels = (6, 10)
    identity = "two-maps"

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.fine = torch.randn(6, 3, 4, 4, generator=generator)
        self.coarse = torch.randn(10, 6, 2, 2, generator=generator)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        fine = torch.nn.functional.conv2d(image, self.fine, stride=4).relu()
        return [fine, torch.nn.functional.conv2d(fine, self.coarse, stride=2).relu()]


class Noise(Dataset):
    """Seeded images whose numbers in the data set are not their positions."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(count, 3, *SIZE, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return {"image": self.images[at], "index": torch.tensor(100 + at)}


def build(**options) -> PatchCore:
    coreset = OPTIONS["coreset"] | options.pop("coreset", {})
    return PatchCore(TwoMaps(), **(OPTIONS | {"coreset": coreset} | options))
