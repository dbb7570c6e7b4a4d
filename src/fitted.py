"""What a run was fitted on, against what lies on disk now; every later step asks here."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from omegaconf import DictConfig

from src.data.datamodule import AnomalyDataModule
from src.data.samples import Sample
from src.errors import DataError
from src.saved_run import SavedRun

log = logging.getLogger(__name__)


def checked_data(run: SavedRun, other: DictConfig | None = None) -> AnomalyDataModule:
    """The data of a run, or of the config `other`, without test images that it was fitted on.

    What has changed since the fit is said; so are the images that are left out, by name. DataError:
    the images are not there, or all of them were fitted on. SavedModelError: the run names none.
    """
    record, data = run.record(), data_of(other or run.config())
    if other is None and (difference := record.difference(data.record)):
        log.warning("The data of %s changed since: %s.", run.directory, difference)
    data.leave_out({entry.content for entry in record.fitted})
    return data


def data_of(config: DictConfig) -> AnomalyDataModule:
    """The data of a run's config, looked at and ready."""
    data = AnomalyDataModule(config)
    data.prepare_data()
    data.setup()
    return data


def fitted_samples(run: SavedRun, data: AnomalyDataModule) -> list[Sample]:
    """The images that a run was fitted on, in the order in which its model numbers them.

    DataError: some are not in `data`. SavedModelError: the run does not say what they were.
    """
    return samples_with(data, {entry.path: entry.content for entry in run.record().fitted})


def samples_with(data: AnomalyDataModule, contents: Mapping[str, str]) -> list[Sample]:
    """The images with these contents, by the paths they had; DataError: some are not in `data`."""
    data.setup()
    here = {data.entry_of(sample).content: sample for sample in data.found}
    missing = [path for path, content in contents.items() if content not in here]
    if missing:
        raise DataError(
            "Images of the run are missing or were changed.",
            found=f"{len(missing)} of {len(contents)}, first {missing[0]}, below {data.root}",
            do="put them back, or give the folder that holds them as data.root",
        )
    return [here[content] for content in contents.values()]
