"""Position embeddings of a Vision Transformer on another grid than the one it was trained on.

Trained on squares, such a network sees any size once each patch is told where it lies. How the
vectors between are found belongs to the network: what its authors did gave the published features.

* DINOv2 without registers (Oquab et al., arXiv 2304.07193; facebookresearch/dinov2, Apache-2.0):
  bicubic, no low-pass filter, by a scale of (cells + 0.1) / side, the 0.1 being a remedy against
  rounding that moves every sample a little.
* DINOv2 with registers, and timm for all others: bicubic with a low-pass filter, to the size.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SHIFT = 0.1  # cells; `interpolate_offset` of the official models without registers


def fit_positions(found: dict[str, Tensor], network: Any, name: str) -> dict[str, Tensor]:
    """Weights `found` for timm model `name` with the positions that `network` has.

    `network`: the whole timm model, made for its image size.
    """
    wanted, given = getattr(network, "pos_embed", None), found.get("pos_embed")
    if not isinstance(wanted, Tensor) or given is None or given.shape == wanted.shape:
        return found
    prefix = 0 if network.no_embed_class else network.num_prefix_tokens
    grid = network.patch_embed.grid_size
    plain = name.split(".")[0].endswith("patch14_dinov2")
    return found | {"pos_embed": resample(given, grid, prefix, _SHIFT if plain else None)}


def resample(positions: Tensor, grid: tuple[int, int], prefix: int, shift: float | None) -> Tensor:
    """Vectors (1, prefix + side * side, C) -> (1, prefix + h * w, C) for a grid (h, w).

    `shift`: in cells, without a low-pass filter; None: to the size, with one.
    """
    first, rest = positions[:, :prefix], positions[:, prefix:].float()
    side = isqrt(rest.shape[1])
    square = rest.view(1, side, side, -1).permute(0, 3, 1, 2)
    if shift is None:
        moved = F.interpolate(square, size=grid, mode="bicubic", antialias=True)
    else:
        factor = ((grid[0] + shift) / side, (grid[1] + shift) / side)
        moved = F.interpolate(square, scale_factor=factor, mode="bicubic")
    return torch.cat([first, moved.flatten(2).transpose(1, 2).to(first.dtype)], 1)
