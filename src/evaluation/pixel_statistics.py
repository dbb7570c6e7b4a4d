"""The per-image pixel histograms of a run as a file, so that runs can be compared later.

`pixel_statistics.npz` holds plain arrays, no pickle: some 100 kB instead of the score maps.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.errors import SavedModelError
from src.evaluation.pixels import PixelHistograms
from src.files import atomic

FILE_NAME = "pixel_statistics.npz"


class PixelStatistics(NamedTuple):
    """Histograms of a run; row i belongs to the image `paths[i]` of scores.csv."""

    paths: list[str]
    histograms: PixelHistograms

    def of(self, paths: Sequence[str]) -> PixelHistograms:
        """The rows of `paths`, in that order; KeyError when one is missing."""
        row = {path: i for i, path in enumerate(self.paths)}
        chosen = np.array([row[path] for path in paths], dtype=np.int64)
        every = self.histograms
        return PixelHistograms(
            every.image[chosen], every.defect[chosen], every.region[chosen], every.normal[chosen]
        )


def write_pixel_statistics(
    directory: Path, histograms: PixelHistograms, paths: Sequence[str]
) -> None:
    """Write the histograms of the images `paths` (n,), in the order of their rows."""
    with atomic(directory / FILE_NAME) as partial, partial.open("wb") as stream:
        np.savez_compressed(
            stream,
            paths=np.array(list(paths), dtype=str),
            image=histograms.image,
            defect=histograms.defect.astype(np.uint32),
            region=histograms.region,
            normal=histograms.normal.astype(np.uint32),
        )


def read_pixel_statistics(directory: Path) -> PixelStatistics | None:
    """What `write_pixel_statistics` wrote, None when the run has no masks.

    Raises:
        SavedModelError: the file is there but damaged.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            histograms = PixelHistograms(
                image=saved["image"],
                defect=saved["defect"].astype(np.int64),
                region=saved["region"],
                normal=saved["normal"].astype(np.int64),
            )
            return PixelStatistics(saved["paths"].tolist(), histograms)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise SavedModelError(
            f"{path} is damaged.",
            found=str(error),
            do="evaluate the run again with `python -m src.evaluate`, or delete the file",
        ) from error
