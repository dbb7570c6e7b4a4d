"""One look at each file of a data set: what the doctor needs, so that nothing is read twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np

from src.data.duplicates import dhash, thumbnail
from src.data.findings import Finding, about
from src.data.images import image_header, read_mask, read_sample
from src.data.samples import DEFECTIVE, Sample
from src.errors import DataError


@dataclass(frozen=True)
class Measured:
    """An image that could be read; brightness and contrast in grey levels 0 to 255."""

    sample: Sample
    size: tuple[int, int]  # H, W
    mode: str  # pixel format of the file, as Pillow names it
    brightness: float  # mean
    contrast: float  # standard deviation
    sharpness: float  # deviation of the second difference, in grey levels
    clipped: float  # share of pixels that are 0 or 255 in every channel
    digest: str  # of the decoded pixels: equal for the same picture in another container
    bits: np.ndarray  # dHash (256,)
    small: np.ndarray  # grey (1024,) without its mean


@dataclass(frozen=True)
class MeasuredMask:
    """A mask that could be read."""

    sample: Sample
    size: tuple[int, int]  # H, W
    area: float  # share of defective pixels

    @property
    def file(self) -> Path:
        """Of the mask."""
        return cast(Path, self.sample.mask_path)


Unreadable = list[tuple[Sample, DataError]]
T = TypeVar("T")


def measure(samples: Sequence[Sample]) -> tuple[list[Measured], Unreadable]:
    """Every image in order, and those that cannot be read with the reason."""
    return _each(samples, _measure_image)


def measure_masks(samples: Sequence[Sample]) -> tuple[list[MeasuredMask], Unreadable]:
    """Every mask in order, and those that cannot be read with the reason."""
    return _each([s for s in samples if s.mask_path is not None], _measure_mask)


def empty_masks(masks: Sequence[MeasuredMask]) -> list[Finding]:
    """Masks of defective images that mark nothing."""
    return about(
        [m.file for m in masks if m.sample.label == DEFECTIVE and m.area == 0], "warning",
        what="Empty masks of defective images.",
        remedy="draw the defect, or move the image to the normal ones; pixel metrics do not count "
        "it",
    )  # fmt: skip


def _each(samples: Sequence[Sample], one: Callable[[Sample], T]) -> tuple[list[T], Unreadable]:
    """`one` of every sample by a few threads (decoders release the GIL), failures apart."""
    good: list[T] = []
    broken: Unreadable = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        waiting = [(sample, threads.submit(one, sample)) for sample in samples]
        for sample, result in waiting:
            try:
                good.append(result.result())
            except DataError as error:
                broken.append((sample, error))
    return good, broken


def _measure_image(sample: Sample) -> Measured:
    mode = image_header(sample.image_path).mode
    picture = read_sample(sample)
    pixels = np.asarray(picture)
    grey = picture.convert("L")
    levels = np.asarray(grey, np.float32)
    second = levels[:, 2:] - 2 * levels[:, 1:-1] + levels[:, :-2]
    clipped = (pixels.max(axis=2) == 0) | (pixels.min(axis=2) == 255)
    digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
    return Measured(
        sample,
        (picture.height, picture.width),
        mode,
        float(levels.mean()),
        float(levels.std()),
        float(second.std()) if second.size else 0.0,
        float(clipped.mean()),
        digest,
        dhash(grey),
        thumbnail(grey),
    )


def _measure_mask(sample: Sample) -> MeasuredMask:
    mask = read_mask(cast(Path, sample.mask_path))  # measure_masks chose those that have one
    return MeasuredMask(sample, (mask.shape[0], mask.shape[1]), float(mask.mean()))
