"""What a fit will cost, said before it starts."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from src.models.patchcore.products import product
from src.models.patchcore.selection import CoresetOptions

_FLOAT = 4  # bytes
#: Besides the vector: squared norm, distance, sort key, source (3 x int32), nearest kept row.
ROW_STATE = 32
#: Tiles of the products, the block of candidates, and the same again for temporaries.
WORKSPACE = 48 << 20


class Plan(NamedTuple):
    """Sizes of one fit; bytes count patch vectors and their selection, not the network."""

    images: int
    patches: int  # N
    dim: int  # D
    selection_dim: int  # d, after projection
    kept: int  # M
    budget: int | None  # bytes

    @classmethod
    def make(
        cls, images: int, grid: tuple[int, int], dim: int, options: CoresetOptions,
        budget_gb: float | None,
    ) -> Plan:  # fmt: skip
        """The plan for `images` images of `grid` patches of `dim` values."""
        patches = images * grid[0] * grid[1]
        return cls(
            images, patches, dim, options.projected_dim(dim), options.size(patches),
            None if budget_gb is None else int(budget_gb * 1e9),
        )  # fmt: skip

    @property
    def row_bytes(self) -> int:
        """Bytes of one patch vector with all that its selection needs."""
        projected = 0 if self.selection_dim == self.dim else self.selection_dim
        return _FLOAT * (self.dim + projected) + ROW_STATE

    @property
    def bank_row_bytes(self) -> int:
        """Bytes of one row of the finished bank in float32, with norm and source."""
        return _FLOAT * self.dim + 16

    @property
    def bank_bytes(self) -> int:
        """Bytes of the finished bank in float32."""
        return self.kept * self.bank_row_bytes

    @property
    def peak_bytes(self) -> int:
        """Highest need when all patches are held at once."""
        return self.patches * self.row_bytes + 2 * self.bank_bytes + WORKSPACE

    @property
    def streams(self) -> bool:
        """Whether the budget forces a streaming coreset."""
        return self.budget is not None and self.peak_bytes > self.budget

    @property
    def selection_flop(self) -> float:
        """Floating-point operations of projection and greedy selection, none frozen."""
        project = 0 if self.selection_dim == self.dim else 2.0 * self.patches * self.dim
        return project * self.selection_dim + 2.0 * self.patches * self.selection_dim * self.kept

    def describe(self) -> str:
        """A paragraph for people."""
        GB = 1e9
        seconds = self.selection_flop / product_speed()
        lines = [
            f"{self.images:,} images x {self.patches // max(1, self.images):,} patches = "
            f"{self.patches:,} vectors of {self.dim} values "
            f"({self.patches * self.dim * _FLOAT / GB:.2f} GB)",
            f"bank {self.kept:,} rows ({self.bank_bytes / GB:.3f} GB), selected "
            + (
                f"in a random projection to {self.selection_dim} values"
                if self.selection_dim != self.dim
                else "without projection"
            )
            + f", at most {seconds:.1f} s",
            f"peak {self.peak_bytes / GB:.2f} GB if held at once"
            + ("" if self.budget is None else f", budget {self.budget / GB:.2f} GB: ")
            + ("" if self.budget is None else "streams" if self.streams else "fits"),
        ]
        return "\n".join(lines)


def product_speed() -> float:
    """Floating-point operations per second of a distance product on this CPU, from 10 ms."""
    rows, picks, offset = torch.ones(1024, 128), torch.ones(256, 128), torch.zeros(256)
    product(rows, picks, offset)
    began = time.perf_counter()
    for _ in range(8):
        product(rows, picks, offset)
    return 8 * 2.0 * 1024 * 256 * 128 / max(1e-9, time.perf_counter() - began)
