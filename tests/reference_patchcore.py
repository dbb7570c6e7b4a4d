"""Slow, obviously correct twins of the PatchCore parts, straight from their descriptions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor


def official_patches(
    maps: Sequence[Tensor], patch: int, stride: int, middle: int, target: int
) -> Tensor:
    """Unfold, resize per tap, MeanMapper, Aggregator: (B*h*w, target)."""
    pad = (patch - 1) // 2
    grid: tuple[int, int] | None = None
    layers = []
    for feature in maps:
        B, C, H, W = feature.shape
        h = (H + 2 * pad - patch) // stride + 1
        w = (W + 2 * pad - patch) // stride + 1
        taps = F.unfold(feature, patch, padding=pad, stride=stride)  # (B, C*p*p, h*w)
        taps = taps.view(B, C * patch * patch, h, w)
        grid = grid or (h, w)
        taps = F.interpolate(taps, size=grid, mode="bilinear", align_corners=False)
        rows = taps.permute(0, 2, 3, 1).reshape(-1, 1, C * patch * patch)
        layers.append(F.adaptive_avg_pool1d(rows, middle))
    stacked = torch.stack([rows[:, 0] for rows in layers], 1).flatten(1)[:, None]
    return F.adaptive_avg_pool1d(stacked, target)[:, 0]


def greedy_k_center(features: Tensor, size: int, distance: np.ndarray, picks: list[int]) -> list:
    """Farthest point first in float64, one pick at a time; `distance` holds current distances."""
    points = features.double().numpy()
    distance = distance.astype(np.float64).copy()
    taken = np.zeros(len(points), bool)
    taken[picks] = True
    while len(picks) < size:
        pick = int(np.where(taken, -1.0, distance).argmax())
        taken[pick] = True
        picks.append(pick)
        distance = np.minimum(distance, np.sqrt(((points - points[pick]) ** 2).sum(1)))
    return picks


def k_center_from_row(features: Tensor, size: int, row: int) -> list[int]:
    """Plain greedy k-center that contains the row it starts from."""
    points = features.double().numpy()
    start = np.sqrt(((points - points[row]) ** 2).sum(1))
    return greedy_k_center(features, size, start, [row])


def k_center_official(features: Tensor, size: int, starts: Sequence[int]) -> list[int]:
    """The approximate sampler: begins from the mean distance to rows that it does not keep."""
    points = features.double().numpy()
    start = np.mean([np.sqrt(((points - points[s]) ** 2).sum(1)) for s in starts], axis=0)
    return greedy_k_center(features, size, start, [])


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances and rows of the k nearest bank rows, float64, lowest row on ties."""
    gaps = ((queries.double()[:, None] - bank.double()[None]) ** 2).sum(2)
    order = torch.sort(gaps, dim=1, stable=True)
    return order.values[:, :k], order.indices[:, :k]


def official_map(scores: np.ndarray, size: tuple[int, int], sigma: float) -> np.ndarray:
    """Bilinear resize, then SciPy's Gaussian filter (reflecting with repeated edge)."""
    wide = F.interpolate(
        torch.from_numpy(scores)[None, None], size=size, mode="bilinear", align_corners=False
    )
    return gaussian_filter(wide[0, 0].numpy(), sigma=sigma)
