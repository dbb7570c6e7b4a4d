"""The nearest rows of many queries: exact, in matrix products whose tiles never leave the cache.

A product finds candidates; their distances are then computed directly from differences, since a
distance near zero would drown in the cancellation of |q|^2 - 2 q.b + |b|^2.
Cost of Q queries in M rows of D values: 2 Q M D FLOP, and 4 (Q + M Q / t) D bytes, as a tile of t
queries reads all rows once; on a GPU 8 Q M more, since distances leave its cache and come back.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Measured: 512 x 1024 distances (2 MB) reach 97 % of the bare product; 16,384 columns only 60 %.
_QUERY_TILE, _ROW_TILE = 512, 1024
_GPU_TILE_VALUES = 64 << 20  # on a GPU memory is the bound: 256 MB of distances at a time
_GPU_QUERY_TILE = 16_384  # of the direct distances: many small kernels take five times as long
_GROUP = 64  # columns per partial minimum: the first of two steps of the row minimum
_AVX512 = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
)


class Match(NamedTuple):
    """The k nearest rows of Q queries, nearest first, lowest row first among equals."""

    distance: Tensor  # (Q, k) float32, squared Euclidean, >= 0
    row: Tensor  # (Q, k) int64


def nearest(queries: Tensor, rows: Tensor, k: int, norms: Tensor | None = None) -> Match:
    """The k nearest of rows (M, D) to each query (Q, D); all of them when k exceeds M.

    Tiles bound the memory. In an exported graph, which cannot hold loops over sizes, every query
    meets all rows in one product: Q * M distances (50 MB for 784 patches and 16,384 rows).

    Queries are float32, rows float32 or float16. `norms` (M,): squared norms of the rows when they
    are known; infinite ones leave rows out.
    """
    norms = squared_norms(rows) if norms is None else norms
    k = min(k, len(rows))
    on_cpu = queries.device.type == "cpu"
    width = _ROW_TILE if on_cpu else max(_GROUP, min(len(rows), 1 << 17))
    step = _QUERY_TILE if on_cpu else max(1, _GPU_TILE_VALUES // width)
    found = []
    for tile in tiles(queries.shape[0], step):
        scaled = queries[tile] * -2.0  # (t, D)
        values, row = scaled[:, :0], scaled[:, :0].long()
        for part in tiles(len(rows), width):
            value, at = smallest(linear(scaled, rows[part].to(scaled.dtype), norms[part]), k)
            at = at + (part.start or 0)
            if values.shape[1]:
                value, at = torch.cat([values, value], 1), torch.cat([row, at], 1)
                value, order = smallest(value, k)
                at = at.gather(1, order)
            values, row = value, at
        found.append(row)
    return measure(queries, rows, torch.cat(found))


def measure(queries: Tensor, rows: Tensor, row: Tensor) -> Match:
    """Distances of queries (Q, D) to the rows with numbers (Q, k), by distance, then by row."""
    row, on_cpu = row.sort(1).values, queries.device.type == "cpu"
    step = _QUERY_TILE if on_cpu else max(1, _GPU_QUERY_TILE // row.shape[1])
    parts = []
    for tile in tiles(queries.shape[0], step):
        gap = rows[row[tile]].float() - queries[tile][:, None]  # (t, k, D)
        parts.append(torch.linalg.vecdot(gap, gap))
    distance = torch.cat(parts)
    if row.shape[1] == 1:
        return Match(distance, row)
    stable = not torch.compiler.is_compiling()  # ONNX knows no stable sort
    ordered, order = distance.sort(dim=1, stable=True) if stable else distance.sort(dim=1)
    return Match(ordered, row.gather(1, order))


def smallest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row (t, n) and their columns, (t, min(k, n)); order undefined.

    A first minimum over groups of 64 is vectorised and reads the tile once; the k smallest values
    lie in the k groups with the smallest minima. A graph takes groups without a rest, if there are
    such: it would copy the tile. A GPU needs no groups for a single minimum.
    """
    n, size = values.shape[1], _GROUP
    if k == 1 and values.device.type != "cpu":
        return _lowest(values, k)
    if torch.compiler.is_compiling():
        size = next((wider for wider in range(size, 2 * size) if n % wider == 0), size)
    k, full = min(k, n), n // size
    if full <= k:
        return _lowest(values, k)
    minima = values[:, : full * size].reshape(-1, full, size).amin(2)  # (t, full)
    group = _lowest(minima, k)[1].sort(1).values  # (t, k)
    columns = (group[:, :, None] * size + torch.arange(size, device=values.device)).flatten(1)
    if n > full * size:
        rest = torch.arange(full * size, n, device=values.device)
        columns = torch.cat([columns, rest.expand(values.shape[0], -1)], 1)
    value, at = _lowest(values.gather(1, columns), k)
    return value, columns.gather(1, at)


def _lowest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k == 1:
        value, at = values.min(1, keepdim=True)
        return value, at
    if torch.compiler.is_compiling():
        value, at = values.topk(k, 1, largest=False)
        return value, at
    value, at = values.sort(dim=1, stable=True)
    return value[:, :k], at[:, :k]


def linear(left: Tensor, right: Tensor, offset: Tensor | None = None) -> Tensor:
    """Left (t, d) times right (p, d)^T plus offset (p,), full float32 -> (t, p).

    With AVX-512 a private operator of torch is called: oneDNN reaches 245 GFLOP/s a core where MKL
    on AMD reaches 110 (measured); with AVX2 both are equal.
    """
    on_cpu = left.dtype == torch.float32 and left.device.type == "cpu"
    if _AVX512 and on_cpu and not torch.compiler.is_compiling():
        return torch.ops.mkldnn._linear_pointwise(left, right, offset, "none", [], "")
    return F.linear(left, right, offset)


def squared_norms(rows: Tensor) -> Tensor:
    """Squared Euclidean norm of each row (N, d) -> (N,) float32, in tiles."""
    parts = [rows[tile].float() for tile in tiles(len(rows), 8192)]
    return torch.cat([torch.linalg.vecdot(part, part) for part in parts])


def tiles(count: int, step: int) -> list[slice]:
    """Slices of at most `step` that cover `count` rows; one for all of them in exported graphs."""
    if torch.compiler.is_compiling():
        return [slice(None)]
    return [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]
