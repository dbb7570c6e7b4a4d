"""Losses of HaloAE: MSE plus structural similarity on features and image, and their curriculum.

`L = a1 L_classification + a2 L_features + a3 L_image`, where each reconstruction loss is
`MSE + (1 - SSIM)` and the weights follow logistic curves over training: first classification, then
features, then the image.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from src.models.haloae.options import Border, Curriculum, ScheduleOptions, SsimOptions

#: Stabilisers of SSIM for a dynamic range of 1 (Wang et al. 2004). HaloAE keeps that range although
#: normalised images and features exceed it.
C1, C2 = 0.01**2, 0.03**2


def ssim(target: Tensor, y: Tensor, options: SsimOptions) -> Tensor:
    """Mean structural similarity of each image, (B, C, H, W) twice, any units -> (B,), at most 1.

    Gradients reach `y` only. Always float32 or wider: E[x²] - E[x]² loses every digit in bfloat16.
    ValueError where an axis is too short for the window at this border.
    """
    # ours: kornia.metrics.ssim and torchmetrics know no zero border, exceed 1 on nearly constant
    # features, and keep 400 and 426 MiB of 704 x 64 x 64 features for the backward pass; this keeps
    # 88 MiB, in about the same time (0.3 to 0.4 s on one core).
    with torch.autocast(y.device.type, enabled=False):
        target, y = _wide(target.detach()), _wide(y)
        windows = (window_matrix(side, options, like=y) for side in y.shape[-2:])
        similarity: Tensor = _Similarity.apply(target, y, *windows)
        return similarity


class _Similarity(torch.autograd.Function):
    """Mean over each image of the similarity at every cell, with gradients for y.

    The Gaussian window is separable, so filtering is `G_rows X G_columns^T` with banded matrices.
    Written as (1 - (difference of means)² / energy) (1 - variance of the difference / sum of
    variances), which is the usual quotient without its cancellation: four filterings, never above
    1. The backward pass needs three maps; automatic differentiation would keep twelve.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        m, n = rows @ x @ columns.T, rows @ y @ columns.T  # local means
        lag, energy = m - n, m * m + n * n
        gap = lag * lag
        # Rounding can make either variance negative.
        unlike = (rows @ (x - y).square() @ columns.T - gap).clamp(min=0)
        variance = (rows @ (x * x + y * y) @ columns.T - energy).clamp(min=0) + C2
        energy = energy + C1
        luminance, structure = 1 - gap / energy, 1 - unlike / variance
        if ctx.needs_input_grad[1]:
            by_difference = -luminance / variance
            by_squares = -by_difference * (unlike / variance)
            by_mean = 2 * structure / energy * (lag + n * gap / energy)
            by_mean += 2 * lag * by_difference - 2 * n * by_squares
            ctx.save_for_backward(x, y, by_mean, by_squares, by_difference, rows, columns)
        return (luminance * structure).mean(dim=(1, 2, 3))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        x, y, by_mean, by_squares, by_difference, rows, columns = ctx.saved_tensors
        gradient = rows.T @ by_mean @ columns
        gradient += 2 * y * (rows.T @ by_squares @ columns)
        gradient += 2 * (y - x) * (rows.T @ by_difference @ columns)
        each = grads[0] / by_mean[0].numel()
        return None, gradient * each[:, None, None, None], None, None


def window_matrix(length: int, options: SsimOptions, like: Tensor) -> Tensor:
    """Filter of one axis as a banded matrix (length, length): what it makes of unit vectors."""
    half = options.window // 2
    if (options.border == Border.valid and length < options.window) or (
        options.border == Border.reflect and length <= half
    ):
        raise ValueError(f"{length} cells are too few for an SSIM window of {options.window}")
    offset = torch.arange(-half, half + 1, device=like.device, dtype=like.dtype)
    weight = torch.exp(-(offset**2) / (2 * options.sigma**2))
    units = torch.eye(length, device=like.device, dtype=like.dtype)[:, None]
    if options.border != Border.valid:
        mode = "reflect" if options.border == Border.reflect else "constant"
        units = F.pad(units, (half, half), mode=mode)
    return F.conv1d(units, (weight / weight.sum())[None, None])[:, 0].T


def reconstruction_losses(
    reconstruction: Tensor, target: Tensor, options: SsimOptions
) -> tuple[Tensor, Tensor]:
    """Mean squared error and 1 - SSIM of each image, (B, C, H, W) twice -> (B,) twice."""
    with torch.autocast(target.device.type, enabled=False):
        squared = (_wide(reconstruction) - _wide(target)).square().mean(dim=(1, 2, 3))
    return squared, 1 - ssim(target, reconstruction, options)


def loss_weights(fraction: float, options: ScheduleOptions) -> list[float]:
    """Weights of classification, features and image after `fraction` of training, in [0, 1].

    Logistic: r_k = end_k + (start_k - end_k) / (1 + exp(slope_k (fraction - midpoint_k))), divided
    by r_1 + r_2 + r_3. Constant: the three numbers of `constant`, as they are.
    """
    if options.kind == Curriculum.constant:
        return list(options.constant)
    curves = zip(options.start, options.end, options.midpoint, options.slope, strict=True)
    raw = [
        end + (start - end) / (1 + math.exp(slope * (fraction - midpoint)))
        for start, end, midpoint, slope in curves
    ]
    return [weight / sum(raw) for weight in raw]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
