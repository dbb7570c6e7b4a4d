"""A small stand-in for frozen features, and images, shared by the PatchCore tests."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from src.models.patchcore.module import PatchCore
from src.models.patchcore.options import CoresetOptions, PatchCoreOptions, SearchOptions

SIZE = (32, 48)


def coreset(**changes) -> CoresetOptions:
    values = {"method": "greedy", "ratio": 0.2, "start": "official", "projection_dim": None,
              "stop_radius": None, "block": 64, "shots": None}  # fmt: skip
    return CoresetOptions(**(values | changes))


def search(**changes) -> SearchOptions:
    values = {"backend": "flat", "cells": None, "nprobe": 4, "dtype": "float32", "window": None}
    return SearchOptions(**(values | changes))


def options(**changes) -> PatchCoreOptions:
    values = {
        "embedding": "concat", "patch_size": 3, "patch_stride": 1, "pretrain_dim": 16,
        "target_dim": 16, "neighbors": 1, "distance": "euclidean", "reweight": "none",
        "reweight_neighbors": 4, "squared": False, "sigma": 2.0, "normalisation": "held_out",
        "memory_budget_gb": None, "rotations": [], "weights": None, "seed": 0, "search": search(),
        "normalise": "none", "score": "max", "top_share": 0.05, "held_out": "leave_one_out",
        "folds": None, "windows": None, "memories": "joint", "foreground": None,
        "references": None,
        "coreset": coreset(**changes.pop("coreset", {})),
    }  # fmt: skip
    return PatchCoreOptions(**(values | changes))


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

    def describe(self, image: torch.Tensor) -> torch.Tensor:
        return self(image)[-1].mean((2, 3))


class Noise(Dataset):
    """Seeded images whose numbers in the data set are not their positions."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(count, 3, *SIZE, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return {"image": self.images[at], "index": torch.tensor(100 + at)}


def build(*networks: torch.nn.Module, **changes) -> PatchCore:
    return PatchCore(networks or TwoMaps(), SIZE, options(**changes))


def fitted(*networks: torch.nn.Module, count: int = 9, batch_size: int = 4, **changes) -> PatchCore:
    model, loader = build(*networks, **changes), DataLoader(Noise(count), batch_size)
    trainer().fit(model, loader)
    model.eval()
    model.after_fit(loader)
    return model


def trainer() -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
