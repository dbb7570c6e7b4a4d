"""Metrics of where the anomaly is: AUPRO and intersection over union.

AUPRO (Bergmann et al., MVTec AD, IJCV 2021): at a threshold the per-region overlap (PRO) is the
mean, over all ground-truth regions of all images, of the share of the region that is detected. It
is drawn against the false positive rate over all normal pixels of all test images, good images
included, and its area from 0 to `limit` is divided by `limit`. Regions are 8-connected.

PRO is recall with weights: a defective pixel counts 1 / (pixels of its region x regions). So a
`ranking.Ranking` whose `hits` carry those weights gives AUPRO from the sort that AUROC needs
anyway, exactly: no threshold grid, ties are one step, the last step is interpolated at the limit.

IoU follows U-Flow (uflow, src/evaluate.py): per image, averaged over all test images. A good image
counts 1 when nothing is detected and 0 as soon as one pixel is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from src.evaluation.ranking import Counts, Floats, Ranking, ratio, roc_curve
from src.result import Curve

#: Candidate thresholds looked at together while searching the best mean IoU.
_BRACKETS = 256

CountsFrom = Callable[[NDArray[Any]], tuple[Counts, Counts]]


class BestIoU(NamedTuple):
    """The largest mean IoU; reached by detecting values[position] and above (-1: nothing)."""

    mean_iou: float
    position: int


def region_sizes(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Size in pixels of the 8-connected region each marked pixel belongs to.

    mask (H, W) bool -> sizes (m,) int32 in the order of `mask.nonzero()`.
    """
    labels, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=int))
    sizes = np.bincount(labels.ravel(), minlength=count + 1).astype(np.int32)
    return sizes[labels[mask]]


def area_under_overlap(regions: Ranking, limit: float) -> float:
    """Area under the PRO curve for false positive rates 0..limit, divided by `limit`: 0..1.

    `regions.hits` are region weights. Each distinct score adds a ramp that starts at the rate of
    normal pixels above it and is complete at the rate of those at or above it; its area up to the
    limit has a closed form. NaN without defective or without normal pixels.
    """
    if regions.empty:
        return float("nan")
    above = regions.normals_above / regions.normals
    upto = regions.normals_from / regions.normals
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
    return dataclasses.replace(roc_curve(regions), kind="pro", area=area, limit=limit)


def image_ious(tp: Counts, fp: Counts, defects: Counts) -> Floats:
    """IoU per image (...,) from its true positive, false positive and defective pixels.

    An image without defective and without detected pixels counts 1.
    """
    union = defects + fp
    return np.where(union == 0, 1.0, tp / np.maximum(union, 1))


def pooled_iou(tp: Counts, fp: Counts, defects: Counts) -> float:
    """IoU of all pixels of all images thrown together; NaN when nothing is marked or detected."""
    return ratio(int(tp.sum()), int((defects + fp).sum()))


def best_mean_iou(values: NDArray[Any], counts_from: CountsFrom, defects: Counts) -> BestIoU:
    """The largest mean IoU over all thresholds, exactly, without trying them all.

    Lowering the threshold past a normal pixel can only hurt, so the best one detects everything
    from some defective pixel's score on, or nothing. Between two of those the true positives are
    at most those of the lower and the false positives at least those of the higher threshold; that
    bounds the mean IoU, and stretches whose bound does not beat the best are never opened.

    Args:
        values: (K,) distinct scores of defective pixels, descending.
        counts_from: cuts (T,) -> true and false positives (n, T) of detecting every score >= cut.
        defects: (n,) defective pixels per image.

    Returns:
        The mean IoU and the position in `values`.
    """
    best = BestIoU(float(np.mean(defects == 0)), -1)  # detect nothing
    edges = _spread(np.array([0]), np.array([values.size - 1]), _BRACKETS)
    while edges.size:
        tp, fp = counts_from(values[edges])
        means = image_ious(tp, fp, defects[:, None]).mean(axis=0)
        top = int(np.argmax(means))
        if means[top] > best.mean_iou:
            best = BestIoU(float(means[top]), int(edges[top]))
        bound = image_ious(tp[:, 1:], fp[:, :-1], defects[:, None]).mean(axis=0)
        opened = (np.diff(edges) > 1) & (bound > best.mean_iou)
        edges = _spread(edges[:-1][opened], edges[1:][opened], _BRACKETS)
    return best


def _spread(low: NDArray[Any], high: NDArray[Any], total: int) -> NDArray[Any]:
    """About `total` positions spread over the stretches low..high, their ends included."""
    if not low.size:
        return np.empty(0, dtype=np.int64)
    steps = max(total // low.size, 2)
    share = np.arange(steps + 1) / steps
    grid = low[:, None] + (share * (high - low)[:, None]).astype(np.int64)
    return np.unique(np.r_[grid.ravel(), low, high])
