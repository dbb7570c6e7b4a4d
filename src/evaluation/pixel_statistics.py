"""The per-image pixel histograms of a run as a file, so that runs can be compared later.

`pixel_statistics.npz` holds plain arrays, no pickle: some 100 kB instead of the score maps. Row i
belongs to the image of scores.csv whose path is `image[i]`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import SavedModelError
from src.evaluation.pixels import PixelHistograms
from src.files import atomic

FILE_NAME = "pixel_statistics.npz"


def write_pixel_statistics(
    directory: Path, histograms: PixelHistograms, paths: Sequence[str]
) -> None:
    """Write the histograms of the images `paths` (n,), in the order of their rows."""
    arrays: dict[str, Any] = histograms._replace(image=np.array(list(paths), dtype=str))._asdict()
    with atomic(directory / FILE_NAME) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def read_pixel_statistics(directory: Path) -> PixelHistograms | None:
    """What `write_pixel_statistics` wrote, None when the run has no masks.

    Raises:
        SavedModelError: the file is there but damaged.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            return PixelHistograms(**{name: saved[name] for name in PixelHistograms._fields})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise SavedModelError(
            f"{path} is damaged.",
            found=str(error),
            do="evaluate the run again with `python -m src.evaluate`, or delete the file",
        ) from error
