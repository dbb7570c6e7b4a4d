"""From reconstruction errors to anomaly maps and image scores.

The release compares each error map with the mean error map of normal images, smooths it with a
binomial 3 x 3 filter and takes its mean or maximum. It estimates that mean on *test* images and
flips an AUROC below one half; here the mean comes from training images and nothing is flipped.
"""

from __future__ import annotations

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


def deviation(error: Tensor, mean: Tensor, options: ScoringOptions) -> Tensor:
    """Distance to the normal error map, smoothed: (B, h, w) and mean (h, w) -> (B, h, w)."""
    if options.normalise:
        error = (error - mean).abs()
    return binomial_blur(error) if options.blur else error


def binomial_blur(maps: Tensor) -> Tensor:
    """[1, 2, 1] / 4 along rows and columns, borders mirrored without repeating the edge.

    What `cv2.GaussianBlur(map, (3, 3), 0)` computes. (B, h, w) -> same.
    """
    line = maps.new_tensor([0.25, 0.5, 0.25])
    padded = F.pad(maps[:, None], (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, torch.outer(line, line)[None, None])[:, 0]


def combine(
    features: Tensor | None, image: Tensor | None, scales: Tensor, options: ScoringOptions
) -> Tensor:
    """The anomaly map of the chosen kind.

    Args:
        features: deviation (B, h, w), needed for `feature` and `sum`.
        image: deviation (B, 2 h, 2 w), needed for `image` and `sum`.
        scales: (2,) mean error of normal images in features and image; `sum` adds both in units
            of them (ours: the release never combines the two, and their units differ).
        options: which map.

    Returns:
        (B, h, w) for `feature`, else (B, 2 h, 2 w).
    """
    if options.map == "feature" or image is None:
        assert features is not None
        return features
    if options.map == "image" or features is None:
        return image
    fine = F.interpolate(features[:, None], image.shape[-2:], mode="bilinear", align_corners=False)[
        :, 0
    ]
    units = scales.clamp(min=torch.finfo(scales.dtype).tiny)
    return fine / units[0] + image / units[1]


def image_score(maps: Tensor, options: ScoringOptions) -> Tensor:
    """Mean or maximum of each map, (B, h, w) -> (B,)."""
    flat = maps.flatten(1)
    return flat.amax(1) if options.score == "max" else flat.mean(1)
