"""A coreset under a memory budget: patches stream by, only the bank and one part stay.

Ours: one round with carry-over. The stream is cut into parts. In each, the exact greedy selection
starts from the distances to the rows kept so far and adds what they cover worst; after a share f of
the stream, M sqrt(f) of the M rows are taken, since novelty falls as images repeat. The worst
covered rows of a part, up to M, move on to the next one, so a pick that came too late is not lost.
Measured on bottle features against greedy selection over all rows at once (1 %, 8 and 32 parts):
cover radius 0.98 to 1.00 of it at the same cost; composable coresets (each part alone, then a
second round on twice as many candidates) reach 1.2 and 1.5.
Cost of N rows of d values, M kept, R in a part (see tests/bench/bench_scale.py): a row meets what
is kept when it comes, on average 2/3 M rows, and the picks of its part: 2 d (2/3 N M + R M) FLOP;
4 d 2/3 N M / 512 bytes, as 512 rows share a tile.
"""

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from src.errors import ConfigError
from src.models.patchcore.coreset import greedy_coreset, random_coreset, random_projection
from src.models.patchcore.nearest import nearest
from src.models.patchcore.options import CoresetMethod, CoresetOptions

_FLOAT = 4  # bytes
#: Besides the vector: squared norm, distance, sort key, source (3 x int32), nearest kept row.
_ROW_STATE = 32
#: Tiles of the products, the block of candidates, and the same again for temporaries.
WORKSPACE = 48 << 20
_SMALLEST_PART = 4096  # rows; below, most of the time goes into overhead
_MOST_CARRIED = 0.5  # of a part; the rest is new
_GB = 1e9


