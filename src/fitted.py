"""What a run was fitted on, against what lies on disk now; every later step asks here."""

from __future__ import annotations

import logging
from pathlib import Path

from omegaconf import DictConfig

from src.data.datamodule import AnomalyDataModule
from src.data.record import FILE_NAME as DATA
from src.data.record import DataRecord
from src.data.samples import Sample
from src.errors import DataError, SavedModelError
from src.identity import same_config
from src.models.base import read_model_card
from src.saved_run import SavedRun

log = logging.getLogger(__name__)


def checked_data(run: SavedRun, other: DictConfig | None = None) -> AnomalyDataModule:
    """The data of a run, or of the config `other`, without test images that it was fitted on.

    What has changed since the fit is said; so are the images that are left out, by name.

    Raises:
        DataError: the images are not there, or all of them were fitted on.
        SavedModelError: the run does not say what it was fitted on.
    """
    record = run.record()
    data = AnomalyDataModule(other or run.config())
    data.prepare_data()
    data.setup()
    if other is None and (difference := record.difference(data.record)):
        log.warning("The data of %s changed since: %s.", run.directory, difference)
    data.leave_out({entry.content for entry in record.fitted})
    return data


def fitted_samples(run: SavedRun, data: AnomalyDataModule) -> list[Sample]:
    """The images that a run was fitted on, in the order in which its model numbers them.

    They are found by content, so moved or renamed images are no obstacle.

    Raises:
        DataError: some are not among the images of `data`.
        SavedModelError: the run does not say what it was fitted on.
    """
    data.setup()
    here = {data.entry_of(sample).content: sample for sample in data.found}
    fitted = run.record().fitted
    missing = [entry.path for entry in fitted if entry.content not in here]
    if missing:
        raise DataError(
            "Images that the run was fitted on are missing or were changed.",
            found=f"{len(missing)} of {len(fitted)}, first {missing[0]}, below {data.root}",
            do="put them back, or give the folder that holds them as data.root",
        )
    return [here[entry.content] for entry in fitted]


def say_what_changed(folder: Path, record: DataRecord) -> None:
    """One line, if the same config ran before on other data or from other weights."""
    if earlier := same_config(folder, DATA):
        before = SavedRun(earlier[-1]).record()
        what = before.difference(record) or "the weights it starts from are others"
        print(f"Changed since {earlier[-1]}: {what}. Fitting again in {folder}; that run stays.")
    elif old := [path.name for path in folder.parent.glob("seed*") if _is_old(path)]:
        print(f"{folder.parent} holds runs of an earlier version ({', '.join(sorted(old)[:3])}). "
              "They are not used.")  # fmt: skip


def _is_old(folder: Path) -> bool:
    try:
        read_model_card(folder / "model")
    except SavedModelError:
        return (folder / "metrics.json").is_file()
    return False
