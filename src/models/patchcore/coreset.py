"""Greedy k-center coresets: exact, several hundred picks per pass over the data.

Paper: PatchCore Sec. 3.2 (minimax facility location, farthest point first after a random linear
projection). Original: amazon-science/patchcore-inspection (Apache-2.0), one pass per pick. Ours
selects the same rows with three certificates:

* Block. Take the B rows with the largest distance; every other row is at most `cut` away. Run the
  greedy loop inside the block: as distances only fall, its best row is the best of all rows while
  it is not below `cut`. The picks are then applied together as one matrix product.
* Rows in waiting. Distances only fall, so one that has not been updated for a while is an upper
  bound, and its row cannot be picked before the radius has come down to it. Only rows beyond a
  level just below the block are multiplied; the others wait, most of them for ever.
* Far picks. A pick s made at radius r is at least r away from every earlier centre, so by the
  triangle inequality it cannot improve a row whose own distance is at most r/2: a row that has
  waited skips these picks. The start value of the official sampler, a mean of distances, obeys
  the same inequality.
* Self distance. A picked row is marked, so duplicates are never picked twice.

Cost per pick, N rows of d values, a fraction `a` of them beyond the level, p picks per pass:
  FLOP   2 N a d                        (one matrix product column)
  bytes  4 N (a d + 5) / p              (rows, norms, distances and the top-B scan, once per pass)
against 2 N d FLOP and 8 N d + 56 N bytes for the official loop. At p = 100 this is bound by
arithmetic, not by memory; tiles stay in the second-level cache, where the row minimum is taken. On
a GPU they do not: 8 N a bytes more per pick, written and read once.

Measured on one EPYC core (tests/bench/bench_coreset.py), 163,856 bottle patches, 1,638 picks:
0.75 s against 48 s, same picks. Of whitened features 36 % of all products of rows and picks are
made on bottles, 62 % on screws.
"""

import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.models.patchcore.nearest import linear, squared_norms, tiles
from src.models.patchcore.options import CoresetMethod, CoresetOptions, CoresetStart

# Rows per tile. A tile of 2048 x 128 distances is 1 MB: it stays in the second-level cache, where
# the row minimum costs 4 % of the product (measured; 512 to 4096 differ by less than 6 %).
_TILE_ROWS = 2048
_GPU_TILE_VALUES = 64 << 20  # on a GPU memory is the bound: 256 MB of distances
# Picks within this factor of twice a distance are applied, so that rounding cannot skip one.
_FAR_MARGIN = 1.0 + 1e-3
# On a GPU, looking for rows that may wait takes longer than multiplying them, up to so many values
# (measured on an H200: 25 million half the time, 143 million 1.0 to 1.9 times).
_GPU_ALL_VALUES = 64 << 20
# Of the smallest squared distance in a block: rows beyond it are kept up to date. 0.65 to 0.9 cost
# the same within 15 % (measured).
_LEVEL = 0.8
_OFFICIAL_STARTS = 10  # official: mean distance to ten random rows


class Coreset(NamedTuple):
    """Rows that cover all others."""

    rows: Tensor  # (M,) int64
    #: (M,) float32: distance of each pick to the rows kept before it; empty unless greedy.
    radius: Tensor
    distance: Tensor  # (N,) float32: of every row to the nearest kept row; empty unless asked for


def select(features: Tensor, options: CoresetOptions, seed: int) -> Coreset:
    """The rows of features (N, D) that a bank keeps, ascending."""
    N, D = features.shape
    size, empty = options.size(N), torch.empty(0)
    if options.method == CoresetMethod.random:
        return Coreset(random_coreset(N, size, seed), empty, empty)
    dim = options.projected_dim(D)
    points = features if dim == D else random_projection(features, dim, seed)
    found = greedy_coreset(
        points, size, start=options.start, seed=seed, block=options.block,
        stop_radius=options.stop_radius, distances=False,
    )  # fmt: skip
    return found._replace(rows=found.rows.sort().values)


