"""What is settled before a run learns: its folder, its data, its weights, and what it had done."""

import shutil
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from src import manifest
from src.data.datamodule import AnomalyDataModule
from src.data.record import FILE_NAME as DATA
from src.data.record import DataRecord
from src.errors import SavedModelError, WeightsError
from src.files import atomic
from src.identity import run_folder, same_config, weights_fingerprint
from src.models.base import AnomalyModule, read_model_card
from src.models.build import build_model
from src.saved_run import SavedRun
from src.training import last_checkpoint


class Beginning(NamedTuple):
    """What the first process has found in the run's folder, for all of them."""

    run: SavedRun
    fitted: bool  # an interrupted run had learnt already
    checkpoint: Path | None  # of an interrupted fit


def find_run(cfg: DictConfig) -> tuple[SavedRun, AnomalyDataModule, str]:
    """The folder of the run that `cfg` means, its data and a hash of its weights; all are there."""
    data = AnomalyDataModule(cfg)
    data.prepare_data()
    weights = weights_fingerprint(cfg)
    if weights is None:  # fetched by building the model once
        backbone = getattr(build_model(cfg, data.image_size).backbone, "identity", "")
        weights = weights_fingerprint(cfg) or str(backbone)
    run = SavedRun(run_folder(cfg, data.look().fingerprint, weights))
    return run, data, weights


def begin(
    cfg: DictConfig, run: SavedRun, data: AnomalyDataModule, model: AnomalyModule, weights: str
) -> Beginning:
    """Write what is known before the fit; WeightsError when it began from other weights."""
    if (weights_fingerprint(cfg) or weights) != weights:
        what = "The weights changed while the run was started."
        raise WeightsError(what, found=f"the files of {cfg.backbone.name}", do="start it again")
    if not run.has(DATA):
        _say_what_changed(run.directory, data.record)
    backbone = getattr(model.backbone, "identity", None)
    facts = manifest.describe_run(data.record.fingerprint, backbone)
    run.start(cfg, facts, force=cfg.force)
    run.write_rows(DATA, data.record.rows())
    if data.roi_file is not None:
        with atomic(run.directory / "roi.png") as partial:
            shutil.copyfile(data.roi_file, partial)
    return Beginning(run, run.has("fit.json"), last_checkpoint(run.directory))


def _say_what_changed(folder: Path, record: DataRecord) -> None:
    """One line, if the same config ran before on other data or from other weights."""

    def is_old(run: Path) -> bool:
        try:
            read_model_card(run / "model")
        except SavedModelError:
            return (run / "metrics.json").is_file()
        return False

    if earlier := same_config(folder, DATA):
        before = SavedRun(earlier[-1]).record()
        what = before.difference(record) or "the weights it starts from are others"
        print(f"Changed since {earlier[-1]}: {what}. Fitting again in {folder}; that run stays.")
    elif old := sorted(path.name for path in folder.parent.glob("seed*") if is_old(path)):
        print(f"{folder.parent} holds runs of an earlier version ({', '.join(old[:3])}). "
              "They are not used.")  # fmt: skip
