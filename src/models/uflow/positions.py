"""Latents in units of what normal images have at the same place.

Ours. The flow is one density for all places, yet the latents of normal images are larger where
parts have edges or move. Standardised at each place and scale by the training images, an energy
says how unusual the place is, and maps of different scales can be added.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.residuals import Moments, PositionScale
from src.models.uflow.flow import Shape

SHARED = 0.2  # ours: part of each variance that all places share; 54 images measure one badly
FLOOR = 0.02  # ours: of the deviation of an energy, whose mean is 1


class LatentPositions(nn.Module):
    """Two standardisations a scale (C, h, w): of the latents, then of their energy mean_c z^2."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        super().__init__()
        self.latents = nn.ModuleList(PositionScale(shape, shared=SHARED) for shape in shapes)
        self.energies = nn.ModuleList(PositionScale((1, *s[1:]), floor=FLOOR) for s in shapes)

    def fit(self, latents: Callable[[], Iterable[Sequence[Tensor]]]) -> None:
        """Measure the latents of normal images; `latents` gives all batches at each call."""
        for scales, of in ((self.latents, list), (self.energies, lambda z: energies_of(self(z)))):
            moments = [Moments(0) for _ in scales]
            for batch in latents():
                for found, values in zip(moments, of(batch), strict=True):
                    found.add(values)
            for place, found in zip(scales, moments, strict=True):
                cast(PositionScale, place).take(found)

    def forward(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents (B, C, h, w) of each scale -> standardised ones."""
        return [place(z) for place, z in zip(self.latents, latents, strict=True)]

    def scale_maps(self, standardised: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Standardised energies (B, scales, H, W); about 0 on normal images."""
        pairs = zip(self.energies, energies_of(standardised), strict=True)
        return upsampled([place(energy) for place, energy in pairs], size)


def energies_of(latents: Sequence[Tensor]) -> list[Tensor]:
    """mean_c z^2 of latents (B, C, h, w) of each scale, (B, 1, h, w)."""
    return [z.square().mean(dim=1, keepdim=True) for z in latents]


def upsampled(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Maps (B, 1, h, w) of each scale, bilinearly on one grid: (B, scales, H, W)."""
    fine = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in maps]
    return torch.cat(fine, dim=1)
