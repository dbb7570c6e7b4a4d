"""Losses of HaloAE: MSE plus structural similarity on features and image, and their curriculum.

`L = a1 L_classification + a2 L_features + a3 L_image`, where each reconstruction loss is
`MSE + (1 - SSIM)` and the weights follow logistic curves over training: first classification, then
features, then the image.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

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
    two matrix products instead of a depthwise convolution. Written as (1 - (difference of means)² /
    energy) (1 - variance of the difference / sum of variances), which is the usual quotient without
    its cancellation: four filterings, never above 1. Always float32 or wider: E[x²] - E[x]² loses
    every digit in bfloat16.

    Args:
        x: (B, C, H, W), any units; the constants assume a range of 1.
        y: the same shape.
        options: window, sigma and border. `zero` pads with zeros as HaloAE does, `reflect` is what
            torchmetrics and kornia do, `valid` drops the rim of window // 2 cells.

    Returns:
        (B, C, H, W), or smaller by window - 1 for `valid`.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = _wide(x), _wide(y)
        t = _terms(x, y, *_windows(x, options))
        return (1 - t.gap / t.energy) * (1 - t.unlike / t.variance)


def ssim(target: Tensor, y: Tensor, options: SsimOptions) -> Tensor:
    """Mean structural similarity of each image, (B, C, H, W) twice -> (B,), at most 1.

    Gradients reach `y` only. They are computed by hand: three maps are kept for the backward pass
    instead of twelve.
    """
    with torch.autocast(y.device.type, enabled=False):
        target, y = _wide(target.detach()), _wide(y)
        similarity: Tensor = _Similarity.apply(target, y, *_windows(target, options))
        return similarity


class _Terms(NamedTuple):
    """The four filtered quantities, combined; m and n are the local means of x and y."""

    mean: Tensor  # n
    lag: Tensor  # m - n
    gap: Tensor  # (m - n)²
    energy: Tensor  # m² + n² + C1
    unlike: Tensor  # variance of x - y
    variance: Tensor  # of x plus of y, plus C2


def _terms(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> _Terms:
    m, n = rows @ x @ columns.T, rows @ y @ columns.T
    squares = rows @ (x * x + y * y) @ columns.T
    difference = rows @ (x - y).square() @ columns.T
    lag, energy = m - n, m * m + n * n
    gap = lag * lag
    # Rounding can make either variance negative.
    unlike, variance = (difference - gap).clamp(min=0), (squares - energy).clamp(min=0)
    return _Terms(n, lag, gap, energy + C1, unlike, variance + C2)


class _Similarity(torch.autograd.Function):
    """Mean of `ssim_map` over each image, with gradients for y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        t = _terms(x, y, rows, columns)
        luminance, structure = 1 - t.gap / t.energy, 1 - t.unlike / t.variance
        if ctx.needs_input_grad[1]:
            by_difference = -luminance / t.variance
            by_squares = -by_difference * (t.unlike / t.variance)
            by_mean = 2 * structure / t.energy * (t.lag + t.mean * t.gap / t.energy)
            by_mean += 2 * t.lag * by_difference - 2 * t.mean * by_squares
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


def _windows(x: Tensor, options: SsimOptions) -> tuple[Tensor, Tensor]:
    rows = window_matrix(x.shape[-2], options, like=x)
    square = x.shape[-1] == x.shape[-2]
    return rows, rows if square else window_matrix(x.shape[-1], options, like=x)


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