def greedy_coreset(
    features: Tensor,
    size: int,
    *,
    start: CoresetStart,
    seed: int,
    block: int,
    known_gap: Tensor | None = None,
    stop_radius: float | None = None,
    distances: bool = True,
) -> Coreset:
    """Exact greedy k-center on the device of `features`; rows come in the order of their picks.

    A bar shows the progress when a person is watching.

    Args:
        features: (N, d) float32 rows; not copied.
        size: rows to keep, at most N.
        start: see `CoresetStart`.
        seed: of the random start rows (NumPy's legacy generator, as in the official code).
        block: B, candidate rows per pass; any value gives the same rows.
        known_gap: (N,) squared distance of every row to rows kept elsewhere; replaces `start`.
        stop_radius: stop early once every row is within this distance of a kept one.
        distances: False leaves `Coreset.distance` empty, which saves most of the time.
    """
    N = len(features)
    size = min(size, N)
    search = _Search(features, size)
    if known_gap is None:
        search.begin(start, seed)
    else:
        search.gap.copy_(known_gap)
    hidden = not sys.stderr.isatty()
    with tqdm(total=size, desc="coreset", unit="row", leave=False, disable=hidden) as bar:
        while search.count < size and not search.covered:
            radius = search.advance(min(block, N), stop_radius)
            bar.set_postfix(radius=f"{radius:.3g}", refresh=False)
            bar.update(search.count - bar.n)
    return search.result(distances)


