"""How the images of a data set are seen: which grey is white, at which size, and where.

All three belong to the data set, so that two images of one camera stay comparable. What the images
decide, a run keeps in its config (`data.bit_depth`, `transform.resize`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from src.data.images import deep_peak, image_header, image_size, is_deep, read_mask, same_view
from src.data.measured import each
from src.data.samples import Found
from src.data.transforms import ImageTransform
from src.errors import DataError

AUTO = "auto"  # in place of a size, `data.view.resize=auto`
_PROBED = 16  # ours: a set of 8-bit images is known by so many headers, spread over the training


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


def fitting_size(paths: Sequence[Path], side: int, step: int = 32) -> tuple[int, int]:
    """(H, W) with about side * side pixels and the shape of the median image, else the square.

    Both are the nearest multiples of `step`: 320 x 160 for side 224 and images of 512 x 256.
    """
    sizes, _ = each(paths, image_size)
    if not sizes:
        return side, side
    height, width = np.median(sizes, axis=0)
    stretch = float(height / width) ** 0.5
    rows, columns = side * stretch, side / stretch
    return max(step, step * round(rows / step)), max(step, step * round(columns / step))


def view_of(view: Mapping[str, Any], paths: Sequence[Path]) -> ImageTransform:
    """The geometry that a node `data.view` means for these training images, for the doctor."""
    resize = view["resize"]
    size = fitting_size(paths, view["side"], view["step"]) if resize == AUTO else resize
    return ImageTransform(
        resize=size, crop=view["crop"], interpolation="bilinear", antialias=True,
        mean=[0.0] * 3, std=[1.0] * 3,
    )  # fmt: skip


def read_roi(path: Path, transform: ImageTransform, images: Sequence[Path]) -> np.ndarray:
    """Pixels of the network's view that count, bool (H, W), from the picture `data.roi`.

    Raises:
        DataError: unreadable, of another shape than the images, or black where the network looks.
    """
    mask = read_mask(path)
    for image in images:
        size = image_size(image)
        if not same_view(mask.shape, size):
            raise DataError(
                f"data.roi={path} has another shape than the images.",
                found=f"{mask.shape[1]} x {mask.shape[0]} pixels; {image.name} has "
                f"{size[1]} x {size[0]}",
                do="draw it on one of the images and save it at the size of that image",
            )
    seen = transform.mask(mask)
    if not seen.any():
        raise DataError(
            f"data.roi={path} leaves nothing to look at.",
            found=f"{mask.mean():.0%} of it is white, none of that in the view",
            do="paint white what is to be looked at, and black the rest",
        )
    return seen
