from __future__ import annotations

import numpy as np
import pytest
import torch

from src.data.transforms import ImageTransform
from src.deployment.fixed_input import FixedInput


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("size", "resize", "crop"),
    [
        ((97, 131), 64, 56),
        ((50, 50), 64, None),
        ((120, 80), [48, 40], None),
        ((64, 64), 64, 48),
        ((480, 640), 256, 224),
        ((1500, 1100), [64, 48], None),
    ],
)
def test_matrices_resize_like_pillow(interpolation, size, resize, crop):
    transform = ImageTransform(
        resize=resize, crop=crop, interpolation=interpolation, antialias=True,
        mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4],
    )  # fmt: skip
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    ours = FixedInput(transform, size)(torch.from_numpy(image)[None])[0]
    theirs = transform(image)
    assert ours.shape == theirs.shape
    levels = (ours - theirs).abs() * 255 * torch.tensor(transform.std).view(3, 1, 1)
    assert levels.max() < 1e-3  # the same grey level in every pixel
