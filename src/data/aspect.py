"""The size at which your own images are seen: their shape, at a fixed number of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.data.images import image_size
from src.data.measured import each
from src.data.transforms import ImageTransform

#: The word in place of a size, `data.view.resize=auto`.
AUTO = "auto"
_STEP = 32  # the coarsest stride of the backbones: every map fits its image


def fitting_size(paths: Sequence[Path], side: int) -> tuple[int, int]:
    """(H, W) with about side * side pixels and the shape of the median image.

    Both are the nearest multiples of 32: 320 x 160 for side 224 and images of 512 x 256. Images
    that cannot be read are passed over; without any it is the square.
    """
    sizes, _ = each(paths, image_size)
    if not sizes:
        return side, side
    height, width = np.median(sizes, axis=0)
    stretch = float(height / width) ** 0.5
    return _rounded(side * stretch), _rounded(side / stretch)


def view_of(view: Mapping[str, Any], paths: Sequence[Path]) -> ImageTransform:
    """The geometry that a node `data.view` means for these training images, for the doctor."""
    resize = view["resize"]
    size = fitting_size(paths, view["side"]) if resize == AUTO else resize
    return ImageTransform(
        resize=size, crop=view["crop"], interpolation="bilinear", antialias=True,
        mean=[0.0] * 3, std=[1.0] * 3,
    )  # fmt: skip


def _rounded(pixels: float) -> int:
    return max(_STEP, _STEP * round(pixels / _STEP))
