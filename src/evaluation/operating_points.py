"""What other thresholds would promise and find, which pictures set the one in use, p-values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray

from src.data.samples import DEFECTIVE, NORMAL
from src.evaluation.threshold import conformal_order
from src.result import NormalScores, Threshold

POINTS = "operating_points.csv"  # in a run folder, one row an `OperatingPoint`
#: Shares of false alarms that a table of thresholds shows beside 1 / (n + 1). ours.
ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2)


class OperatingPoint(NamedTuple):
    """A threshold that was possible, and its decisions on the test images."""

    alpha: float  # wanted share of false alarms
    threshold: float  # alarm when score > threshold
    attained: float  # share that n calibration scores promise at this threshold on average
    found: int  # alarms among the defective test images
    defective: int
    false_alarms: int  # alarms among the normal test images
    normal: int

    @property
    def possible(self) -> bool:
        """Whether n calibration scores can promise `alpha`."""
        return self.attained <= self.alpha * (1 + 1e-9)  # 1 / (n + 1) is rounded

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """From a row of `POINTS`."""
        kinds = get_type_hints(cls)
        return cls(**{name: kinds[name](row[name]) for name in cls._fields})


class Deciding(NamedTuple):
    """The picture that set the threshold, what would hold without it, and those above."""

    path: str
    score: float
    lower: float | None  # the next lower score; None: there is none
    attained: float  # share of false alarms that `lower` promises, the picture being one of them
    above: Sequence[tuple[str, float]]  # pictures with higher scores, the highest first


def promised(normal: NormalScores, threshold: float) -> float:
    """(1 + scores above the threshold) / (n + 1): false alarms that it promises on average."""
    return (1 + int((normal.image > threshold).sum())) / (len(normal.image) + 1)


def operating_points(
    normal: NormalScores, scores: ArrayLike, labels: ArrayLike
) -> list[OperatingPoint]:
    """The conformal thresholds of `ALPHAS` and of 1 / (n + 1), the least that n scores promise.

    `scores`, `labels`: of the test images (m,); those without a known label are not counted.
    """
    ordered, n = np.sort(normal.image.float().numpy()), len(normal.image)
    scores, labels = np.asarray(scores, dtype=np.float32), np.asarray(labels)
    points = []
    for alpha in sorted({*ALPHAS, 1 / (n + 1)}):
        threshold = ordered[min(conformal_order(n, alpha), n) - 1].item()
        counts = [
            int(of.sum())
            for kind in (DEFECTIVE, NORMAL)
            for of in (scores[labels == kind] > threshold, labels == kind)
        ]
        points.append(OperatingPoint(alpha, threshold, promised(normal, threshold), *counts))
    return points


def deciding(normal: NormalScores | None, threshold: Threshold) -> Deciding | None:
    """Which calibration picture set the threshold; None: none did, or their names are unknown."""
    if normal is None or not normal.paths or threshold.own_mask:
        return None
    ranked = sorted(zip(normal.image.tolist(), normal.paths, strict=True), reverse=True)
    setter = next((path for score, path in ranked if score == threshold.image), None)
    if setter is None:
        return None
    above = [(path, score) for score, path in ranked if score > threshold.image]
    lower = next((score for score, _ in ranked if score < threshold.image), None)
    level = 1.0 if lower is None else promised(normal, lower)
    return Deciding(setter, threshold.image, lower, level, above)


def conformal_p(normal: NormalScores, scores: ArrayLike) -> NDArray[np.float64]:
    """P-value (m,) of each score (m,): of "this is a part like the calibration images".

    (1 + calibration scores at least as high) / (n + 1) (Vovk et al. 2005; Bates et al. 2023, Annals
    of Statistics 51:149).
    """
    ordered = np.sort(normal.image.double().numpy())
    reached = np.searchsorted(ordered, np.asarray(scores, dtype=np.float64))
    return (1 + ordered.size - reached) / (ordered.size + 1)


def suspicion(normal: NormalScores) -> list[tuple[str, float, float]]:
    """(path, score, p) of calibration pictures, the most conspicuous first.

    p is the share of all n pictures that score at least as high, 1 / n for the highest alone.
    """
    values = normal.image.float().numpy()
    ordered = np.sort(values)
    p = 1 - np.searchsorted(ordered, values) / len(values)
    order = np.argsort(-values, kind="stable")
    return [(normal.paths[i], float(values[i]), float(p[i])) for i in order]
