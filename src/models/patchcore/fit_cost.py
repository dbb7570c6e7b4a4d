"""What a fit will cost, said before it starts."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from src.models.patchcore.nearest import linear
from src.models.patchcore.options import CoresetOptions

_FLOAT = 4  # bytes
#: Besides the vector: squared norm, distance, sort key, source (3 x int32), nearest kept row.
_ROW_STATE = 32
#: Tiles of the products, the block of candidates, and the same again for temporaries.
WORKSPACE = 48 << 20
_GB = 1e9


class FitCost(NamedTuple):
    """Sizes of one fit; bytes count patch vectors and their selection, not the network."""

    images: int
    patches: int  # N
    dim: int  # D
    selection_dim: int  # d, after projection
    kept: int  # M
    cross: bool  # whether the coreset is selected again for folds, from a copy of the patches
    budget: int | None  # bytes

    @classmethod
    def of(
        cls, images: int, grid: tuple[int, int], dim: int, coreset: CoresetOptions,
        budget_gb: float | None, cross: bool = False,
    ) -> FitCost:  # fmt: skip
        """The cost for `images` images of `grid` patches of `dim` values."""
        patches = images * grid[0] * grid[1]
        return cls(
            images, patches, dim, coreset.projected_dim(dim), coreset.size(patches),
            cross, None if budget_gb is None else int(budget_gb * _GB),
        )  # fmt: skip

    @property
    def projects(self) -> bool:
        """Whether the coreset is selected in a random projection."""
        return self.selection_dim != self.dim

    @property
    def row_bytes(self) -> int:
        """Bytes of one patch vector with all that its selection needs."""
        return _FLOAT * (self.dim + self.projects * self.selection_dim) + _ROW_STATE

    @property
    def bank_row_bytes(self) -> int:
        """Bytes of one row of the finished bank in float32, with norm and source."""
        return _FLOAT * self.dim + 16

    @property
    def peak_bytes(self) -> int:
        """Highest need when all patches are held at once."""
        copy = _FLOAT * self.dim * self.patches * self.cross
        bank = 2 * self.kept * self.bank_row_bytes
        return self.patches * self.row_bytes + copy + bank + WORKSPACE

    @property
    def streams(self) -> bool:
        """Whether the budget forces a streaming coreset."""
        return self.budget is not None and self.peak_bytes > self.budget

    def describe(self) -> str:
        """A paragraph for people."""
        projection = 2.0 * self.patches * self.dim * self.selection_dim * self.projects
        flop = projection + 2.0 * self.patches * self.selection_dim * self.kept  # none frozen
        where = f"in a random projection to {self.selection_dim} values"
        budget = ""
        if self.budget is not None:
            verdict = "streams" if self.streams else "fits"
            budget = f", budget {self.budget / _GB:.2f} GB: {verdict}"
        return (
            f"{self.images:,} images x {self.patches // max(1, self.images):,} patches = "
            f"{self.patches:,} vectors of {self.dim} values "
            f"({self.patches * self.dim * _FLOAT / _GB:.2f} GB)\n"
            f"bank {self.kept:,} rows ({self.kept * self.bank_row_bytes / _GB:.3f} GB), selected "
            f"{where if self.projects else 'without projection'}, "
            f"at most {flop / product_speed():.1f} s\n"
            f"peak {self.peak_bytes / _GB:.2f} GB if held at once{budget}"
        )


def product_speed() -> float:
    """Floating-point operations per second of a distance product on this CPU, from 10 ms."""
    rows, picks = torch.ones(1024, 128), torch.ones(256, 128)
    linear(rows, picks)
    began = time.perf_counter()
    for _ in range(8):
        linear(rows, picks)
    return 8 * 2.0 * 1024 * 256 * 128 / max(1e-9, time.perf_counter() - began)
