"""Patch vectors on a common scale: ours, for narrow backbones whose channels are all kept.

The layers of a network differ in scale by accident of their weights, and in a Euclidean distance
the loudest one decides alone. What was measured on four real sets stands in conf/backbone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from src.models.patchcore.nearest import tiles
from src.models.patchcore.options import Normalise

_ENERGY = 0.99  # ours: share of the variance that whitening keeps; the rest is noise blown up


def fit_normalisation(patches: Tensor, widths: Sequence[int], kind: Normalise) -> Tensor:
    """What patch vectors (N, D) are multiplied with: factors (D,), or a matrix (D, D').

    Args:
        patches: of normal images; float32. Costs one product of N * D * D.
        widths: channels of each layer, in order; they add up to D.
        kind: not `none`.
    """
    spread = covariance(patches)
    variance = spread.diagonal().clamp_min(1e-12)
    if kind == Normalise.channel:
        return variance.rsqrt().float()
    if kind == Normalise.layer:
        layers = torch.split(variance, list(widths))
        parts = [layer.sum().rsqrt().expand(len(layer)) for layer in layers]
        return torch.cat(parts).float()
    value, vector = torch.linalg.eigh(spread)
    value, vector = value.flip(0), vector.flip(1)
    kept = int((value.cumsum(0) < _ENERGY * value.sum()).sum()) + 1
    return (vector[:, :kept] * value[:kept].clamp_min(1e-12).rsqrt()).float()


def covariance(patches: Tensor) -> Tensor:
    """Covariance (D, D) float64 of rows (N, D), in tiles."""
    mean = patches.mean(0, dtype=torch.float64).float()
    total = torch.zeros(patches.shape[1], patches.shape[1], dtype=torch.float64)
    for tile in tiles(len(patches), 8192):
        part = patches[tile] - mean
        total += (part.T @ part).double().cpu()
    return total.to(patches.device) / len(patches)


def normalise(patches: Tensor, basis: Tensor) -> Tensor:
    """Patches (..., D) times what `fit_normalisation` found; an empty one changes nothing."""
    if not len(basis):
        return patches
    return patches * basis if basis.ndim == 1 else patches @ basis
