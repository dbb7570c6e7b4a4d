"""Regions of a defect, and how much of each must be found (MVTec LOCO AD).

Where something is missing, every place where it could lie is marked, and one of them is enough:
`defects_config.json` gives each kind of defect, by the value of its pixels in the masks, the area
at which its region counts as found (Bergmann et al., IJCV 2022).
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from src.data.images import mask_files, read_levels
from src.data.samples import Sample
from src.errors import DataError

FILE_NAME = "defects_config.json"


class Region(NamedTuple):
    """A defect that counts as found when `saturation` of its pixels are."""

    pixels: np.ndarray  # bool (H, W)
    saturation: float  # how many of them are enough, above 0; more than there are: all


def read_regions(sample: Sample) -> list[Region]:
    """The regions of a sample: of each mask file and value; without a saturation file, whole ones.

    Raises:
        DataError: the file cannot be read, or does not know a value.
    """
    files = mask_files(sample.mask_path) if sample.mask_path else []
    marked = [(levels == value, value) for levels in map(read_levels, files)
              for value in np.unique(levels[levels > 0]).tolist()]  # fmt: skip
    if sample.saturation is None:
        return [Region(pixels, float(pixels.sum())) for pixels, _ in marked]
    try:
        kinds = json.loads(sample.saturation.read_text(encoding="utf-8"))
        known = {int(kind["pixel_value"]): kind for kind in kinds}
        return [Region(pixels, _enough(known[value], pixels)) for pixels, value in marked]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{sample.saturation} does not say when a defect of {sample.mask_path} is found.",
            found=f"{type(error).__name__}: {error}",
            do="copy the file and the masks from the original archive",
        ) from error


def _enough(kind: dict[str, Any], pixels: np.ndarray) -> float:
    """`saturation_threshold` in pixels, or as a share of them."""
    area, enough = float(pixels.sum()), float(kind["saturation_threshold"])
    return min(area, enough * area if kind["relative_saturation"] else enough)
