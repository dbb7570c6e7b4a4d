"""Why an image raised an alarm: its worst patch beside the normal patch it was compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from src.commands.patch_match import match_grid
from src.data.images import read_sample
from src.data.samples import Sample
from src.files import shown
from src.reporting.patch_match import match_at
from src.reporting.records import PatchMatch

if TYPE_CHECKING:
    from src.detector import Detector


def explain(detector: Detector, image: Image.Image, sources: Sequence[Sample]) -> PatchMatch | None:
    """The most anomalous patch and its nearest normal patch.

    `sources` are the samples the model was fitted on, in their order. None for methods without a
    memory, and when the images it was fitted on are not at hand.
    """
    if not hasattr(detector.model, "nearest_patches") or not sources:
        return None
    grid = match_grid(detector, image)
    row, column = divmod(int(grid.distance.argmax()), grid.distance.shape[1])
    source = sources[int(grid.image[row, column])]
    if not source.image_path.is_file():
        return None
    normal = shown(source.image_path.name), detector.transform.display(read_sample(source))
    return match_at(grid, row, column, lambda _: normal)
