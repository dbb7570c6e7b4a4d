"""The memory bank: nearest kept patches by exact search, each with its source.

Paper: PatchCore Sec. 3.3. Original: amazon-science/patchcore-inspection (Apache-2.0), faiss flat
index. Ours: a torch search that is exact and on AVX-512 machines twice as fast as faiss; every row
remembers image, row and column, so that a match can be shown and an image can be left out.

Rows are stored relative to their mean: distances stay the same, while the products lose less to
rounding and half precision keeps more digits. A product finds candidates; their distances are then
computed directly from differences, since a distance near zero would drown in the cancellation of
|q|^2 - 2 q.b + |b|^2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.errors import ConfigError, did_you_mean
from src.models.patchcore.inverted_lists import InvertedLists, import_faiss
from src.models.patchcore.products import product, squared_norms

BACKENDS = ("flat", "faiss", "ivf")
DTYPES = {"float32": torch.float32, "float16": torch.float16}
GRAPH_INDEXES = ("hnsw", "nsg", "cagra", "graph", "nsw")

# Measured: 512 x 1024 distances (2 MB) reach 97 % of the bare product; 16,384 columns only 60 %.
_QUERY_TILE, _BANK_TILE = 512, 1024
_GPU_TILE_VALUES = 64 << 20  # 256 MB of distances at a time
_GROUP = 64  # columns per partial minimum: the first of two steps of the row minimum


class Match(NamedTuple):
    """The k nearest bank rows of Q queries, nearest first, lowest row first among equals."""

    distance: Tensor  # (Q, k) float32, squared Euclidean, >= 0
    row: Tensor  # (Q, k) int64


class MemoryBank(nn.Module):
    """Patch vectors (M, D) ordered by source, searched by squared Euclidean distance.

    Args:
        backend: `flat`, exact in torch on any device; `faiss`, the same through faiss on the CPU;
            `ivf`, faiss inverted lists, approximate: distances can only come out larger.
        cells: inverted lists of `ivf`; null chooses 4 sqrt(M).
        nprobe: lists visited per query by `ivf`; 8 to 16 keep image scores within 0.2 %.
        dtype: `float16` halves storage; distances are computed in float32 from stored values.
    """

    rows: Tensor  # (M, D), relative to `centre`
    centre: Tensor  # (D,)
    norms: Tensor  # (M,) squared norms of `rows`
    origin: Tensor  # (M, 3) int32: image index, row, column

    def __init__(self, backend: str, cells: int | None, nprobe: int, dtype: str) -> None:
        super().__init__()
        _check_backend(backend, dtype)
        if backend != "flat":
            import_faiss()
        self.backend, self.cells, self.nprobe, self.dtype = backend, cells, nprobe, dtype
        self.register_buffer("rows", torch.empty(0, 0))
        self.register_buffer("centre", torch.empty(0))
        self.register_buffer("norms", torch.empty(0), persistent=False)
        self.register_buffer("origin", torch.empty(0, 3, dtype=torch.int32))
        self._lists: InvertedLists | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def fill(self, rows: Tensor, origin: Tensor) -> None:
        """Store patch vectors (M, D) and their sources (M, 3): image index, row, column.

        Raises:
            ConfigError: a value does not fit half precision.
        """
        centre = rows.mean(0, dtype=torch.float64).float()
        self.restore((rows - centre).to(DTYPES[self.dtype]), centre, origin)

    def restore(self, rows: Tensor, centre: Tensor, origin: Tensor) -> None:
        """Take over rows that are relative to their centre already, as a saved bank holds them."""
        if not torch.isfinite(rows).all():
            raise ConfigError(
                "The memory bank holds values that are not finite.",
                found=f"{int((~torch.isfinite(rows)).sum())} of {rows.numel()} in {self.dtype}",
                do="set model.search.dtype=float32; if it says so with float32, check the images",
            )
        self.rows, self.centre, self.origin = rows, centre, origin.to(torch.int32)
        self.norms = squared_norms(rows)
        self._lists = None

    @torch.no_grad()
    def search(self, queries: Tensor, k: int) -> Match:
        """The k nearest rows of queries (Q, D); approximate only for `ivf`."""
        queries, k = queries - self.centre, min(k, len(self))
        if self.backend == "flat" or queries.device.type != "cpu":
            row = self._candidates(queries, k, self.norms)
        else:
            if self._lists is None:
                self._lists = InvertedLists(
                    self.rows, self.cells if self.backend == "ivf" else 1, self.nprobe
                )
            row = self._lists.search(queries, k)
        return self._rescore(queries, row)

    @torch.no_grad()
    def score_error(self, queries: Tensor) -> float:
        """How much too high approximate search makes image scores, on average; 0 when exact.

        queries (B, P, D): the patches of B images. Returns the mean over images of the relative
        error of the largest distance.
        """
        flat = queries.flatten(0, 1)
        found = self.search(flat, 1).distance.sqrt().view(len(queries), -1).amax(1)
        centred = flat - self.centre
        exact = self._rescore(centred, self._candidates(centred, 1, self.norms)).distance
        best = exact.sqrt().view(len(queries), -1).amax(1)
        return float(((found - best) / best.clamp_min(1e-12)).mean())

    @torch.no_grad()
    def search_without_image(self, queries: Tensor, k: int, image: int) -> Match:
        """The k nearest rows that do not stem from one image; exact with every backend.

        Fewer than k rows may remain; none at all gives an infinite distance and row 0.
        """
        own = self.origin[:, 0] == image
        k = min(k, len(self) - int(own.sum()))
        if k == 0:
            Q = len(queries)
            return Match(queries.new_full((Q, 1), torch.inf), own.new_zeros(Q, 1).long())
        offsets = self.norms.masked_fill(own, torch.inf)
        queries = queries - self.centre
        return self._rescore(queries, self._candidates(queries, k, offsets))

    def _candidates(self, queries: Tensor, k: int, offsets: Tensor) -> Tensor:
        """Rows (Q, k) of the smallest offset - 2 q.b, in tiles of queries and bank."""
        found = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
        on_cpu = queries.device.type == "cpu"
        width = _BANK_TILE if on_cpu else max(_GROUP, min(len(self), 1 << 17))
        step = _QUERY_TILE if on_cpu else max(1, _GPU_TILE_VALUES // width)
        for q in range(0, len(queries), step):
            scaled = queries[q : q + step] * -2.0  # (t, D)
            values: Tensor | None = None
            rows = found[:0]
            for b in range(0, len(self), width):
                bank = self.rows[b : b + width].to(scaled.dtype)
                tile = product(scaled, bank, offsets[b : b + width])  # (t, width)
                value, row = smallest(tile, k)
                row += b
                if values is not None:
                    value, row = torch.cat([values, value], 1), torch.cat([rows, row], 1)
                    value, at = smallest(value, k)
                    row = row.gather(1, at)
                values, rows = value, row
            found[q : q + step] = rows
        return found

    def _rescore(self, queries: Tensor, row: Tensor) -> Match:
        """Direct distances of candidates (Q, k), sorted by distance, then by row."""
        Q, k = row.shape
        row = row.sort(1).values
        distance = torch.empty(Q, k, dtype=torch.float32, device=queries.device)
        for q in range(0, Q, _QUERY_TILE):
            near = self.rows[row[q : q + _QUERY_TILE]].float()  # (t, k, D)
            gap = near.sub_(queries[q : q + _QUERY_TILE, None])
            distance[q : q + _QUERY_TILE] = torch.linalg.vecdot(gap, gap)
        distance, order = distance.sort(dim=1, stable=True)
        return Match(distance, row.gather(1, order))

    def measure(self, queries: Tensor, row: Tensor) -> Match:
        """Squared distances of queries (Q, D) to given rows (Q, k), sorted as by `search`."""
        return self._rescore(queries - self.centre, row)

    def vectors(self, row: Tensor) -> Tensor:
        """Patch vectors (..., D) float32 of bank rows of any shape."""
        return self.rows[row].float() + self.centre

    def sources(self, row: Tensor) -> Tensor:
        """Image index, row and column (..., 3) int32 of bank rows of any shape."""
        return self.origin[row]


def smallest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row (t, n) and their columns, (t, min(k, n)); order undefined.

    A first minimum over groups of 64 is vectorised and reads the tile once; the k smallest values
    lie in the k groups with the smallest minima.
    """
    n = values.shape[1]
    k = min(k, n)
    full = n // _GROUP
    if full <= k:
        return _lowest(values, k)
    minima = values[:, : full * _GROUP].reshape(len(values), full, _GROUP).amin(2)  # (t, full)
    group = _lowest(minima, k)[1].sort(1).values  # (t, k)
    columns = (group[:, :, None] * _GROUP + torch.arange(_GROUP, device=values.device)).flatten(1)
    if n > full * _GROUP:
        rest = torch.arange(full * _GROUP, n, device=values.device)
        columns = torch.cat([columns, rest.expand(len(values), -1)], 1)
    value, at = _lowest(values.gather(1, columns), k)
    return value, columns.gather(1, at)


def _lowest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k == 1:
        value, at = values.min(1, keepdim=True)
        return value, at
    value, at = values.sort(dim=1, stable=True)
    return value[:, :k], at[:, :k]


def _check_backend(backend: str, dtype: str) -> None:
    if any(graph in backend.lower() for graph in GRAPH_INDEXES):
        raise ConfigError(
            "Graph indexes are refused for memory banks.",
            found=f"model.search.backend={backend}",
            do="use flat or ivf: a coreset keeps isolated points, which a graph search misses, "
            "and one miss among hundreds of patches is a false alarm (HNSW, efSearch 64: image "
            "scores of good bottles 161 % too high at a recall of 0.99)",
        )
    if backend not in BACKENDS:
        raise ConfigError(
            "Unknown model.search.backend.", found=backend, do=did_you_mean(backend, BACKENDS)
        )
    if dtype not in DTYPES:
        raise ConfigError(
            "Unknown model.search.dtype.", found=dtype, do=did_you_mean(dtype, DTYPES)
        )
