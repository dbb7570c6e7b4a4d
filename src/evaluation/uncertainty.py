"""How sure a number is: intervals for one run, for means, and for the difference of two runs.

Images are resampled, never pixels, which are not independent within an image; normal and defective
ones separately, because a test set fixes their numbers (stratified bootstrap). Pixel metrics are
recomputed for each resample from per-image histograms (`pixels.PixelHistograms`).

Image AUROC has its own interval. Near 1 the percentile bootstrap is far too narrow: with 20 normal
and 63 defective images and a true AUROC of 0.99 its "95 %" interval held the truth in 76 % of
simulated sets, Newcombe's score interval in 97 % (tests/evaluation/test_uncertainty.py). Pixel
metrics take Student's t on the logit scale for the same reason; see `logit_interval`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, stdtrit
from scipy.stats import rankdata

from src.evaluation.overlap import overlap_area
from src.evaluation.pixels import PixelHistograms, PixelStore
from src.evaluation.ranking import Floats, checked, f1_scores, precision_area, roc_area

LEVEL = 0.95
_Z2 = float(ndtri((1 + LEVEL) / 2)) ** 2
#: Bins of the per-image histograms behind the intervals of pixel metrics: off by less than 0.001.
HISTOGRAM_BINS = 1024
_BLOCK = 250  # resamples computed together; bounds memory to a few arrays of _BLOCK x bins
_EDGE = 1e-9  # logits of rates closer to 0 or 1 than this are those of this


class Interval(NamedTuple):
    """Limits that hold the true value with probability LEVEL."""

    low: float
    high: float


class Difference(NamedTuple):
    """How much the second of two runs is better on the same images."""

    value: float
    low: float
    high: float
    p_value: float  # two-sided, of "no difference"


_NOTHING = Interval(math.nan, math.nan)


def auroc_interval(auroc: float, defects: int, normals: int) -> Interval:
    """Score interval of an AUROC: all values from which it is not too far, given their variance.

    Newcombe 2006 (Statistics in Medicine 25:559, method 5): Hanley and McNeil's variance with both
    sample sizes replaced by their mean. Defined at 0 and 1; NaN when a class is empty.
    """
    if math.isnan(auroc) or not defects or not normals:
        return _NOTHING
    half = (defects + normals) / 2 - 1

    def excess(truth: float) -> float:
        spread = 1 + half * (1 - truth) / (2 - truth) + half * truth / (1 + truth)
        return (auroc - truth) ** 2 - _Z2 * truth * (1 - truth) * spread / (defects * normals)

    step = 1e-12
    low = brentq(excess, 0.0, auroc - step) if auroc > 0 else 0.0
    high = brentq(excess, auroc + step, 1.0) if auroc < 1 else 1.0
    return Interval(float(low), float(high))


def delong(scores: ArrayLike, is_defect: ArrayLike, contrast: Sequence[float]) -> Difference:
    """A sum of AUROCs of scores (r, n) of the same images, times `contrast` (r,), by DeLong's test.

    [1] gives one AUROC with its interval, [-1, 1] the second minus the first. DeLong, DeLong and
    Clarke-Pearson 1988 (Biometrics 44:837), by midranks as Sun and Xu 2014. The interval of an
    AUROC of 1 has no width. NaN without two of each class.
    """
    values, defect = np.atleast_2d(scores), np.asarray(is_defect, dtype=bool)
    together, classes = rankdata(values, axis=1), (defect, ~defect)
    sizes = [int(members.sum()) for members in classes]
    if min(sizes) < 2:
        return Difference(*[math.nan] * 4)
    beaten = [  # share of the other class that each image beats, in the sum (m,)
        np.asarray(contrast) @ (together[:, own] - rankdata(values[:, own], axis=1)) / other
        for own, other in zip(classes, reversed(sizes), strict=True)
    ]
    value = float(beaten[0].mean())
    spread = math.sqrt(sum(part.var(ddof=1) / part.size for part in beaten))
    reach = math.sqrt(_Z2) * spread
    p_value = 2 * float(ndtr(-abs(value) / spread)) if spread else float(value == 0)
    return Difference(value, value - reach, value + reach, p_value)


def rate_interval(count: int, total: int) -> Interval:
    """Wilson score interval of a rate such as recall or false alarms; NaN when total is 0."""
    if not total:
        return _NOTHING
    centre = (count + _Z2 / 2) / (total + _Z2)
    reach = math.sqrt(_Z2 * (count * (total - count) / total + _Z2 / 4)) / (total + _Z2)
    return Interval(max(centre - reach, 0.0), min(centre + reach, 1.0))


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Interval of the mean of independent values, such as the categories of a data set.

    MOVER (Zou and Donner 2008, Statistics in Medicine 27:1693): the distances to the limits add in
    squares. Unlike a standard error it keeps the asymmetry of intervals near 1.
    """
    value = np.asarray(values, dtype=float)
    low, high = np.array(intervals, dtype=float).reshape(-1, 2).T
    if not value.size:
        return _NOTHING
    down, up = np.sqrt(np.sum((value - low) ** 2)), np.sqrt(np.sum((high - value) ** 2))
    return Interval(float(value.mean() - down / value.size), float(value.mean() + up / value.size))


