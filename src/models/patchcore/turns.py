"""Turned copies of good parts, for parts that lie anyhow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def angles_of(rotations: float | Sequence[float] | None) -> list[float]:
    """Degrees of the copies: those named, or of n evenly spaced turns all but the first."""
    if not isinstance(rotations, int | float):
        return list(map(float, rotations or []))
    return [360.0 * turn / rotations for turn in range(1, int(rotations))]


def turned(image: Tensor, degrees: float) -> Tensor:
    """Images (B, C, H, W) turned counterclockwise about their centre, in the same frame.

    Right angles of square images are exact; otherwise bilinear, and beyond the frame lies its
    mirror image, as in AnomalyDINO (Damm et al., WACV 2025), which turns before it shrinks.
    """
    if degrees == 0:
        return image
    quarter, rest = divmod(degrees, 90.0)
    if rest == 0 and (image.shape[2] == image.shape[3] or quarter % 2 == 0):
        return image.rot90(int(quarter), (2, 3))
    H, W = image.shape[2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # from places in the copy to those in the image, in units of half a width and half a height
    back = image.new_tensor([[cos, -sin * H / W, 0.0], [sin * W / H, cos, 0.0]])
    grid = F.affine_grid(back.expand(len(image), 2, 3), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
