"""Metrics of where the anomaly is; `src.metrics` defines each.

AUPRO (Bergmann et al., MVTec AD, IJCV 2021) is recall with weights: a defective pixel counts
1 / (pixels of its 8-connected region x regions). So a `ranking.Ranking` whose `hits` carry those
weights gives it exactly: no threshold grid, ties are one step, the last step is interpolated at the
limit. sPRO (MVTec LOCO AD, IJCV 2022) is the same with the share of a region's saturation area, at
most 1. AUPIMO: Bertoldo et al., BMVC 2024. IoU follows U-Flow (uflow, src/evaluate.py).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.evaluation import ranking
from src.evaluation.pixels import PixelStore
from src.evaluation.ranking import Counts, Floats, Ranking, ratio
from src.result import Curve

#: False positive rates between which AUPIMO averages; Bertoldo et al. 2024, section 3.
BOUNDS = (1e-5, 1e-4)

#: Candidate thresholds looked at together while searching the best mean IoU.
_BRACKETS = 256


def aupro_key(limit: float) -> str:
    """`test/aupro` for the customary limit 0.3, `test/aupro_05` for 0.05."""
    return "test/aupro" if limit == 0.3 else f"test/aupro_{100 * limit:02.0f}"


def pixel_metrics(
    store: PixelStore, tp: Counts, fp: Counts, limits: Mapping[str, float]
) -> dict[str, float]:
    """Every pixel metric under its key, of a store with at least one defective pixel.

    `tp` and `fp` (n,) are true and false positive pixels per image at the chosen threshold,
    `limits` AUPRO keys and the false positive rates they stand for.
    """
    defects, ranked = store.defects, store.rank()
    good = defects == 0
    metrics = {
        "test/pixel_auroc": ranking.area_under_roc(ranked.pixels),
        "test/pixel_auroc_defective_only": ranking.area_under_roc(ranked.pixels_inside),
        "test/pixel_ap": ranking.area_under_precision(ranked.pixels),
        "test/pixel_f1": pixel_f1(tp, fp, defects),
        "test/pixel_f1_max": ranking.f1_max(ranked.pixels),
        "test/miou": float(image_ious(tp, fp, defects).mean()),
        "test/miou_oracle": best_mean_iou(store),
        "test/iou_pooled": ratio(int(tp.sum()), int((defects + fp).sum())),
        "test/mask_false_alarm_rate": ratio(int((fp[good] > 0).sum()), int(good.sum())),
    }
    for key, limit in limits.items():
        metrics[key] = area_under_overlap(ranked.regions, limit)
        metrics[f"{key}_defective_only"] = area_under_overlap(ranked.regions_inside, limit)
        if store.saturates:
            saturated = area_under_overlap(ranked.saturated, limit)
            metrics[key.replace("aupro", "auspro")] = saturated
    found = image_overlaps(store)[~good]
    metrics["test/aupimo"] = float(found.mean())
    for name, share in {"median": 0.5, "p10": 0.1}.items():
        metrics[f"test/aupimo_{name}"] = float(np.quantile(found, share))
    return metrics


def area_under_overlap(regions: Ranking, limit: float) -> float:
    """Area under the PRO curve for false positive rates 0..limit, divided by `limit`: 0..1.

    Each distinct score adds a ramp from the rate of normal pixels above it to the rate of those at
    or above it; its area up to the limit has a closed form. NaN when a class is empty.
    """
    if regions.empty:
        return math.nan
    above, upto = regions.normals_above / regions.normals, regions.normals_from / regions.normals
    return float(overlap_area(regions.hits, above, upto, limit))


def overlap_area(
    hits: NDArray[Any], above: NDArray[Any], upto: NDArray[Any], limit: float
) -> NDArray[Any]:
    """Partial area (...,) of region weights `hits` (..., K), scaled by `limit`.

    `above` and `upto` (..., K) are the rates of normal pixels strictly above and at or above.
    """
    stop = np.minimum(upto, limit)
    width = np.where(upto > above, upto - above, 1.0)  # a step has no ramp: its first term is 0
    areas = np.where(above < limit, (stop - above) ** 2 / (2 * width) + (limit - stop), 0.0)
    return np.sum(hits * areas, axis=-1) / hits.sum(axis=-1) / limit


def overlap_curve(regions: Ranking, limit: float) -> Curve:
    """False positive rate of pixels against PRO; one point that is NaN when a class is empty."""
    area = area_under_overlap(regions, limit)
    return dataclasses.replace(ranking.roc_curve(regions), kind="pro", area=area, limit=limit)


def image_overlaps(store: PixelStore, bounds: tuple[float, float] = BOUNDS) -> Floats:
    """AUPIMO of each image (n,) by index, 0..1; NaN for good ones.

    Exact: every score of a good image is a threshold, points are joined by straight lines over the
    logarithm of the rate. NaN for all images where no threshold gives good images a rate above 0
    and not above the lower bound: too few normal pixels, or too many share the highest score.
    """
    defects = store.defects
    values, rates = store.highest_normals(bounds[1])
    if not rates.size or rates[0] > bounds[0]:
        return np.full(defects.size, np.nan)
    edges = np.log(rates)
    low, high = np.clip(np.stack([edges[:-1], edges[1:]]), *np.log(bounds))
    areas = []
    for image in store.images():
        # found above and from each value on: a ramp over the rates of its normal pixels
        above, upto = (
            image.defect.size - np.searchsorted(image.defect, values[1:], side=side)
            for side in ("right", "left")
        )
        middle = ((low + high) / 2 - edges[:-1]) / np.diff(edges)
        areas.append(float(np.sum((above + (upto - above) * middle) * (high - low))))
    span = np.log(bounds[1] / bounds[0])
    return np.where(defects > 0, np.array(areas) / span / np.maximum(defects, 1), np.nan)


def pixel_f1(tp: Counts, fp: Counts, defects: Counts) -> float:
    """F1 of all pixels thrown together, from those of each image (n,)."""
    return ratio(2 * int(tp.sum()), int((tp + fp + defects).sum()))


def image_ious(tp: Counts, fp: Counts, defects: Counts) -> Floats:
    """IoU per image (...,) from its true positive, false positive and defective pixels.

    An image without defective and without detected pixels counts 1.
    """
    union = defects + fp
    return np.where(union == 0, 1.0, tp / np.maximum(union, 1))


def best_mean_iou(store: PixelStore) -> float:
    """The largest mean IoU over all thresholds, exactly, without trying them all.

    Lowering the threshold past a normal pixel can only hurt, so the best one detects everything
    from some defective pixel's score on, or nothing. Between two of those the true positives are
    at most those of the lower and the false positives at least those of the higher threshold; that
    bounds the mean IoU, and stretches whose bound does not beat the best are never opened.
    """
    defects, values = store.defects, store.rank().pixels.value  # (n,); (K,) descending
    best = float(np.mean(defects == 0))  # detect nothing
    edges = _spread(np.array([0]), np.array([values.size - 1]))
    while edges.size:
        tp, fp = store.counts_from(values[edges])
        best = max(best, float(image_ious(tp, fp, defects[:, None]).mean(axis=0).max()))
        bound = image_ious(tp[:, 1:], fp[:, :-1], defects[:, None]).mean(axis=0)
        opened = (np.diff(edges) > 1) & (bound > best)
        edges = _spread(edges[:-1][opened], edges[1:][opened])
    return best


def _spread(low: NDArray[Any], high: NDArray[Any]) -> NDArray[Any]:
    """About `_BRACKETS` positions spread over the stretches low..high, their ends included."""
    steps = max(_BRACKETS // max(low.size, 1), 2)
    share = np.arange(steps + 1) / steps
    grid = low[:, None] + (share * (high - low)[:, None]).astype(np.int64)
    return np.unique(np.r_[grid.ravel(), low, high])
