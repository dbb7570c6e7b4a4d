"""From reconstruction errors to anomaly maps and image scores.

The release compares each error map with the mean error map of normal images, smooths it with a
binomial 3 x 3 filter and takes its mean or maximum. It estimates that mean on *test* images and
flips an AUROC below one half; here the mean comes from training images and nothing is flipped.
"""

from __future__ import annotations

from collections.abc import Mapping

import kornia
import torch
import torch.nn.functional as F
from torch import Tensor

from src.models.haloae.options import ScoringOptions

_POOL = 2  # the image error is averaged over 2 x 2 pixels: 256 -> 128, the published grid


def feature_error(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean over channels of the squared difference, (B, C, h, w) twice -> (B, h, w) float32."""
    return (reconstruction.float() - target.float()).square().mean(1)


def image_error(reconstruction: Tensor, image: Tensor) -> Tensor:
    """The same for images (B, 3, H, W) in normalised units -> (B, H/2, W/2)."""
    return F.avg_pool2d(feature_error(reconstruction, image)[:, None], _POOL)[:, 0]


def anomaly_maps(
    errors: Mapping[str, Tensor],
    normal: Mapping[str, tuple[Tensor, Tensor]],
    options: ScoringOptions,
) -> Tensor:
    """Distance to the normal error maps, smoothed.

    Args:
        errors: `feature` (B, h, w), `image` (B, 2 h, 2 w) or both. Of both the sum is taken in
            units of the mean normal error (ours: the release never combines the two).
        normal: mean and deviation of the error maps of normal images by the same names, without
            B. ours: the mean deviation of all places is added to that of each.
        options: how.

    Returns:
        (B, h, w), or (B, 2 h, 2 w) where the image takes part.
    """
    maps = {}
    for kind, error in errors.items():
        mean, spread = normal[kind]
        far = (error - mean).abs() if options.normalise else error
        if options.spread:
            far = (error - mean) / (spread + spread.mean())
        maps[kind] = binomial_blur(far) if options.blur else far
    if len(maps) == 1:
        return maps.popitem()[1]
    units = {
        kind: normal[kind][0].mean().clamp(min=torch.finfo(torch.float32).tiny) for kind in maps
    }
    size = maps["image"].shape[-2:]
    fine = F.interpolate(maps["feature"][:, None], size, mode="bilinear")[:, 0]
    return fine / units["feature"] + maps["image"] / units["image"]


def binomial_blur(maps: Tensor) -> Tensor:
    """[1, 2, 1] / 4 along rows and columns, borders mirrored without repeating the edge.

    What `cv2.GaussianBlur(map, (3, 3), 0)` computes. (B, h, w) -> same.
    """
    line = maps.new_tensor([[0.25, 0.5, 0.25]])
    return kornia.filters.filter2d_separable(maps[:, None], line, line)[:, 0]