class _Search:
    """State of one selection.

    `gap` (N,): squared distance of every row to the first `met` (N,) picks, -1 for kept rows.
    Rows above `level` are brought up to date before each pass, the others wait.
    """

    def __init__(self, features: Tensor, size: int) -> None:
        N = len(features)
        self.features, self.norms = features, squared_norms(features)
        self.rows = np.empty(size, np.int64)
        self.gaps = np.empty(size, np.float32)  # squared distance of each pick when picked
        self.count = 0
        self.covered = False
        self.gap = features.new_empty(N)
        self.met = torch.zeros(N, dtype=torch.int32, device=features.device)
        waits = self.gap.device.type == "cpu" or features.numel() > _GPU_ALL_VALUES
        self.level = np.inf if waits else -1.0

    def begin(self, start: CoresetStart, seed: int) -> None:
        """Distances before the first pick."""
        N = len(self.features)
        random = np.random.RandomState(seed)
        if start == CoresetStart.official:
            rows = random.choice(N, min(_OFFICIAL_STARTS, N), replace=False)
            self.gap.copy_(self._gaps_to(rows).sqrt_().mean(1).square_())
            return
        if start == CoresetStart.farthest:
            mean = self.features.mean(0, dtype=torch.float64).to(self.gap.dtype)
            # sum_j |x - x_j|^2 = N |x - mean|^2 + constant
            row = int((self.norms - 2.0 * torch.mv(self.features, mean)).argmax())
        else:
            row = int(random.randint(N))
        self.gap.copy_(self._gaps_to(np.array([row]))[:, 0])
        self.gap[row] = -1.0
        self.rows[0], self.gaps[0], self.count = row, np.inf, 1
        self.met.fill_(1)

    def _gaps_to(self, rows: np.ndarray) -> Tensor:
        """Squared distances (N, m) of every row to the rows with numbers (m,), >= 0."""
        place = torch.from_numpy(rows).to(self.gap.device)
        gaps = linear(self.features, self.features[place].mul_(-2.0), self.norms[place])
        return gaps.add_(self.norms[:, None]).clamp_min_(0.0)

    def advance(self, block: int, stop_radius: float | None) -> float:
        """One pass: pick from a block, then apply the picks to all active rows.

        Returns the distance at which the last pick was made.
        """
        best, candidates = self._farthest(block)
        points, norms = self.features[candidates], self.norms[candidates]
        pairs = norms[:, None] + linear(points, points.mul(-2.0), norms)  # (B, B)
        stop = -1.0 if stop_radius is None else stop_radius * stop_radius
        picks, gaps, self.covered = pick_in_block(
            pairs.cpu().numpy(), best.cpu().numpy().copy(), len(self.rows) - self.count, stop
        )
        if not picks:
            return float(best[0]) ** 0.5
        chosen = candidates[torch.as_tensor(picks, device=candidates.device)]
        end = self.count + len(picks)
        self.rows[self.count : end], self.gaps[self.count : end] = chosen.cpu().numpy(), gaps
        self.gap[chosen] = -1.0
        self.count = end
        return float(max(gaps[-1], 0.0)) ** 0.5

    def _farthest(self, block: int) -> tuple[Tensor, Tensor]:
        """The largest gaps (B,), up to date, and their rows (B,)."""
        while True:
            self._update()
            best, rows = self.gap.topk(block)
            smallest = float(best[-1])
            if smallest >= self.level:
                return best, rows
            self.level = _LEVEL * smallest if smallest > 0.0 else -1.0  # at last, all but the kept

    def _update(self) -> None:
        """Let the rows above the level meet the picks that they have not met."""
        stale = ((self.gap > self.level) & (self.met < self.count)).nonzero()[:, 0]
        met = self.met[stale]
        for first in met.bincount().nonzero()[:, 0].tolist():
            rows = stale[met == first]
            reach = 4.0 * float(self.gap[rows].max()) * _FAR_MARGIN
            near = int((self.gaps[: self.count] > reach).argmin())  # the first pick that is not far
            self._meet(rows, max(first, near))
        self.met[stale] = self.count

    def _meet(self, rows: Tensor, first: int) -> None:
        """Lower the gaps of rows (n,) by the distances to all picks from number `first` on.

        A running minimum is all that is wanted here, so `nearest` with its candidates and exact
        distances would do more than is needed.
        """
        place = torch.from_numpy(self.rows[first : self.count]).to(rows.device)
        factor, offset = self.features[place].mul_(-2.0), self.norms[place]
        on_cpu = self.gap.device.type == "cpu"
        for tile in tiles(len(rows), _TILE_ROWS if on_cpu else _GPU_TILE_VALUES // len(place)):
            where = rows[tile]
            points = self.features.index_select(0, where)
            gaps = linear(points, factor, offset)  # (t, p): |s|^2 - 2 x.s
            low = gaps.amin(1).add_(self.norms[where]).clamp_min_(0.0)
            self.gap[where] = torch.minimum(self.gap[where], low)

    def result(self, distances: bool) -> Coreset:
        """Rows kept so far and, if wanted, the distances of all rows to them."""
        if distances:
            self.level = -1.0
            self._update()
        rows = torch.from_numpy(self.rows[: self.count].copy())
        gaps = torch.from_numpy(self.gaps[: self.count].copy()).clamp_min_(0.0)
        gap = self.gap if distances else self.gap[:0]
        return Coreset(rows, gaps.sqrt_(), gap.clamp_min(0.0).sqrt_())


def pick_in_block(
    pairs: np.ndarray, best: np.ndarray, limit: int, stop: float
) -> tuple[list[int], np.ndarray, bool]:
    """Greedy picks among B candidates for as long as they provably are the picks among all rows.

    Args:
        pairs: (B, B) squared distances between the candidates.
        best: (B,) squared distances of the candidates, descending; overwritten.
        limit: most picks to make.
        stop: a pick at or below this squared distance ends the selection.

    Returns: positions picked, their squared distances when picked, and whether `stop` was reached.
    """
    cut = best[-1]
    picks: list[int] = []
    gaps: list[float] = []
    pick = 0
    while len(picks) < limit:
        gap = best[pick]
        if gap < cut:
            break
        if gap <= stop:
            return picks, np.asarray(gaps, np.float32), True
        picks.append(pick)
        gaps.append(gap)
        np.minimum(best, pairs[pick], out=best)
        best[pick] = -1.0
        pick = int(best.argmax())
    return picks, np.asarray(gaps, np.float32), False


def random_coreset(count: int, size: int, seed: int) -> Tensor:
    """`size` of `count` rows drawn without replacement, ascending, int64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:size].sort().values


def random_projection(features: Tensor, dim: int, seed: int) -> Tensor:
    """Rows (N, D) -> (N, dim), distances kept in expectation.

    Official: a fresh bias-free linear layer, U(-1/sqrt(D), 1/sqrt(D)), drawn after
    `torch.manual_seed(seed)`. Ours: scaled by sqrt(3 D / dim), so that a radius in the projection
    estimates the radius in feature units; the picks do not depend on the scale.
    """
    D = features.shape[1]
    bound = D**-0.5
    generator = torch.Generator().manual_seed(seed)
    weight = torch.empty(dim, D).uniform_(-bound, bound, generator=generator)
    weight *= (3.0 * D / dim) ** 0.5
    return linear(features, weight.to(features.device, non_blocking=True))