class FitCost(NamedTuple):
    """Sizes of one fit; bytes count patch vectors and their selection, not the network."""

    patches: int  # N
    dim: int  # D
    selection_dim: int  # d, of the random projection that the coreset is selected in, else D
    kept: int  # M
    row_bytes: int  # of one patch vector with all that its selection needs
    bank_row_bytes: int  # of one row of the finished bank in float32, with norm and source
    peak_bytes: int  # highest need when all patches are held at once
    budget: int | None  # bytes

    @classmethod
    def of(
        cls, patches: int, dim: int, coreset: CoresetOptions, budget_gb: float | None,
        cross: bool = False,
    ) -> Self:  # fmt: skip
        """The cost for `patches` vectors of `dim` values.

        `cross`: the coreset is selected again for folds, from a copy of the patches.
        """
        d, kept = coreset.projected_dim(dim), coreset.size(patches)
        row, bank_row = _FLOAT * (dim + d * (d != dim)) + _ROW_STATE, _FLOAT * dim + 16
        peak = patches * (row + _FLOAT * dim * cross) + 2 * kept * bank_row + WORKSPACE
        budget = None if budget_gb is None else int(budget_gb * _GB)
        return cls(patches, dim, d, kept, row, bank_row, peak, budget)

    @property
    def projects(self) -> bool:
        """Whether the coreset is selected in a random projection."""
        return self.selection_dim != self.dim

    @property
    def streams(self) -> bool:
        """Whether the budget forces a streaming coreset."""
        return self.budget is not None and self.peak_bytes > self.budget

    def describe(self) -> str:
        """A paragraph for people."""
        where = f"in a random projection to {self.selection_dim} values"
        budget = ""
        if self.budget is not None:
            verdict = "streams" if self.streams else "fits"
            budget = f", budget {self.budget / _GB:.2f} GB: {verdict}"
        return (
            f"{self.patches:,} vectors of {self.dim} values "
            f"({self.patches * self.dim * _FLOAT / _GB:.2f} GB)\n"
            f"bank {self.kept:,} rows ({self.kept * self.bank_row_bytes / _GB:.3f} GB), selected "
            f"{where if self.projects else 'without projection'}\n"
            f"peak {self.peak_bytes / _GB:.2f} GB if held at once{budget}"
        )

    def divided(self, *, bounded: bool) -> tuple[int, int]:
        """Rows to keep and rows per part that fit the budget.

        `bounded=False`: the bank has no planned size and gets half of the room.

        Raises:
            ConfigError: says how much would do.
        """
        room = (self.budget or 0) - WORKSPACE
        bank_row = 2 * self.bank_row_bytes + self.row_bytes  # kept, copied once into the bank
        part_row = self.row_bytes + self.row_bytes // 2  # filled; at most half of it carried on
        kept = self.kept if bounded else min(self.patches, max(0, room) // (2 * bank_row))
        part = min(self.patches, int((room - kept * bank_row) / part_row))
        least = min(_SMALLEST_PART, self.patches)
        if kept and part >= least:
            return kept, part
        need = WORKSPACE + max(kept, 1) * bank_row + least * part_row
        raise ConfigError(
            "The memory budget cannot hold the bank and one part of the patches.",
            found=f"model.memory_budget_gb={(self.budget or 0) / _GB:g} for {kept:,} bank rows",
            do=f"allow {need / _GB:.3g} GB, or lower model.coreset.ratio or model.target_dim",
        )


class Rows:
    """Room for patch vectors with their sources, allocated once and filled from the front."""

    def __init__(self, size: int, like: Tensor) -> None:
        self._values = like.new_empty(size, like.shape[1])  # pages are taken as they fill
        self._origin = torch.empty(size, 3, dtype=torch.int32)
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    @property
    def values(self) -> Tensor:
        """Patch vectors (n, D)."""
        return self._values[: self._filled]

    @property
    def origin(self) -> Tensor:
        """Their sources (n, 3) int32: image, row, column."""
        return self._origin[: self._filled]

    def add(self, values: Tensor, origin: Tensor) -> None:
        """Copy values (n, D) and their sources (n, 3) behind the others."""
        place = slice(self._filled, self._filled + len(values))
        self._values[place], self._origin[place] = values, origin
        self._filled = place.stop

    def keep(self, rows: Tensor) -> None:
        """Forget all but some rows."""
        values, origin, self._filled = self.values[rows], self.origin[rows.cpu()], 0
        self.add(values, origin)


class StreamingCoreset:
    """Collects patches; memory stays under the budget.

    Args:
        cost: sizes and budget of the fit.
        options: the `model.coreset` group; a ratio of None keeps as many rows as fit the budget
            and as `stop_radius` asks for.
        seed: of projection, starts and random picks.
        device: of the patches.

    Raises:
        ConfigError: the budget cannot hold the bank and one part.
    """

    def __init__(
        self, cost: FitCost, options: CoresetOptions, seed: int, device: str | torch.device = "cpu"
    ) -> None:
        self.cost, self.options, self.seed = cost, options, seed
        self.capacity, self.part_rows = cost.divided(bounded=options.ratio is not None)
        self.cover_radius = 0.0  # no row seen so far is farther from a kept one, once `finish`ed
        self._seen = 0
        # Random rows are drawn beforehand: the same ones as without a budget.
        random = options.method == CoresetMethod.random
        self._wanted = random_coreset(cost.patches, cost.kept, seed) if random else None
        self._projects = cost.projects and not random
        like = torch.empty(0, cost.dim + self._projects * cost.selection_dim, device=device)
        self._carried = torch.empty(0, device=device)  # first rows of the part: squared gaps
        # Made once: buffers that come and go leave holes in the heap.
        self._bank, self._part = (
            Rows(self.capacity, like),
            Rows(self.part_rows * (not random), like),
        )

    def add(self, rows: Tensor, origin: Tensor) -> None:
        """Take patch vectors (n, D) and their sources (n, 3)."""
        if self._wanted is not None:
            wanted = self._wanted - self._seen
            self._seen += len(rows)
            inside = wanted[(wanted >= 0) & (wanted < len(rows))]
            self._bank.add(rows[inside.to(rows.device)], origin[inside])
            return
        if self._projects:  # the projection travels behind the vector
            small = random_projection(rows, self.cost.selection_dim, self.seed)
            rows = torch.cat([rows, small], 1)
        while len(rows):
            count = self.part_rows - len(self._part)
            self._part.add(rows[:count], origin[:count])
            self._seen += len(rows[:count])
            rows, origin = rows[count:], origin[count:]
            if len(self._part) == self.part_rows:
                self._reduce(carry=True)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Kept rows (M, D) and their sources (M, 3), ordered by source."""
        if len(self._part):
            self._reduce(carry=False)
        del self._part
        values, origin = self._bank.values, self._bank.origin
        order = torch.from_numpy(np.lexsort(origin.numpy().T[::-1]))
        return values[order.to(values.device), : self.cost.dim], origin[order]

    def _reduce(self, *, carry: bool) -> None:
        """Add to the kept rows what they cover worst in the current part."""
        bank, part, d = self._bank, self._part, self.cost.selection_dim
        points, kept = part.values[:, -d:], bank.values[:, -d:]
        quota = self.capacity - len(bank)
        if carry and self.options.ratio is not None:  # M sqrt(share of the stream seen) in all
            share = min(1.0, self._seen / self.cost.patches)
            quota = max(1, int(self.capacity * share**0.5) - len(bank))
        new = nearest(points[len(self._carried) :], kept, 1).distance[:, 0] if len(bank) else None
        found = greedy_coreset(
            points, min(quota, len(part)), start=self.options.start, seed=self.seed,
            block=self.options.block, stop_radius=self.options.stop_radius,
            known_gap=None if new is None else torch.cat([self._carried, new]),
        )  # fmt: skip
        bank.add(part.values[found.rows.to(points.device)], part.origin[found.rows])
        ordered = found.distance.sort(descending=True)
        room = min(self.cost.kept, int(_MOST_CARRIED * self.part_rows)) if carry else 0
        self.cover_radius = max([self.cover_radius, *ordered.values[room : room + 1].tolist()])
        self._carried = ordered.values[:room].square()
        part.keep(ordered.indices[:room])


def patch_origins(index: Tensor, h: int, w: int) -> Tensor:
    """Image, row and column (n*h*w, 3) int32 of every patch of images `index` (n,), row-major."""
    place = torch.cartesian_prod(index.cpu(), torch.arange(h), torch.arange(w))
    return place.to(torch.int32)
