"""Why an image raised an alarm: its worst patch beside the normal patch it was compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from PIL import Image

from src.data.images import read_sample
from src.reporting.records import Box, PatchMatch

if TYPE_CHECKING:
    from src.data.datamodule import AnomalyDataModule
    from src.detector import Detector


@torch.inference_mode()
def explain(detector: Detector, image: Image.Image, data: AnomalyDataModule) -> PatchMatch | None:
    """The most anomalous patch and its nearest normal patch; None for methods without a memory."""
    nearest = getattr(detector.model, "nearest_patches", None)
    if nearest is None:
        return None
    match = nearest(detector.transform(image).to(detector.device))
    h, w = match.distance.shape
    row, column = divmod(int(match.distance.argmax()), w)
    sample = data.samples[int(match.image[row, column])]
    place = match.place[row, column].tolist()
    return PatchMatch(
        distance=float(match.distance[row, column]),
        metric=str(detector.config.model.get("distance", "euclidean")),
        box=_box(row, column, (h, w), detector.transform.size),
        source=sample.image_path.name,
        source_display=detector.transform.display(read_sample(sample)),
        source_box=_box(int(place[0]), int(place[1]), (h, w), detector.transform.size),
    )


def _box(row: int, column: int, grid: tuple[int, int], size: tuple[int, int]) -> Box:
    """The pixels of one grid cell in a picture of `size`."""
    high, wide = size[0] / grid[0], size[1] / grid[1]
    top, left = round(row * high), round(column * wide)
    return Box(top, left, round((row + 1) * high), round((column + 1) * wide))
