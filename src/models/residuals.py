"""How far a residual lies beyond what normal images leave at the same place.

A reconstruction is never perfect: edges and textures leave residuals in every normal image, and a
plain mean of them drowns a small defect. Standardised by mean and spread over normal images, place
by place, they say how unusual each place is. Ours: the papers of the methods that use it do not.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor, nn

from src.errors import ConfigError
from src.models.map_options import MapOptions, MapScore, ResidualOptions, Standardise


class Moments:
    """Mean and deviation over some dimensions of batches, added up in float64."""

    def __init__(self, *dims: int, over: Iterable[Tensor] = ()) -> None:
        self.dims, self.count = dims, 0
        self._total = self._squares = torch.zeros(())
        for values in over:
            self.add(values)

    def add(self, values: Tensor) -> None:
        """Take one batch; its other dimensions stay."""
        wide = values.detach().double()
        self._total = self._total.to(wide) + wide.sum(self.dims)
        self._squares = self._squares.to(wide) + wide.square().sum(self.dims)
        self.count += math.prod(wide.shape[dim] for dim in self.dims)

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (of the population), float64."""
        mean = self._total / max(self.count, 1)
        variance = self._squares / max(self.count, 1) - mean.square()
        return mean, variance.clamp(min=0).sqrt()


class PositionScale(nn.Module):
    """Values (B, C, h, w) of new images in units of their spread over normal ones at each place.

    `shared`: part of each variance that is the mean over all places, in [0, 1]: few images measure
    a single place badly. `floor`: added to every spread, in units of the values.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, shape: Sequence[int], shared: float = 0.0, floor: float = 0.0) -> None:
        super().__init__()
        self.shared, self.floor, self.count = shared, floor, 0
        self.register_buffer("mean", torch.zeros(*shape))
        self.register_buffer("spread", torch.ones(*shape))

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Measure batches (B, C, h, w) of normal images."""
        self.take(Moments(0, over=batches))

    def take(self, moments: Moments) -> None:
        """Use moments over the images."""
        self.count = moments.count
        mean, spread = moments.result()
        variance, typical = spread.square(), spread.square().mean((-2, -1), keepdim=True)
        self.mean.copy_(mean)
        self.spread.copy_(torch.lerp(variance, typical.expand_as(variance), self.shared).sqrt())

    def forward(self, values: Tensor, *, measured: bool = False) -> Tensor:
        """(B, C, h, w) -> the same, signed; of normal images about N(0, 1).

        `measured`: of images that were just measured, each is compared with the others, exactly as
        if it had been left out (without `shared`).
        """
        far, variance = values - self.mean, self.spread.square()
        if measured and self.count > 1:
            share = self.count / (self.count - 1)
            variance = share * (variance - far.square() / (self.count - 1)).clamp(min=0)
            far = share * far
        return far / (variance.sqrt() + self.floor)


class ResidualStatistics(nn.Module):
    """Residuals (B, C, H, W) -> maps (B, H, W), compared with those of normal training images."""

    def __init__(self, channels: int, size: tuple[int, int], options: ResidualOptions) -> None:
        super().__init__()
        self.options, self.signed = options, options.standardise == Standardise.position_channel
        self.scale: PositionScale | None = None
        if options.standardise != Standardise.none:
            rows = channels if self.signed else 1
            self.scale = PositionScale((rows, *size), floor=options.floor)

    def fit(self, residuals: Iterable[Tensor]) -> None:
        """Measure batches of residuals of normal images, if they are to be compared."""
        if self.scale is not None:
            self.scale.fit(self._compared(batch) for batch in residuals)

    def forward(self, residual: Tensor, *, measured: bool = False) -> Tensor:
        """Maps (B, H, W) float32, in spreads if standardised; `measured`: see `PositionScale`."""
        values = self._compared(residual)
        if self.scale is not None:
            values = self.scale(values, measured=measured)
        return (values.abs() if self.signed else values).amax(dim=1)

    def _compared(self, residual: Tensor) -> Tensor:
        residual = blurred(residual.float(), self.options.blur)
        return residual if self.signed else residual.abs().mean(dim=1, keepdim=True)


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """Gaussian of deviation `sigma` in pixels over (B, C, H, W); 0: unchanged."""
    side = 2 * round(3 * sigma) + 1
    return gaussian_blur2d(maps, (side, side), (sigma, sigma)) if sigma else maps


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
    """ConfigError for the backbone of a method that learns from pixels."""
    if backbone is not None:
        raise ConfigError(
            f"{method} learns from pixels and has no use for a backbone.",
            found=f"backbone {getattr(backbone, 'identity', type(backbone).__name__)}",
            do="set backbone=none",
        )
