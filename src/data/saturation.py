"""Regions of a defect, and how much of each must be found (MVTec LOCO AD).

Where something is missing, every place where it could lie is marked, and one of them is enough:
`defects_config.json` gives each kind of defect, by the value of its pixels in the masks, the area
at which its region counts as found (Bergmann et al., IJCV 2022).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.data.images import mask_files, read_levels
from src.data.samples import Sample
from src.errors import DataError

FILE_NAME = "defects_config.json"


class Region(NamedTuple):
    """One marked region of an image."""

    pixels: np.ndarray  # bool (H, W), on the grid of the mask file
    saturation: float  # area in these pixels, at most its own, that is enough


def read_regions(sample: Sample) -> list[Region]:
    """The regions of a sample: of each mask file and value; without a saturation file, whole ones.

    Raises:
        DataError: the file cannot be read, or does not know a value.
    """
    known, regions = _areas(sample.saturation), []
    for file in mask_files(sample.mask_path) if sample.mask_path else []:
        levels = read_levels(file)
        for value in np.unique(levels[levels > 0]).tolist():
            pixels = levels == value
            area = float(pixels.sum())
            if known is None:
                regions.append(Region(pixels, area))
            elif value in known:
                threshold, relative = known[value]
                enough = threshold * area if relative else threshold
                regions.append(Region(pixels, min(enough, area)))
            else:
                raise DataError(
                    f"{file} marks a kind of defect that {sample.saturation} does not know.",
                    found=f"pixel value {value}, known are {', '.join(map(str, sorted(known)))}",
                    do="unpack the archive again, so that masks and file belong together",
                )
    return regions


def _areas(path: Path | None) -> dict[int, tuple[float, bool]] | None:
    """Pixel value -> area that is enough, and whether it is a share of the region."""
    if path is None:
        return None
    try:
        return {
            int(kind["pixel_value"]): (
                float(kind["saturation_threshold"]), bool(kind["relative_saturation"])
            )
            for kind in json.loads(path.read_text(encoding="utf-8"))
        }  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} does not say when a defect counts as found.",
            found=f"{type(error).__name__}: {error}",
            do="copy it from the original archive",
        ) from error
