"""Losses of HaloAE: MSE plus structural similarity on features and image, and their curriculum.

`L = a1 L_classification + a2 L_features + a3 L_image`, where each reconstruction loss is
`MSE + (1 - SSIM)` and the weights follow logistic curves over training: first classification, then
features, then the image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from src.models.haloae.options import ScheduleOptions, SsimOptions

#: Stabilisers of SSIM for a dynamic range of 1 (Wang et al. 2004). HaloAE keeps that range although
#: normalised images and features exceed it.
C1, C2 = 0.01**2, 0.03**2


def ssim_map(x: Tensor, y: Tensor, options: SsimOptions) -> Tensor:
    """Structural similarity at every cell, channel by channel.

    The Gaussian window is separable, so filtering is `G_rows X G_columns^T` with banded matrices:
    two matrix products instead of a depthwise convolution. Variances only enter as their sum, so
    four filterings suffice. Always float32 or wider: E[x²] - E[x]² loses every digit in bfloat16.

    Args:
        x: (B, C, H, W), any units; the constants assume a range of 1.
        y: the same shape.
        options: window, sigma and border. `zero` pads with zeros as HaloAE does, `reflect` is what
            torchmetrics and kornia do, `valid` drops the rim of window // 2 cells.

    Returns:
        (B, C, H, W), or smaller by window - 1 for `valid`; at most 1.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = _wide(x), _wide(y)
        rows = window_matrix(x.shape[-2], options, like=x)
        columns = rows if x.shape[-1] == x.shape[-2] else window_matrix(x.shape[-1], options, x)
        moments = torch.stack((x, y, x * x + y * y, x * y))  # (4, B, C, H, W)
        mean_x, mean_y, squares, product = (rows @ moments @ columns.T).unbind(0)
        energy, mixed = mean_x**2 + mean_y**2, 2 * mean_x * mean_y
        # Rounding can turn variances negative and covariances larger than variances allow.
        variances = (squares - energy).clamp(min=0)  # of x plus of y
        covariance = torch.minimum(2 * product - mixed, variances)  # twice
        return (mixed + C1) * (covariance + C2) / ((energy + C1) * (variances + C2))


def ssim(x: Tensor, y: Tensor, options: SsimOptions) -> Tensor:
    """Mean structural similarity of each image, (B, C, H, W) twice -> (B,), at most 1."""
    return ssim_map(x, y, options).mean(dim=(1, 2, 3))


def window_matrix(length: int, options: SsimOptions, like: Tensor) -> Tensor:
    """Filter of one axis as a banded matrix (length, length); `valid` drops window - 1 rows.

    Raises:
        ValueError: the axis is too short for the window at this border.
    """
    half = options.window // 2
    if (options.border == "valid" and length < options.window) or (
        options.border == "reflect" and length <= half
    ):
        raise ValueError(f"{length} cells are too few for an SSIM window of {options.window}")
    offset = torch.arange(-half, half + 1, device=like.device)
    weight = torch.exp(-(offset.to(like.dtype) ** 2) / (2 * options.sigma**2))
    weight = weight / weight.sum()
    cell = torch.arange(length, device=like.device)[:, None] + offset  # (length, w)
    weight = weight.expand_as(cell)
    if options.border == "reflect":
        cell = cell.abs()
        cell = torch.where(cell < length, cell, 2 * (length - 1) - cell)
    else:
        weight = weight * ((cell >= 0) & (cell < length))
        cell = cell.clamp(0, length - 1)
    matrix = like.new_zeros(length, length).scatter_add_(1, cell, weight)
    return matrix[half : length - half] if options.border == "valid" else matrix


def reconstruction_losses(
    reconstruction: Tensor, target: Tensor, options: SsimOptions
) -> tuple[Tensor, Tensor]:
    """Mean squared error and 1 - SSIM of each image, (B, C, H, W) twice -> (B,) twice."""
    with torch.autocast(target.device.type, enabled=False):
        squared = (_wide(reconstruction) - _wide(target)).square().mean(dim=(1, 2, 3))
    return squared, 1 - ssim(target, reconstruction, options)


def classification_loss(logits: Tensor, originals: int) -> Tensor:
    """Cross-entropy of logits (N, 2): the first `originals` are class 0, pasted images class 1."""
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[originals:] = 1
    return F.cross_entropy(logits.float(), labels)


def loss_weights(fraction: float, options: ScheduleOptions) -> tuple[float, float, float]:
    """Weights of classification, features and image after `fraction` of training, in [0, 1].

    Logistic: r_k = end_k + (start_k - end_k) / (1 + exp(slope_k (fraction - midpoint_k))), divided
    by r_1 + r_2 + r_3. Constant: the three numbers of `constant`, as they are.
    """
    if options.kind == "constant":
        a, b, c = options.constant
        return float(a), float(b), float(c)
    raw = [
        end + (start - end) / (1 + math.exp(slope * (fraction - midpoint)))
        for start, end, midpoint, slope in zip(
            options.start, options.end, options.midpoint, options.slope, strict=True
        )
    ]
    total = sum(raw)
    return raw[0] / total, raw[1] / total, raw[2] / total


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
