"""The memory bank: kept patches, each with its source, and who searches them.

Paper: PatchCore Sec. 3.3. Original: amazon-science/patchcore-inspection (Apache-2.0), faiss flat
index. Ours: a torch search that is exact and on AVX-512 machines twice as fast as faiss; every row
remembers image, row and column, so that a match can be shown and an image can be left out.

There is no graph index (HNSW and its like): a coreset keeps isolated points, which a graph search
misses, and one miss among hundreds of patches is a false alarm (efSearch 64: image scores of good
bottles 161 % too high at a recall of 0.99).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from src.errors import ConfigError
from src.models.patchcore.nearest import Match, measure, nearest, squared_norms
from src.models.patchcore.options import Backend, SearchOptions
from src.models.patchcore.places import by_place, nearest_around, surroundings


class MemoryBank(nn.Module):
    """Patch vectors (M, D) ordered by source, searched by squared Euclidean distance.

    With a window of places the order is by place, and queries are all patches of images. Rows are
    stored relative to their mean: distances stay the same, while the products lose less to rounding
    and half precision keeps more digits.
    """

    rows: Tensor  # (M, D), relative to `centre`
    centre: Tensor  # (D,)
    norms: Tensor  # (M,) squared norms of `rows`
    origin: Tensor  # (M, 3) int32: image index, row, column; -1: unknown

    def __init__(self, options: SearchOptions) -> None:
        super().__init__()
        if options.backend != Backend.flat:
            import_faiss()
        self.options = options
        for name in ("rows", "centre", "norms", "origin"):
            self.register_buffer(name, torch.empty(0))
        self._index: Any = None  # of faiss, or the places around each; made by the first search

    def __len__(self) -> int:
        return len(self.rows)

    def fill(self, rows: Tensor, origin: Tensor) -> None:
        """Store patch vectors (M, D) and their sources (M, 3); ConfigError if one is not finite."""
        if self.options.window is not None:
            order = by_place(origin)
            rows, origin = rows[order.to(rows.device)], origin[order]
        self.centre = rows.mean(0, dtype=torch.float64).float()
        self.rows = (rows - self.centre).to(getattr(torch, self.options.dtype))
        self.norms, self.origin = squared_norms(self.rows), origin.to(rows.device, torch.int32)
        self._index = None
        if not torch.isfinite(self.rows).all():
            raise ConfigError(
                "The memory bank holds values that are not finite.",
                found=f"{int((~torch.isfinite(self.rows)).sum())} of {rows.numel()} in "
                f"{self.options.dtype}",
                do="set model.search.dtype=float32; if it says so with float32, check the images",
            )

    @torch.no_grad()
    def search(self, queries: Tensor, k: int, without: int | None = None) -> Match:
        """The k nearest rows of queries (Q, D); approximate only for `ivf`.

        `without`: the number of an image whose rows are left out, which is exact with every
        backend. Fewer than k rows may remain; none at all gives an infinite distance and row 0.
        """
        centred, norms, left_out = queries - self.centre, self.norms, 0
        if without is not None:
            own = self.origin[:, 0] == without
            norms, left_out = norms.masked_fill(own, torch.inf), int(own.sum())
            if left_out == len(self):
                none = torch.zeros(len(queries), 1, dtype=torch.int64, device=queries.device)
                return Match(none.float() + torch.inf, none)
        if self.options.window is not None:
            around, places = self._surroundings()
            k = min(k, (len(self) // len(around) - left_out // len(around)) * places)
            return measure(centred, self.rows, nearest_around(centred, self.rows, norms, around, k))
        if without is not None:
            return nearest(centred, self.rows, min(k, len(self) - left_out), norms)
        on_cpu = queries.device.type == "cpu" and not torch.compiler.is_compiling()
        if self.options.backend == Backend.flat or not on_cpu:
            return nearest(centred, self.rows, k, self.norms)
        if self._index is None:
            self._index = build_index(self.rows, self.options)
        _, found = self._index.search(centred.float().contiguous().numpy(), min(k, len(self)))
        row = torch.from_numpy(found)
        # Visited lists can hold fewer than k rows; the nearest one found stands in.
        row = torch.where(row < 0, row[:, :1].clamp_min(0), row)
        return measure(centred, self.rows, row)

    def _surroundings(self) -> tuple[Tensor, int]:
        """The places around each, and how many of them every place has at least."""
        if self._index is None:
            around = surroundings(self.origin, self.options.window or 0)
            self._index = around, int((around >= 0).sum(1).min())
        return cast(tuple[Tensor, int], self._index)

    @torch.no_grad()
    def score_error(self, queries: Tensor) -> float:
        """Mean relative error of image scores by approximate search, >= 0; 0 when exact.

        queries (B, P, D): the patches of B images, whose score is the largest distance.
        """
        flat = queries.flatten(0, 1)
        exact = nearest(flat - self.centre, self.rows, 1, self.norms)
        pair = (self.search(flat, 1), exact)
        found, best = (m.distance.sqrt().view(len(queries), -1).amax(1) for m in pair)
        return float(((found - best) / best.clamp_min(1e-12)).mean())

    def vectors(self, row: Tensor | slice = slice(None)) -> Tensor:
        """Patch vectors (..., D) float32 of bank rows of any shape; default: of all."""
        return self.rows[row].float() + self.centre


def build_index(rows: Tensor, options: SearchOptions) -> Any:
    """A faiss index of rows (M, D): for `ivf` inverted lists (IVF-Flat), else flat and exact.

    A query visits the `nprobe` lists whose centroids are nearest. Bottle, 16,385 rows of 384
    values, 128 lists: nprobe 4 is 11 times faster than flat with an image-score error of 0.67 %,
    nprobe 16 is 2.6 times faster with 0.15 %.
    """
    faiss = import_faiss()
    values = rows.float().cpu().contiguous().numpy()
    M, D = values.shape
    index = flat = faiss.IndexFlatL2(D)
    # k-means needs several rows per list
    cells = min(options.cells or round(4 * M**0.5), max(1, M // 8))
    if options.backend == Backend.ivf and cells > 1:
        index = faiss.IndexIVFFlat(flat, D, cells, faiss.METRIC_L2)
        index.cp.seed, index.cp.min_points_per_centroid = 1234, 1  # faiss's own seed: builds repeat
        index.nprobe = min(options.nprobe, cells)
        index.train(values)
    index.add(values)
    return index


def import_faiss() -> ModuleType:
    """The faiss module; ConfigError when it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "model.search.backend needs faiss, which is not installed.",
            found=str(error),
            do="use model.search.backend=flat, or install the extra: pip install 'goodparts[cpu]'",
        ) from error
    return faiss
