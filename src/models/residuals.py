"""How far a residual lies beyond what normal images leave at the same place.

A reconstruction is never perfect: edges and textures leave residuals in every normal image, and a
plain mean of them drowns a small defect. Standardised by mean and spread over normal images, place
by place, they say how unusual each place is. Ours: the papers of the methods that use it do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor, nn

from src.errors import ConfigError

#: What a residual is compared with: nothing (the papers: its mean size over channels is the map),
#: the mean and spread of that size at each place, or those of every signed channel at each place,
#: of which the most unusual one counts.
Standardise = StrEnum("Standardise", ["none", "position", "position_channel"])

#: Image score of a map: its mean, its largest value, or the mean of its largest values.
MapScore = StrEnum("MapScore", ["mean", "max", "top"])


@dataclass
class MapOptions:
    """From an anomaly map to an image score."""

    score: MapScore
    top_share: float  # of the places of a map, for `top`


@dataclass
class ResidualOptions(MapOptions):
    """From residuals to anomaly maps and image scores."""

    standardise: Standardise
    blur: float  # deviation of a Gaussian over the residual, in places; 0: none
    floor: float  # added to every spread, units of the residual: still places do not blow up noise


class ResidualStatistics(nn.Module):
    """Residuals (B, C, H, W) -> maps (B, H, W), with statistics of normal training images.

    Memory: 2 C H W float32 values for `position_channel`.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, channels: int, size: tuple[int, int], options: ResidualOptions) -> None:
        super().__init__()
        self.options = options
        rows = channels if options.standardise == Standardise.position_channel else 1
        self.register_buffer("mean", torch.zeros(rows, *size))
        self.register_buffer("spread", torch.ones(rows, *size))

    @torch.no_grad()
    def fit(self, residuals: Iterable[Tensor]) -> None:
        """Mean and spread at each place over batches of residuals of normal images."""
        if self.options.standardise == Standardise.none:
            return
        total = squares = torch.zeros_like(self.mean, dtype=torch.float64)
        count = 0
        for batch in residuals:
            values = self._compared(batch).double()
            total, squares = total + values.sum(0), squares + values.square().sum(0)
            count += len(values)
        mean = total / max(count, 1)
        self.mean.copy_(mean)
        self.spread.copy_((squares / max(count, 1) - mean.square()).clamp(min=0).sqrt())

    def forward(self, residual: Tensor) -> Tensor:
        """Maps (B, H, W) float32: absolute units without standardisation, else spreads."""
        values = self._compared(residual)
        if self.options.standardise != Standardise.none:
            values = (values - self.mean) / (self.spread + self.options.floor)
        if self.options.standardise == Standardise.position_channel:
            values = values.abs()
        return values.amax(dim=1)

    def _compared(self, residual: Tensor) -> Tensor:
        residual, sigma = residual.float(), self.options.blur
        if sigma:
            side = 2 * round(3 * sigma) + 1
            residual = gaussian_blur2d(residual, (side, side), (sigma, sigma))
        if self.options.standardise == Standardise.position_channel:
            return residual
        return residual.abs().mean(dim=1, keepdim=True)


def image_score(anomaly_map: Tensor, options: MapOptions) -> Tensor:
    """Maps (B, H, W) -> image scores (B,)."""
    places = anomaly_map.flatten(1)
    if options.score == MapScore.mean:
        return places.mean(dim=1)
    if options.score == MapScore.max:
        return places.amax(dim=1)
    count = max(1, int(options.top_share * places.shape[1]))
    return places.topk(count, dim=1).values.mean(dim=1)


def refuse_backbone(method: str, backbone: nn.Module | None) -> None:
    """ConfigError for the backbone of a method of units, which learn from pixels."""
    if backbone is not None:
        raise ConfigError(
            f"{method} learns from pixels and has no use for a backbone.",
            found=f"backbone {getattr(backbone, 'identity', type(backbone).__name__)}",
            do="set backbone=none",
        )
