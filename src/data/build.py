"""The data module that a composed configuration describes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from src.composing import partial_of
from src.data.datamodule import AnomalyDataModule
from src.data.record import place_of
from src.data.transforms import ImageTransform


def build_datamodule(cfg: DictConfig) -> AnomalyDataModule:
    """AnomalyDataModule from the nodes data, transform, calibration, hardware and the top level.

    Raises:
        ConfigError: values that cannot work.
    """
    data = cfg.data
    prepare = data.get("prepare")
    root, category = place_of(data)
    return AnomalyDataModule(
        name=data.name,
        category=category,
        root=root,
        index=partial_of(data.index),
        prepare=None if prepare is None else partial_of(prepare),
        transform=ImageTransform.from_config(cfg.transform),
        batch_size=data.batch_size,
        num_workers=worker_count(cfg.get("hardware", {}).get("num_workers", "auto")),
        calibration_fraction=cfg.get("calibration", {}).get("fraction", 0.0),
        validation_fraction=cfg.get("validation", {}).get("fraction", 0.0),
        seed=cfg.get("seed", 0),
        protocol=cfg.get("protocol", "honest"),
        shuffle_train=not _single_pass(cfg.get("model") or {}),
        drop_last=data.get("drop_last", False),
        samples_per_epoch=data.get("samples_per_epoch"),
        cache=data.get("cache", "auto"),
        limit_train=data.get("limit_train"),
        limit_test=data.get("limit_test"),
        bit_depth=data.get("bit_depth"),
    )


def with_data_at(config: DictConfig, root: str | None) -> DictConfig:
    """The config of a run with its images in the folder `root`; None: where they were."""
    if root is None:
        return config
    place = str(Path(root).expanduser().absolute())
    return cast(DictConfig, OmegaConf.merge(config, {"data": {"root": place}}))


def worker_count(wanted: int | str | None) -> int:
    """Loader processes: a number, or "auto": one per core up to 8, none on one core."""
    if wanted is None or wanted == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        return 0 if cores < 2 else min(cores, 8)
    return int(wanted)


def _single_pass(model: Mapping[str, Any]) -> bool:
    """Whether the method is fitted in one pass: its config says so, or else its class."""
    if "single_pass" in model or "_target_" not in model:
        return bool(model.get("single_pass", False))
    return bool(getattr(hydra.utils.get_class(model["_target_"]), "single_pass", False))
