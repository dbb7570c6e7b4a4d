"""A coreset under a memory budget: patches stream by, only candidates stay.

Two rounds (composable coresets): every part of the stream contributes candidates, twice as many in
all as the bank will hold, and the exact greedy selection runs on their union. Ours: a part starts
from its distances to the candidates kept so far, so it adds only what earlier parts lack.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.errors import ConfigError
from src.models.patchcore.coreset import Progress, greedy_coreset, random_coreset, random_projection
from src.models.patchcore.memory_bank import smallest
from src.models.patchcore.plan import WORKSPACE, Plan
from src.models.patchcore.products import product, squared_norms
from src.models.patchcore.selection import CoresetOptions

_OVERSAMPLE = 2.0  # spec of two-round k-center: candidates per bank row
_SMALLEST_OVERSAMPLE = 1.25
_SMALLEST_PART = 4096  # rows; below, candidates would be picked almost at random


class StreamingCoreset:
    """Collects patch vectors (n, D) with sources (n, 3); peak memory stays under a budget.

    Args:
        plan: sizes and budget of the fit.
        options: the `model.coreset` group.
        seed: of projection and starts.

    Raises:
        ConfigError: the budget cannot hold the bank and one part.
    """

    def __init__(self, plan: Plan, options: CoresetOptions, seed: int) -> None:
        self.plan, self.options, self.seed = plan, options, seed
        self.capacity, part = _divide(plan)
        self.part_rows = min(part, plan.patches)
        self._part: Tensor | None = None
        self._part_origin = torch.empty(self.part_rows, 3, dtype=torch.int32)
        self._filled = self._seen = self._kept = 0
        self._rows: Tensor | None = None
        self._origin = torch.empty(self.capacity, 3, dtype=torch.int32)

    def add(self, features: Tensor, origin: Tensor) -> None:
        """Take patch vectors (n, D) and their sources (n, 3)."""
        if self._part is None:
            self._part = features.new_empty(self.part_rows, features.shape[1])
            self._rows = features.new_empty(self.capacity, features.shape[1])
        begin = 0
        while begin < len(features):
            count = min(self.part_rows - self._filled, len(features) - begin)
            place = slice(self._filled, self._filled + count)
            self._part[place] = features[begin : begin + count]
            self._part_origin[place] = origin[begin : begin + count]
            self._filled += count
            begin += count
            if self._filled == self.part_rows:
                self._reduce()

    def candidates(self) -> tuple[Tensor, Tensor]:
        """Candidates of the whole stream so far (n, D) and their sources (n, 3)."""
        if self._filled:
            self._reduce()
        if self._rows is None:
            raise RuntimeError("no features were added to the streaming coreset")
        self._part = None
        return self._rows[: self._kept], self._origin[: self._kept]

    def _reduce(self) -> None:
        """Keep candidates of the current part: what the candidates so far cover worst."""
        if self._part is None or self._rows is None:
            return
        part = self._part[: self._filled]
        self._seen += self._filled
        share = min(1.0, self._seen / self.plan.patches)
        quota = min(self._filled, round(self.capacity * share) - self._kept)
        if quota > 0:
            chosen = self._choose(part, quota).sort().values
            place = slice(self._kept, self._kept + len(chosen))
            self._rows[place] = part[chosen.to(part.device)]
            self._origin[place] = self._part_origin[: self._filled][chosen]
            self._kept += len(chosen)
        self._filled = 0

    def _choose(self, part: Tensor, quota: int) -> Tensor:
        if self.options.method == "random":
            return random_coreset(len(part), quota, self.seed + self._seen)
        dim = self.options.projected_dim(part.shape[1])
        points = part if dim == part.shape[1] else random_projection(part, dim, self.seed)
        gap = None
        if self._kept and self._rows is not None:
            kept = self._rows[: self._kept]
            kept = kept if dim == part.shape[1] else random_projection(kept, dim, self.seed)
            gap = gap_to(points, kept)
        return greedy_coreset(
            points, quota, start=self.options.start, seed=self.seed, block=self.options.block,
            known_gap=gap, stop_radius=self.options.stop_radius, track=False,
        ).rows  # fmt: skip

    def finish(
        self, candidates: Tensor, origin: Tensor, progress: Progress | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Second round: bank rows (M, D), sources (M, 3) and cover radii (M,) of the union."""
        size = min(self.plan.kept, len(candidates))
        if self.options.method == "random":
            rows = random_coreset(len(candidates), size, self.seed)
            radius = torch.empty(0)
        else:
            dim = self.options.projected_dim(candidates.shape[1])
            points = candidates
            if dim != candidates.shape[1]:
                points = random_projection(candidates, dim, self.seed)
            found = greedy_coreset(
                points, size, start=self.options.start, seed=self.seed, block=self.options.block,
                stop_radius=self.options.stop_radius, track=False, progress=progress,
            )  # fmt: skip
            rows, radius = found.rows.sort().values, found.radius
        return candidates[rows.to(candidates.device)], origin[rows], radius


def gap_to(points: Tensor, kept: Tensor) -> Tensor:
    """Squared distance (N,) of each row (N, d) to the nearest of `kept` (m, d), in tiles."""
    norms, gap = squared_norms(kept), squared_norms(points)
    for begin in range(0, len(points), 1024):
        tile = points[begin : begin + 1024] * -2.0
        low = torch.full((len(tile),), torch.inf, device=points.device)
        for b in range(0, len(kept), 1024):
            near = smallest(product(tile, kept[b : b + 1024], norms[b : b + 1024]), 1)[0][:, 0]
            torch.minimum(low, near, out=low)
        gap[begin : begin + 1024] += low
    return gap.clamp_min_(0.0)


def _divide(plan: Plan) -> tuple[int, int]:
    """Candidates and rows per part that fit the budget."""
    budget = (plan.budget or 0) - WORKSPACE - 2 * plan.bank_bytes
    factor = _OVERSAMPLE
    while factor >= _SMALLEST_OVERSAMPLE:
        capacity = min(plan.patches, int(factor * plan.kept) + 1)
        part = int(budget / plan.row_bytes) - capacity
        if part >= min(_SMALLEST_PART, plan.patches):
            return capacity, part
        factor -= 0.25
    least = (
        WORKSPACE
        + 2 * plan.bank_bytes
        + (_SMALLEST_OVERSAMPLE * plan.kept + _SMALLEST_PART) * plan.row_bytes
    )
    raise ConfigError(
        "The memory budget cannot hold the bank and its candidates.",
        found=f"model.memory_budget_gb={(plan.budget or 0) / 1e9:g} for {plan.kept:,} bank rows",
        do=f"allow {least / 1e9:.2f} GB, or lower model.coreset.ratio or model.target_dim",
    )
