"""What is settled before a run learns: its folder, its data, its weights, and what it had done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from src import manifest
from src.data.datamodule import AnomalyDataModule
from src.data.record import FILE_NAME as DATA
from src.errors import WeightsError
from src.files import atomic
from src.fitted import say_what_changed
from src.identity import run_folder, weights_fingerprint
from src.models.base import AnomalyModule
from src.models.build import build_model
from src.saved_run import SavedRun
from src.training import last_checkpoint


class Beginning(NamedTuple):
    """What the first process has found in the run's folder, for all of them."""

    run: SavedRun
    fitted: bool  # an interrupted run had learnt already
    checkpoint: Path | None  # of an interrupted fit


def find_run(cfg: DictConfig) -> tuple[SavedRun, AnomalyDataModule, str]:
    """The folder of the run that `cfg` means with its data as they are; data and weights are there.

    The weights are named by what is in their files.
    """
    data = AnomalyDataModule(cfg)
    data.prepare_data()
    weights = weights_fingerprint(cfg) or _fetch_weights(cfg, data)
    run = SavedRun(run_folder(cfg, data.look().fingerprint, weights))
    return run, data, weights


def begin(
    cfg: DictConfig, run: SavedRun, data: AnomalyDataModule, model: AnomalyModule, weights: str
) -> Beginning:
    """Write what is known before the fit; WeightsError when it began from other weights."""
    if (weights_fingerprint(cfg) or weights) != weights:
        raise WeightsError(
            "The weights changed while the run was started.",
            found=f"the files of {cfg.backbone.name}",
            do="start it again",
        )
    if not run.has(DATA):
        say_what_changed(run.directory, data.record)
    backbone = getattr(model.backbone, "identity", None)
    facts = manifest.describe_run(data.record.fingerprint, backbone)
    run.start(cfg, facts, force=cfg.force)
    run.write_rows(DATA, data.record.rows())
    if data.roi_file is not None:
        with atomic(run.directory / "roi.png") as partial:
            shutil.copyfile(data.roi_file, partial)
    return Beginning(run, run.fitted, last_checkpoint(run.directory))


def _fetch_weights(cfg: DictConfig, data: AnomalyDataModule) -> str:
    """Fetch the weights of a run by building its model once; their fingerprint."""
    model = build_model(cfg, data.image_size)
    return weights_fingerprint(cfg) or str(getattr(model.backbone, "identity", ""))