def stratified_weights(
    is_defect: ArrayLike, resamples: int, generator: np.random.Generator
) -> NDArray[np.int32]:
    """How often each image is drawn, (resamples, n): each class keeps its number of images."""
    defect = np.asarray(is_defect, dtype=bool)
    weights = np.zeros((resamples, defect.size), dtype=np.int32)
    for members in (np.flatnonzero(defect), np.flatnonzero(~defect)):
        if members.size:
            drawn = generator.integers(members.size, size=(resamples, members.size))
            rows = np.arange(resamples)[:, None] * members.size
            counts = np.bincount((drawn + rows).ravel(), minlength=resamples * members.size)
            weights[:, members] = counts.reshape(resamples, members.size)
    return weights


def drawn_images(is_defect: ArrayLike, resamples: int, seed: int) -> NDArray[np.int32]:
    """Weights (1 + resamples, n): every image once in row 0, as was observed; then resamples."""
    drawn = stratified_weights(is_defect, resamples, np.random.default_rng(seed))
    return np.concatenate([np.ones((1, drawn.shape[1]), dtype=np.int32), drawn])


def image_metrics(
    scores: ArrayLike, is_defect: ArrayLike, weights: NDArray[np.int32]
) -> dict[str, Floats]:
    """AUROC, AP and F1-max of every resample: keys `test/image_auroc`, ... values (resamples,).

    scores and is_defect (n,), weights (resamples, n). NaN when a class is empty.
    """
    score, defect = checked(scores, is_defect)
    if not defect.any() or defect.all():
        nan = np.full(len(weights), np.nan)
        return {"test/image_auroc": nan, "test/image_ap": nan, "test/image_f1_max": nan}
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    drawn_defects = np.add.reduceat((weights * defect)[:, order], starts, axis=1)  # (B, K)
    drawn_normals = np.add.reduceat((weights * ~defect)[:, order], starts, axis=1)
    upto = np.cumsum(drawn_normals, axis=1)
    normals = upto[:, -1]
    return {
        "test/image_auroc": roc_area(drawn_defects, upto - drawn_normals, upto, normals),
        "test/image_ap": precision_area(drawn_defects, upto),
        "test/image_f1_max": f1_scores(drawn_defects, upto).max(axis=1),
    }


def decision_rates(
    decisions: ArrayLike, is_defect: ArrayLike, weights: NDArray[np.int32] | None = None
) -> dict[str, Floats]:
    """Precision, recall, F1, false alarm rate and balanced accuracy of every resample (resamples,).

    decisions and is_defect (n,) bool, weights (resamples, n); None: once, of what was observed.
    NaN without an alarm (precision), without defective or without normal images.
    """
    alarm, defect = np.asarray(decisions, dtype=bool), np.asarray(is_defect, dtype=bool)
    drawn = np.ones((1, defect.size), dtype=np.int32) if weights is None else weights
    hits, alarms, defects = drawn @ (alarm & defect), drawn @ alarm, drawn @ defect
    with np.errstate(invalid="ignore", divide="ignore"):  # an empty class gives NaN
        recall, wrong = hits / defects, (alarms - hits) / (drawn @ ~defect)
        return {
            "test/precision": hits / alarms,
            "test/recall": recall,
            "test/f1": np.where(defects == 0, np.nan, 2 * hits / (alarms + defects)),
            "test/false_alarm_rate": wrong,
            "test/balanced_accuracy": (recall + 1 - wrong) / 2,
        }


