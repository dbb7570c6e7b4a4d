"""Does an exported file say the same as PyTorch? Differences, flipped decisions, speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from rich.table import Table

from src.errors import GoodpartsError


class ParityError(GoodpartsError):
    """The exported model differs from the original."""


class Outputs(NamedTuple):
    """What one side says of a batch."""

    score: np.ndarray  # (B,)
    alarm: np.ndarray  # (B,) bool
    anomaly_map: np.ndarray  # (B, H, W)


Runner = Callable[[np.ndarray], Outputs]


@dataclass(frozen=True, slots=True)
class Parity:
    """The comparison on real images; errors in raw units."""

    images: int
    flips: int  # decisions that differ
    score_error: float  # largest |difference|
    map_error: float
    spread: float  # largest minus smallest score, what errors are measured by
    tolerance: float  # allowed error / spread
    torch_ms_p50: float  # one image, pre-processing included
    torch_ms_p95: float
    exported_ms_p50: float
    exported_ms_p95: float

    def table(self, name: str) -> Table:
        """The comparison for the console."""
        table = Table("", "PyTorch", name, title=f"parity on {self.images} real images")
        table.add_row("label flips", "", str(self.flips))
        table.add_row("max score error", "", f"{self.score_error:.2e} of spread {self.spread:.3g}")
        table.add_row("max map error", "", f"{self.map_error:.2e}")
        for quantile in ("p50", "p95"):
            ours, other = f"torch_ms_{quantile}", f"exported_ms_{quantile}"
            values = f"{getattr(self, ours):.1f}", f"{getattr(self, other):.1f}"
            table.add_row(f"ms per image {quantile}", *values)
        return table


def check_parity(
    images: np.ndarray,
    original: Runner,
    exported: Runner,
    *,
    threshold: float,
    tolerance: float,
    repeats: int,
) -> Parity:
    """Compare both sides on uint8 images (N, h, w, 3), in batches of 1 and of all.

    Raises:
        ParityError: a decision flips, or an error exceeds tolerance * spread.
    """
    truth, batched = original(images), exported(images)
    single = [exported(images[i : i + 1]) for i in range(len(images))]
    singly = Outputs(*(np.concatenate(parts) for parts in zip(*single, strict=True)))
    sides = (batched, singly)
    reach = [threshold] if np.isfinite(threshold) else []
    spread = float(np.ptp(np.append(truth.score, reach))) or float(np.abs(truth.score).max()) or 1.0
    parity = Parity(
        images=len(images),
        flips=max(int((truth.alarm != side.alarm).sum()) for side in sides),
        score_error=max(_largest(truth.score, side.score) for side in sides),
        map_error=max(_largest(truth.anomaly_map, side.anomaly_map) for side in sides),
        spread=spread,
        tolerance=tolerance,
        **_times("torch", images, original, repeats),
        **_times("exported", images, exported, repeats),
    )
    worst = max(parity.score_error, parity.map_error)
    if parity.flips or not worst <= parity.tolerance * parity.spread:
        raise ParityError(
            "The exported model does not say the same as PyTorch; nothing was written.",
            found=f"{parity.flips} of {parity.images} decisions flip, largest error {worst:.3g} "
            f"(allowed {parity.tolerance * parity.spread:.3g})",
            do="report this with the run's config.yaml; a larger parity.tolerance only hides it",
        )
    return parity


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return float("inf")
    return float(np.max(np.abs(a.astype(np.float64) - b)))


def _times(name: str, images: np.ndarray, run: Runner, repeats: int) -> dict[str, float]:
    """Milliseconds of `repeats` single-image calls after two that warm up, p50 and p95."""
    taken = []
    for count in range(repeats + 2):
        one = images[count % len(images)][None]
        began = time.perf_counter()
        run(one)
        taken.append(1e3 * (time.perf_counter() - began))
    return {f"{name}_ms_p{q}": float(np.percentile(taken[2:], q)) for q in (50, 95)}
