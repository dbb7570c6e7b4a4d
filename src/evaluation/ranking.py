"""Metrics of the order of scores: AUROC, average precision, F1 and their curves.

Everything follows from one table, `Ranking`: for each distinct score of a defective item, how many
defective and how many normal items lie above it. Scores are raw: any finite real number, no
sigmoid, no clipping, no binning; equal ones are one step of every curve. Where a metric is
undefined because a class is empty it is NaN, never 0, 0.5 or 1.

Only the scores of defective items need to be sorted: between two of them recall does not change,
precision and F1 only fall. That makes millions of normal pixels cheap (one sort, no argsort).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from src.errors import DataError
from src.result import Curve

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

_NAN = np.full(1, np.nan)


@dataclass(frozen=True)
class Ranking:
    """Distinct scores of defective items, highest first, and what lies around each of them.

    K distinct values; `value` keeps the dtype of the scores. `hits` may be weighted (overlap
    metrics weigh a pixel by its region), all other counts are whole numbers.
    """

    value: NDArray[Any]  # (K,) descending
    hits: Counts | Floats  # (K,) weight of the defective items at exactly this value
    normals_above: Counts  # (K,) normal items strictly above
    normals_from: Counts  # (K,) normal items above or equal
    below: NDArray[Any]  # (K,) next lower score of any item, -inf under the lowest
    normals: int  # all normal items

    @property
    def defects(self) -> float:
        """Weight of all defective items."""
        return self.hits.sum().item()

    @property
    def found(self) -> NDArray[Any]:
        """Weight of the defective items at or above each value, (K,)."""
        return np.cumsum(self.hits)

    @property
    def empty(self) -> bool:
        """True when a class is missing and separation is undefined."""
        return self.normals == 0 or self.hits.size == 0


def ratio(part: float, whole: float) -> float:
    """Quotient of two counts; NaN when the whole is 0."""
    return part / whole if whole else float("nan")


def rank(scores: ArrayLike, is_defect: ArrayLike) -> Ranking:
    """Sort scores (n,) once; `is_defect` (n,) is bool or 0/1, else a ValueError."""
    score, defect = checked(scores, is_defect)
    normal = np.sort(score[~defect])
    value, hits = np.unique(score[defect], return_counts=True)
    return table(value, hits, around(normal, value), normal.size)


def table(
    value: NDArray[Any], hits: Counts, near: tuple[Counts, Counts, NDArray[Any]], normals: int
) -> Ranking:
    """The ranking of ascending values (K,) with what `around` says of them."""
    at_least, above, below = (part[::-1] for part in near)
    lower = np.r_[value[-2::-1], np.full(min(value.size, 1), -np.inf)].astype(below.dtype)
    below = np.maximum(below, lower)
    return Ranking(value[::-1], hits[::-1].astype(np.int64), above, at_least, below, normals)


def around(normal: NDArray[Any], value: NDArray[Any]) -> tuple[Counts, Counts, NDArray[Any]]:
    """Where each of `value` (K,) falls among sorted `normal` (m,), both ascending.

    (K,) each: normals at or above, strictly above, largest normal strictly below (-inf: none).
    """
    left = np.searchsorted(normal, value, side="left")
    right = np.searchsorted(normal, value, side="right")
    padded = np.r_[np.array([-np.inf], dtype=normal.dtype), normal]
    return normal.size - left, normal.size - right, padded[left]


def checked(scores: ArrayLike, is_defect: ArrayLike) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Flat float scores and bool labels, or a clear error."""
    score, label = finite(scores), _array(is_defect).ravel()
    if label.size != score.size:
        raise ValueError(f"{score.size} scores but {label.size} labels")
    if label.dtype != np.bool_ and not np.isin(label, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, found {np.unique(label)[:5].tolist()}")
    return score, label.astype(bool)


def finite(scores: ArrayLike, what: str = "scores") -> NDArray[Any]:
    """Flat array of float32 or float64 scores; DataError: some are NaN or infinite."""
    score = _array(scores).ravel()
    if score.dtype != np.float32:
        score = score.astype(np.float32 if score.dtype == np.float16 else np.float64)
    if not np.isfinite(score).all():
        nan, infinite = int(np.isnan(score).sum()), int(np.isinf(score).sum())
        raise DataError(
            f"{nan + infinite} of {score.size} {what} are not finite numbers.",
            found=f"{nan} NaN and {infinite} infinite",
            do="check training for divergence (learning rate, precision) and the inputs for NaN",
        )
    return score


def _array(values: Any) -> NDArray[Any]:
    """NumPy view of an array, list or tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point() and values.itemsize < 4:
            values = values.float()  # NumPy has no bfloat16
    return np.asarray(values)


def area_under_roc(table: Ranking) -> float:
    """P(defective > normal) + P(equal)/2 over all pairs; NaN when a class is empty."""
    if table.empty:
        return math.nan
    return float(roc_area(table.hits, table.normals_above, table.normals_from, table.normals))


def area_under_precision(table: Ranking) -> float:
    """Average precision, sum of precision x gain in recall over distinct scores; NaN if undefined.

    The step definition of scikit-learn, without interpolation.
    """
    return math.nan if table.empty else float(precision_area(table.hits, table.normals_from))


def f1_max(table: Ranking) -> float:
    """Largest F1 over all thresholds; NaN if undefined."""
    return math.nan if table.empty else float(f1_scores(table.hits, table.normals_from).max())


def f1_threshold(table: Ranking) -> float:
    """The threshold t with the best F1 of score > t; of equal ones the highest; NaN if undefined.

    In the middle between two scores, rounded to float32 where that fits: torch compares in float32,
    and a threshold that is not representable could swallow the score it separates.
    """
    if table.empty:
        return math.nan
    k = int(np.argmax(f1_scores(table.hits, table.normals_from)))
    upper, lower = table.value[k], table.below[k]
    if lower == -np.inf:
        return float(np.nextafter(upper, lower.astype(upper.dtype)))
    middle = float(upper) / 2 + float(lower) / 2
    with np.errstate(over="ignore"):
        rounded = float(np.float32(middle))
    candidates = (rounded, float(lower) if upper.dtype == np.float32 else middle, float(lower))
    return next(t for t in candidates if float(lower) <= t < float(upper))


# The formulas, along the last axis, so that many resamples (..., K) are computed at once.


def roc_area(
    hits: NDArray[Any], above: NDArray[Any], upto: NDArray[Any], normals: ArrayLike
) -> NDArray[Any]:
    """AUROC (...,) of weights `hits` (..., K) with normals strictly above and at or above."""
    lost = np.sum(hits * ((above + upto) / 2), axis=-1)  # equal scores count half
    return 1 - lost / (np.asarray(normals) * hits.sum(axis=-1))


def precision_area(hits: NDArray[Any], upto: NDArray[Any]) -> NDArray[Any]:
    """Average precision (...,) of `hits` (..., K) with normals at or above."""
    found = np.cumsum(hits, axis=-1)
    precision = found / np.maximum(found + upto, 1)  # 0 / 0 only where hits are 0 as well
    return np.sum(hits * precision, axis=-1) / found[..., -1]


def f1_scores(hits: NDArray[Any], upto: NDArray[Any]) -> NDArray[Any]:
    """F1 (..., K) when every score at or above each value is called a defect."""
    found = np.cumsum(hits, axis=-1)
    return 2 * found / (found + upto + found[..., -1:])


def roc_curve(table: Ranking) -> Curve:
    """Exact ROC: false positive rate against recall, from (0, 0) to (1, 1), ties as ramps.

    One point that is NaN when a class is empty.
    """
    if table.empty:
        return Curve("roc", _NAN, _NAN, math.nan)
    recall = table.found / table.defects
    before = np.r_[0.0, recall[:-1]]
    # Each value is left at its upper edge and reached at its lower one: two vertices.
    x = np.stack([table.normals_above, table.normals_from], axis=1).ravel() / table.normals
    y = np.stack([before, recall], axis=1).ravel()
    return Curve("roc", np.r_[0.0, x, 1.0], np.r_[0.0, y, 1.0], area_under_roc(table))


def precision_recall_curve(table: Ranking) -> Curve:
    """Recall against precision, one point a distinct defective score, starting at (0, 1)."""
    if table.empty:
        return Curve("pr", _NAN, _NAN, math.nan)
    recall = np.r_[0.0, table.found / table.defects]
    precision = np.r_[1.0, table.found / (table.found + table.normals_from)]
    return Curve("pr", recall, precision, area_under_precision(table))


def auroc(scores: ArrayLike, is_defect: ArrayLike) -> float:
    """Area under the ROC curve of scores (n,), ties half; NaN when a class is empty."""
    return area_under_roc(rank(scores, is_defect))
