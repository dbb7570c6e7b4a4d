"""Search near a place: a patch meets only good patches of its own place and those around it.

For parts that lie the same way in every picture: a label is compared with labels, not with glass
that happens to look like it. RAD (Kuhi et al., ICML 2026, arXiv 2601.22763) looks one cell around
on MVTec AD, two on VisA, none on Real-IAD; written from a description.

Each place meets the queries of its neighbours, not each query the rows of its neighbours: so every
row is read once, and reading is what takes the time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.models.patchcore.nearest import smallest, tiles

_TILE_VALUES = 1 << 18  # distances of one image at a time, on a CPU: 1 MB stays in its cache
_GPU_TILE_VALUES = 8 << 20


def by_place(origin: Tensor) -> Tensor:
    """Order of rows with sources (M, 3) by row and column of the grid; stable, int64 (M,)."""
    place = origin.long()
    return (place[:, 1] * (int(place[:, 2].max()) + 1) + place[:, 2]).argsort(stable=True)


def cover_places(grids: Tensor, size: int) -> Tensor:
    """Rows that cover the patches of each place best, `size` of every place, greedily.

    Of each place the first is the patch farthest from its mean, each further one that which is
    farthest from those kept. `grids` (n, P, D) float32: the places of n images; `size`: 1 to n.

    Returns: numbers (P * size,) among the n * P rows, ascending.
    """
    (n, P, _), kept = grids.shape, []
    for tile in tiles(P, max(1, _TILE_VALUES * 16 // (n * n))):
        centred = grids[:, tile].transpose(0, 1)
        centred = centred - centred.mean(1, keepdim=True)  # (p, n, D)
        gap = centred.square().sum(2)  # (p, n)
        pairs = torch.baddbmm(gap[:, None], centred, centred.transpose(1, 2), alpha=-2.0)
        pairs += gap[:, :, None]  # (p, n, n) squared distances
        each, picks = torch.arange(len(gap), device=gap.device), []
        for _ in range(size):
            picks.append(gap.argmax(1))
            gap = torch.minimum(gap, pairs[each, picks[-1]])
            gap[each, picks[-1]] = -1.0
        kept.append(torch.stack(picks, 1))
    places = torch.arange(P, device=grids.device)[:, None]
    return (torch.cat(kept) * P + places).flatten().sort().values


def surroundings(origin: Tensor, radius: int) -> Tensor:
    """The places around each, of rows in the order of `by_place`, as many of every place.

    Returns: (P, K) int64 numbers of places, K = (2 radius + 1)^2; -1: beyond the edge. What stands
        in column k of a place has that place in its own column K - 1 - k.
    """
    place = torch.unique_consecutive(origin[:, 1:].long(), dim=0)  # (P, 2)
    step = torch.arange(-radius, radius + 1, device=place.device)
    at = (place[:, None] + torch.cartesian_prod(step, step)) + radius  # (P, K, 2), all >= 0
    number = at.new_full((int(at[..., 0].max()) + 1, int(at[..., 1].max()) + 1), -1)
    number[place[:, 0] + radius, place[:, 1] + radius] = torch.arange(len(place), device=at.device)
    return number[at[..., 0], at[..., 1]]


def nearest_around(queries: Tensor, rows: Tensor, norms: Tensor, around: Tensor, k: int) -> Tensor:
    """Numbers (B * P, k) of the nearest rows around the place of each query.

    Args:
        queries: (B * P, D) float32, the P places of B images in the order of the rows.
        rows: (P * n, D), the n of each place together.
        norms: (P * n,) squared norms of the rows; infinite ones leave rows out.
        around: (P, K), see `surroundings`.
        k: neighbours, at most the rows that every query meets.
    """
    (P, K), D = around.shape, rows.shape[1]
    asked, rows, norms = queries.view(-1, P, D), rows.view(P, -1, D), norms.view(P, 1, -1)
    n, B = rows.shape[1], asked.shape[0]
    values = _TILE_VALUES if queries.device.type == "cpu" else _GPU_TILE_VALUES
    found = []
    for tile in tiles(P, max(1, values // (K * n))):
        near = asked[:, around[tile].clamp_min(0)].permute(1, 2, 0, 3).flatten(1, 2)  # (p, K*B, D)
        part = rows[tile].to(near.dtype).transpose(1, 2)
        gap = torch.baddbmm(norms[tile], near, part, alpha=-2.0)  # (p, K*B, n) but |q|^2
        found.append(smallest(gap.flatten(0, 1), k))
    value, row = (torch.cat(parts).view(P, K, B, -1) for parts in zip(*found, strict=True))
    row = row + n * torch.arange(P, device=row.device)[:, None, None, None]
    # Place p answered its k-th neighbour; what a place is told, it is told as the opposite one.
    told, opposite = around.clamp_min(0), torch.arange(K - 1, -1, -1, device=row.device)
    value = value[told, opposite].masked_fill((around < 0)[:, :, None, None], torch.inf)
    value, row = (
        x.permute(2, 0, 1, 3).flatten(2).flatten(0, 1) for x in (value, row[told, opposite])
    )
    return row.gather(1, smallest(value, k)[1])
