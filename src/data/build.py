"""The data module that a composed configuration describes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from src.data.aspect import AUTO
from src.data.datamodule import AnomalyDataModule
from src.data.options import DataOptions, Protocol, UseOptions
from src.data.record import lister
from src.data.transforms import ImageTransform
from src.errors import ConfigError
from src.partials import partial_of


def build_datamodule(cfg: DictConfig) -> AnomalyDataModule:
    """AnomalyDataModule from the nodes data, transform, calibration, hardware and the top level."""
    prepare, transform = cfg.data.get("prepare"), dict(cfg.transform)
    keep_aspect = transform["resize"] == AUTO
    if keep_aspect:
        transform["resize"] = [cfg.data.view.side] * 2
    single_pass = _single_pass(cfg.get("model") or {})
    if cfg.data.get("rotations") and not single_pass:
        raise ConfigError(
            "Turned copies fill a memory bank, which this method has not.",
            found=f"data.rotations={cfg.data.rotations} model={cfg.model.name}",
            do="use model=patchcore, or leave data.rotations out",
        )
    return AnomalyDataModule(
        data_options(cfg.data),
        UseOptions(
            seed=cfg.seed,
            protocol=Protocol[cfg.protocol],
            calibration_fraction=cfg.calibration.fraction,
            validation_fraction=cfg.validation.fraction,
            shuffle_train=not single_pass,
            keep_aspect=keep_aspect,
            num_workers=worker_count(cfg.hardware.num_workers),
        ),
        transform=ImageTransform.from_config(transform),
        index=lister(cfg.data),
        prepare=None if prepare is None else partial_of(prepare),
    )


def write_settled(cfg: DictConfig, data: AnomalyDataModule) -> None:
    """Put what the images decided into the config: bits of deep grey, and the size of the view."""
    OmegaConf.update(cfg, "data.bit_depth", data.bit_depth, force_add=True)
    if cfg.transform.resize == AUTO:
        OmegaConf.update(cfg, "transform.resize", list(data.image_size))


def data_options(data: DictConfig) -> DataOptions:
    """What every data set has, of the node of one; the keys of its own go to its lister."""
    common = {field.name: data[field.name] for field in fields(DataOptions)}
    typed = OmegaConf.merge(OmegaConf.structured(DataOptions), common)
    return cast(DataOptions, OmegaConf.to_object(typed))


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
    """Whether the method is fitted in one pass."""
    return "_target_" in model and getattr(get_class(model["_target_"]), "single_pass", False)
