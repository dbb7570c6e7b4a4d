"""`data.roi`: one picture for all images of a product, white where to look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.data.images import image_size, read_mask, same_view
from src.data.transforms import ImageTransform
from src.errors import DataError


def read_roi(path: Path, transform: ImageTransform, images: Sequence[Path]) -> np.ndarray:
    """Pixels of the network's view that count, bool (H, W).

    Raises:
        DataError: the file cannot be read, has another shape than the images, or is black where
            the network looks.
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
