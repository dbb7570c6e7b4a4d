"""A coreset under a memory budget: patches stream by, only the bank and one part stay.

Ours: one round with carry-over. The stream is cut into parts. In each, the exact greedy selection
starts from the distances to the rows kept so far and adds what they cover worst; after a share f of
the stream, M sqrt(f) of the M rows are taken, since novelty falls as images repeat. The worst
covered rows of a part, up to M, move on to the next one, so a pick that came too late is not lost.
Measured on bottle features against greedy selection over all rows at once (1 %, 8 and 32 parts):
cover radius 0.98 to 1.00 of it at the same cost; composable coresets (each part alone, then a
second round on twice as many candidates) reach 1.2 and 1.5.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from src.errors import ConfigError
from src.models.patchcore.coreset import greedy_coreset, random_coreset, random_projection
from src.models.patchcore.feature_store import patch_origins
from src.models.patchcore.fit_cost import WORKSPACE, FitCost
from src.models.patchcore.nearest import nearest
from src.models.patchcore.options import CoresetMethod, CoresetOptions

_SMALLEST_PART = 4096  # rows; below, most of the time goes into overhead
_MOST_CARRIED = 0.5  # of a part; the rest is new


class _Rows:
    """Room for patch vectors with their sources, allocated once and filled from the front."""

    def __init__(self, size: int, like: Tensor) -> None:
        self.values = like.new_empty(size, like.shape[1])
        self.origin = torch.empty(size, 3, dtype=torch.int32)
        self.filled = 0

    def append(self, values: Tensor, origin: Tensor) -> None:
        place = slice(self.filled, self.filled + len(values))
        self.values[place], self.origin[place] = values, origin
        self.filled = place.stop

    def keep(self, rows: Tensor) -> None:
        """Forget all but some rows."""
        values, origin, self.filled = self.values[rows], self.origin[rows.cpu()], 0
        self.append(values, origin)


class StreamingCoreset:
    """Collects the patches of images; memory stays under the budget.

    Args:
        cost: sizes and budget of the fit.
        options: the `model.coreset` group; a ratio of None keeps as many rows as fit the budget
            and as `stop_radius` asks for.
        seed: of projection, starts and random picks.

    Raises:
        ConfigError: the budget cannot hold the bank and one part.
    """

    def __init__(self, cost: FitCost, options: CoresetOptions, seed: int) -> None:
        self.cost, self.options, self.seed = cost, options, seed
        self.capacity, self.part_rows = divide_budget(cost, bounded=options.ratio is not None)
        self.cover_radius = 0.0  # no row seen so far is farther from a kept one, once `finish`ed
        self._seen = 0
        # Random rows are drawn beforehand: the same ones as without a budget.
        random = options.method == CoresetMethod.random
        self._wanted = random_coreset(cost.patches, cost.kept, seed) if random else None
        self._bank: _Rows | None = None

    def add(self, patches: Tensor, index: Tensor) -> None:
        """Take patch vectors (B, h, w, D) of the images with numbers `index` (B,)."""
        origin, rows = patch_origins(index, *patches.shape[1:3]), patches.flatten(0, 2)
        if self.cost.projects and self._wanted is None:  # the projection travels behind the vector
            small = random_projection(rows, self.cost.selection_dim, self.seed)
            rows = torch.cat([rows, small], 1)
        if self._bank is None:  # once: buffers that come and go leave holes in the heap
            self._bank = _Rows(self.capacity, rows)
            self._part = _Rows(self.part_rows if self._wanted is None else 0, rows)
        if self._wanted is not None:
            wanted = self._wanted - self._seen
            inside = wanted[(wanted >= 0) & (wanted < len(rows))]
            self._bank.append(rows[inside.to(rows.device)], origin[inside])
            self._seen += len(rows)
            return
        while len(rows):
            count = self.part_rows - self._part.filled
            self._part.append(rows[:count], origin[:count])
            self._seen += len(rows[:count])
            rows, origin = rows[count:], origin[count:]
            if self._part.filled == self.part_rows:
                self._reduce(self._bank, carry=True)

    def finish(self) -> tuple[Tensor, Tensor]:
        """Kept rows (M, D) and their sources (M, 3), ordered by source."""
        if self._bank is None:
            raise RuntimeError("no training images were added")
        if self._part.filled:
            self._reduce(self._bank, carry=False)
        del self._part
        values, origin = (v[: self._bank.filled] for v in (self._bank.values, self._bank.origin))
        order = torch.from_numpy(np.lexsort(origin.numpy().T[::-1]))
        return values[order.to(values.device), : self.cost.dim], origin[order]

    def _reduce(self, bank: _Rows, *, carry: bool) -> None:
        """Add to the kept rows what they cover worst in the current part."""
        part, d = self._part, self.cost.selection_dim
        points, kept = part.values[: part.filled, -d:], bank.values[: bank.filled, -d:]
        found = greedy_coreset(
            points, min(self._quota(bank.filled, last=not carry), part.filled),
            start=self.options.start, seed=self.seed, block=self.options.block,
            known_gap=nearest(points, kept, 1).distance[:, 0] if bank.filled else None,
            stop_radius=self.options.stop_radius, track=False,
        )  # fmt: skip
        bank.append(part.values[found.rows.to(points.device)], part.origin[found.rows])
        ordered = found.distance.sort(descending=True)
        room = min(self.cost.kept, int(_MOST_CARRIED * self.part_rows)) if carry else 0
        self.cover_radius = max([self.cover_radius, *ordered.values[room : room + 1].tolist()])
        part.keep(ordered.indices[:room])

    def _quota(self, kept: int, *, last: bool) -> int:
        """Rows to add now: M sqrt(share of the stream seen) in all."""
        if last or self.options.ratio is None:
            return self.capacity - kept
        share = min(1.0, self._seen / self.cost.patches)
        return max(1, int(self.capacity * share**0.5) - kept)


def divide_budget(cost: FitCost, *, bounded: bool) -> tuple[int, int]:
    """Rows to keep and rows per part that fit the budget.

    `bounded=False`: the bank has no planned size and gets half of the room.

    Raises:
        ConfigError: says how much would do.
    """
    room = (cost.budget or 0) - WORKSPACE
    bank_row = 2 * cost.bank_row_bytes + cost.row_bytes  # kept, copied once into the bank
    part_row = cost.row_bytes + cost.row_bytes // 2  # filled; at most half of it carried on
    kept = cost.kept if bounded else min(cost.patches, max(0, room) // (2 * bank_row))
    part = min(cost.patches, int((room - kept * bank_row) / part_row))
    least = min(_SMALLEST_PART, cost.patches)
    if kept and part >= least:
        return kept, part
    need = WORKSPACE + max(kept, 1) * bank_row + least * part_row
    raise ConfigError(
        "The memory budget cannot hold the bank and one part of the patches.",
        found=f"model.memory_budget_gb={(cost.budget or 0) / 1e9:g} for {kept:,} bank rows",
        do=f"allow {need / 1e9:.3g} GB, or lower model.coreset.ratio or model.target_dim",
    )