def pixel_metrics(
    histograms: PixelHistograms, weights: NDArray[np.int32], limits: Mapping[str, float]
) -> dict[str, Floats]:
    """Pixel AUROC, AP and AUPRO of every resample of images, values (resamples,).

    weights (resamples, n) follow the rows of `histograms`; `limits` names the AUPRO keys. Exact up
    to the width of the bins (see PixelHistograms). NaN when a class has no pixels.
    """
    parts: dict[str, list[Floats]] = {
        key: [] for key in ("test/pixel_auroc", "test/pixel_ap", *limits)
    }
    for row in range(0, len(weights), _BLOCK):
        block = weights[row : row + _BLOCK].astype(float)
        defect = block @ histograms.defect.astype(float)  # (B, b)
        region = block @ histograms.region
        upto = np.cumsum(block @ histograms.normal.astype(float), axis=1)
        above = np.c_[np.zeros(len(upto)), upto[:, :-1]]
        normals = upto[:, -1:]
        with np.errstate(invalid="ignore", divide="ignore"):  # an empty class gives NaN
            parts["test/pixel_auroc"].append(roc_area(defect, above, upto, normals[:, 0]))
            parts["test/pixel_ap"].append(precision_area(defect, upto))
            for key, limit in limits.items():
                rates = above / normals, upto / normals
                parts[key].append(overlap_area(region, *rates, limit))
    return {key: np.concatenate(values) for key, values in parts.items()}


def pixel_intervals(
    store: PixelStore, limits: Mapping[str, float], resamples: int, seed: int
) -> dict[str, Interval]:
    """95 % intervals of pixel AUROC, AP and AUPRO by key; images are resampled, not pixels."""
    defect = store.defects > 0
    weights = drawn_images(defect, resamples, seed)
    resampled = pixel_metrics(store.histograms(HISTOGRAM_BINS), weights, limits)
    images = int(min(defect.sum(), (~defect).sum()))
    return {key: logit_interval(values, images) for key, values in resampled.items()}


def percentile_interval(resampled: Floats) -> Interval:
    """The central share LEVEL of resampled values (resamples,); NaN when any is NaN."""
    return Interval(*np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist())


def logit_interval(resampled: Floats, images: int) -> Interval:
    """Interval of a rate near 1 from bootstrap resamples, Student's t on the logit scale.

    `resampled` (1 + resamples,) in 0..1 begins with the observed value; `images` of the smaller
    class, not pixels, are the independent draws. NaN when any value is NaN or there is one image.

    A percentile interval ignores that few images are few and leans to the wrong side of a skewed
    distribution. On 300 simulated test sets each (tests/evaluation/test_uncertainty.py) 95 % wanted
    were 0.86 to 0.98, where percentiles held 0.75 to 0.93 and BCa lay between the two. Few defects
    that differ much leave the interval short of its level; more defective images help.
    """
    value = np.clip(resampled, _EDGE, 1 - _EDGE)
    logits = np.log(value / (1 - value))
    if images < 2 or np.isnan(logits).any():
        return _NOTHING
    # A resample of n images varies by sqrt((n - 1) / n) less than a fresh draw.
    reach = float(stdtrit(images - 1, (1 + LEVEL) / 2)) * math.sqrt(images / (images - 1))
    reach *= float(logits[1:].std(ddof=1))
    low, high = 1 / (1 + np.exp(-(logits[0] + np.array([-reach, reach]))))
    return Interval(min(float(low), float(resampled[0])), max(float(high), float(resampled[0])))


def paired_difference(first: Floats, second: Floats, observed: tuple[float, float]) -> Difference:
    """Second minus first run, from the same resamples (resamples,) of the same images.

    The p-value is twice the smaller share of differences on either side of zero (zero counts on
    both) and of one more, so that it is never 0.
    """
    value, apart = observed[1] - observed[0], second - first
    tail = min(np.count_nonzero(apart <= 0), np.count_nonzero(apart >= 0))
    p_value = min(1.0, 2 * (tail + 1) / (apart.size + 1))
    if np.isnan(apart).any() or math.isnan(value):
        return Difference(value, *_NOTHING, math.nan)
    return Difference(value, *percentile_interval(apart), p_value)
