"""What a detector finds in an image, and why: its patches beside the nearest normal ones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from src.data.datamodule import AnomalyDataModule
from src.data.images import read_sample
from src.data.samples import NORMAL, Sample
from src.detector import Detector, fitted_samples
from src.errors import DataError, SavedModelError
from src.files import shown
from src.reporting.match_pictures import MatchGrid, Source, match_at
from src.reporting.records import PatchMatch, Picture
from src.saved_run import SavedRun


@torch.inference_mode()
def match_grid(detector: Detector, image: Image.Image | np.ndarray) -> MatchGrid:
    """The nearest normal patch of every patch of one image; for methods with a memory."""
    match = detector.model.nearest_patches(  # type: ignore[operator]
        detector.transform(image).to(detector.device)
    )
    return MatchGrid(
        display=detector.transform.display(image),
        distance=match.distance.float().cpu().numpy(),
        image=match.image.cpu().numpy(),
        place=match.place.cpu().numpy(),
        metric=str(detector.config.model.get("distance", "euclidean")),
    )


def picture_of(detector: Detector, sample: Sample, sources: Sequence[Sample] = ()) -> Picture:
    """A sample as the network sees it, with what the detector finds; an alarm is explained."""
    image = read_sample(sample)
    if (own := detector.threshold.of(sample.category)) != detector.threshold:
        detector = replace(detector, threshold=own)
    found = detector.detect([image])[0]
    mask = None if sample.mask_path is None else detector.transform.mask(sample.mask_path)
    if mask is None and sample.label == NORMAL:
        mask = np.zeros(detector.transform.size, dtype=bool)
    return Picture(
        display=detector.transform.display(image),
        anomaly_map=found.anomaly_map,
        mask=mask,
        segmentation=found.mask,
        match=explain(detector, image, sources) if found.alarm else None,
        extra=found.extra,
    )


def explain(detector: Detector, image: Image.Image, sources: Sequence[Sample]) -> PatchMatch | None:
    """The most anomalous patch and its nearest normal one; None: no memory, or no `sources`."""
    if not hasattr(detector.model, "nearest_patches") or not sources:
        return None
    grid = match_grid(detector, image)
    if not sources[grid.image.flat[grid.worst]].image_path.is_file():
        return None
    return match_at(grid, grid.worst, reader(detector, sources))


def reader(detector: Detector, sources: Sequence[Sample]) -> Source:
    """Reads the normal images that the rows of a memory stem from, by number."""

    def read(index: int) -> tuple[str, np.ndarray]:
        sample = sources[index]
        return shown(sample.image_path.name), detector.transform.display(read_sample(sample))

    return read


def sources_of(run: SavedRun) -> list[Sample]:
    """The samples a run was fitted on; none on a machine that does not have them."""
    try:
        return fitted_samples(run, AnomalyDataModule(run.config()))
    except (DataError, SavedModelError):
        return []
