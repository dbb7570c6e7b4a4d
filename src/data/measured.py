"""One look at each file of a data set: what the doctor needs, so that nothing is read twice."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from PIL import Image

from src.data.images import deep_peak, image_header, is_deep, read_mask, read_sample
from src.data.samples import DEFECTIVE, Finding, Found, Sample, about
from src.errors import DataError

_SIDE = 32  # of small grey pictures: size, container and brightness of copies do not matter
#: Root-mean-square grey levels, after removing the mean, that copies may differ by. ours:
#: recompressed and halved copies reach 0.9, the closest two distinct MVTec bottles 2.1.
MAX_LEVELS = 1.25
#: The same in units of the picture's own contrast, for pictures with hardly any. ours.
MAX_SHARE = 0.2
_CHUNK = 512
_PROBED = 16  # ours: a set of 8-bit images is known by so many headers, spread over the training


@dataclass(frozen=True)
class ImageFacts:
    """An image that could be read; brightness and contrast in grey levels 0 to 255."""

    sample: Sample
    size: tuple[int, int]  # H, W
    mode: str  # pixel format of the file, as Pillow names it
    brightness: float  # mean
    contrast: float  # standard deviation
    sharpness: float  # deviation of the second difference, in grey levels
    clipped: float  # share of pixels that are 0 or 255 in every channel
    digest: str  # of the decoded pixels: equal for the same picture in another container
    small: np.ndarray  # grey (1024,) without its mean


@dataclass(frozen=True)
class MaskFacts:
    """A mask that could be read."""

    sample: Sample
    file: Path
    size: tuple[int, int]  # H, W
    area: float  # share of defective pixels


S = TypeVar("S")
T = TypeVar("T")


def measure_masks(
    samples: Sequence[Sample],
) -> tuple[list[MaskFacts], list[tuple[Sample, DataError]]]:
    """Every mask in order, and those that cannot be read with the reason."""

    def measured(sample: Sample) -> MaskFacts:
        file = cast(Path, sample.mask_path)
        mask = read_mask(file)
        return MaskFacts(sample, file, (mask.shape[0], mask.shape[1]), float(mask.mean()))

    return each([s for s in samples if s.mask_path is not None], measured)


def empty_masks(masks: Sequence[MaskFacts]) -> list[Finding]:
    """Masks of defective images that mark nothing."""
    return about(
        [m.file for m in masks if m.sample.label == DEFECTIVE and m.area == 0], "warning",
        "Empty masks of defective images.",
        remedy="draw the defect, or move the image to the normal ones; pixel metrics do not count "
        "it",
    )  # fmt: skip


def each(items: Sequence[S], one: Callable[[S], T]) -> tuple[list[T], list[tuple[S, DataError]]]:
    """`one` of every item by a few threads (decoders release the GIL), failures apart."""
    good: list[T] = []
    broken: list[tuple[S, DataError]] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        waiting = [(item, threads.submit(one, item)) for item in items]
        for item, result in waiting:
            try:
                good.append(result.result())
            except DataError as error:
                broken.append((item, error))
    return good, broken


def measure_image(sample: Sample) -> ImageFacts:
    """What there is to say of an image file."""
    _, mode = image_header(sample.image_path)
    picture = read_sample(sample)
    pixels = np.asarray(picture)
    grey = picture.convert("L")
    levels = np.asarray(grey, np.float32)
    second = levels[:, 2:] - 2 * levels[:, 1:-1] + levels[:, :-2]
    clipped = (pixels.max(axis=2) == 0) | (pixels.min(axis=2) == 255)
    return ImageFacts(
        sample, (picture.height, picture.width), mode,
        brightness=float(levels.mean()),
        contrast=float(levels.std()),
        sharpness=float(second.std()) if second.size else 0.0,
        clipped=float(clipped.mean()),
        digest=hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest(),
        small=thumbnail(grey),
    )  # fmt: skip


def thumbnail(grey: Image.Image) -> np.ndarray:
    """Grey levels float32 (1024,) of a 32 x 32 picture without their mean, to know copies by."""
    small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32).reshape(-1)
    return small - small.mean()


def near_duplicates(thumbnails: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
    """Pairs i < j of n `thumbnails` that are copies; n * n / 2 products, 512 * n floats."""
    small = np.reshape(thumbnails, (-1, _SIDE**2))
    power = (small**2).mean(axis=1)
    most = np.minimum(MAX_LEVELS**2, MAX_SHARE**2 * power)
    for start in range(0, len(small), _CHUNK):
        rows = slice(start, start + _CHUNK)
        both = small[rows] @ small[start:].T / small.shape[1]
        apart = power[rows, None] + power[start:] - 2 * both  # mean squared difference
        for a, b in zip(*np.nonzero(apart <= most[rows, None]), strict=True):
            if a < b:
                yield start + int(a), start + int(b)


def settle_depth(found: Found, wanted: int | str | None) -> tuple[Found, int | None]:
    """The samples with the number of bits, 8 to 32, that their deep grey images fill.

    `wanted` "auto": the fewest that hold the brightest pixel of the normal training images; None
    where these are not deep.
    """
    if wanted == "auto":
        paths = [path for sample in found if sample.split == "train"
                 for path in (sample.image_path, *sample.channel_paths)]  # fmt: skip
        headers, _ = each(paths[:: max(1, len(paths) // _PROBED)], image_header)
        deep = any(is_deep(mode) for _, mode in headers)
        peaks, _ = each(paths if deep else [], deep_peak)  # broken files are named when read
        wanted = max([8, *(peak.bit_length() for peak in peaks)]) if deep else None
    if wanted is None:
        return found, None
    bits = int(wanted)
    return Found((replace(sample, bit_depth=bits) for sample in found), found.findings), bits
