"""Which patch vectors the bank keeps, as the `model.coreset` config says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.errors import ConfigError, did_you_mean
from src.models.patchcore.coreset import (
    METHODS,
    STARTS,
    Progress,
    greedy_coreset,
    random_coreset,
    random_projection,
)


class CoresetOptions(NamedTuple):
    """The `model.coreset` group."""

    method: str  # greedy | random | none
    ratio: float | None  # share of rows to keep; None: until stop_radius
    start: str  # official | row | farthest
    projection_dim: int | None  # select in a random projection of this size; None: in full
    stop_radius: float | None  # stop once every row is this close to a kept one, feature units
    block: int  # candidate rows per pass; changes the time, never the picks

    @classmethod
    def read(cls, group: Mapping[str, Any]) -> CoresetOptions:
        """Options from a config group.

        Raises:
            ConfigError: a key is unknown or missing, or a value is out of range.
        """
        for key in set(group) ^ set(cls._fields):
            raise ConfigError(
                "model.coreset has a wrong set of keys.",
                found=f"{'unknown' if key in group else 'missing'}: {key}",
                do=did_you_mean(key, cls._fields),
            )
        return cls(**group).check()

    def check(self) -> CoresetOptions:
        """Refuse values that make no sense.

        Raises:
            ConfigError: names the key, the value and the range.
        """
        for key, value, names in (
            ("method", self.method, METHODS),
            ("start", self.start, STARTS),
        ):
            if value not in names:
                raise ConfigError(
                    f"Unknown model.coreset.{key}.", found=value, do=did_you_mean(value, names)
                )
        if self.ratio is not None and not 0.0 < self.ratio <= 1.0:
            raise ConfigError(
                "model.coreset.ratio is a share of all patches.",
                found=f"{self.ratio}",
                do="give a number above 0 and at most 1; the paper uses 0.25, 0.1 and 0.01",
            )
        if self.ratio is None and (self.stop_radius is None or self.method != "greedy"):
            raise ConfigError(
                "The coreset has no size.",
                found=f"ratio=null, stop_radius={self.stop_radius}, method={self.method}",
                do="set model.coreset.ratio, or method=greedy with model.coreset.stop_radius",
            )
        if self.block < 1 or (self.projection_dim is not None and self.projection_dim < 1):
            raise ConfigError(
                "model.coreset.block and projection_dim are counts.",
                found=f"block={self.block}, projection_dim={self.projection_dim}",
                do="use block=768; projection_dim=128 as the official code, or null for none",
            )
        return self

    def size(self, rows: int) -> int:
        """Rows kept of `rows`; official: rounded down; ours: at least one."""
        if self.method == "none" or self.ratio is None:
            return rows
        return max(1, int(rows * self.ratio))

    def projected_dim(self, dim: int) -> int:
        """Values per row during selection.

        Official: no projection to the same size. Ours: nor to more than half of it, where drawing
        and multiplying costs more than it saves and the neighbours found are worth keeping.
        """
        if self.projection_dim is None or 2 * self.projection_dim > dim:
            return dim
        return self.projection_dim


class Selection(NamedTuple):
    """Rows kept, and what their selection found out on the way."""

    rows: Tensor  # (M,) int64, ascending
    radius: Tensor  # (M,) float32, cover radius before each pick; empty unless greedy
    nearest: Tensor | None  # (N,) int64 kept row (position in `rows`) nearest to each row, or -1
    dim: int  # values per row that the selection looked at


def select(
    features: Tensor, options: CoresetOptions, seed: int, progress: Progress | None
) -> Selection:
    """Choose rows of features (N, D); the result does not depend on the device's number.

    `nearest` comes for free from a greedy selection without projection; otherwise it is None.
    """
    N, D = features.shape
    size = options.size(N)
    empty = torch.empty(0)
    if options.method == "none":
        return Selection(torch.arange(N), empty, None, D)
    if options.method == "random":
        return Selection(random_coreset(N, size, seed), empty, None, D)
    dim = options.projected_dim(D)
    points = features if dim == D else random_projection(features, dim, seed)
    found = greedy_coreset(
        points, size, start=options.start, seed=seed, block=options.block,
        stop_radius=options.stop_radius, progress=progress, track=dim == D,
    )  # fmt: skip
    rows, order = found.rows.sort()
    nearest = None if found.nearest is None else _renumber(found.nearest, order)
    return Selection(rows, found.radius, nearest, dim)


def _renumber(nearest: Tensor, order: Tensor) -> Tensor:
    """Positions in picking order -> positions in ascending order; -1 stays."""
    place = torch.empty(len(order) + 1, dtype=torch.int64)
    place[order] = torch.arange(len(order))
    place[-1] = -1
    return place.to(nearest.device)[nearest]
