"""How long the pixel metrics of a test set take, ours against the straightforward way.

    python -m tests.bench.bench_metrics [images] [side]

The straightforward way is what most code bases do: scikit-learn on all pixels for each metric, and
one ROC per ground-truth region for AUPRO (timed on a few regions, multiplied), every map against
every threshold for the best mean IoU (timed on 40 thresholds, multiplied). Both sides get the same
maps and masks in memory.
Not collected by pytest: times belong in a quiet machine's log.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from src.evaluation import overlap, ranking, uncertainty
from src.evaluation.pixels import PixelStore
from src.evaluation.uncertainty import HISTOGRAM_BINS


def draw(images: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth maps (n, side, side) float32 and round defects on three quarters of them."""
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(
        rng.normal(size=(images, side, side)), (0, side / 40, side / 40)
    )
    maps = noise / noise.std(axis=(1, 2), keepdims=True)
    masks = np.zeros(maps.shape, dtype=bool)
    y, x = np.mgrid[:side, :side]
    for i in range(images // 4, images):
        for _ in range(rng.integers(1, 4)):
            radius, (r, c) = rng.uniform(0.03, 0.15) * side, rng.uniform(0.1, 0.9, 2) * side
            masks[i] |= (y - r) ** 2 + (x - c) ** 2 < radius**2
        maps[i] += 3 * ndimage.gaussian_filter(masks[i].astype(float), side / 60)
    return maps.astype(np.float32), masks


def seconds(work: Callable[[], object]) -> tuple[float, object]:
    """Wall time of the better of two runs, and the result."""
    best, result = float("inf"), None
    for _ in range(2):
        began = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - began)
    return best, result


def per_region_aupro(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """One ROC per region against all normal pixels, resampled and averaged."""
    grid = np.linspace(0, limit, 1001)
    normal = maps[~masks]
    curves = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        for region in range(1, count + 1):
            inside = anomaly_map[labels == region]
            truth = np.r_[np.ones(inside.size, bool), np.zeros(normal.size, bool)]
            fpr, tpr, _ = sklearn_metrics.roc_curve(truth, np.r_[inside, normal])
            curves.append(np.interp(grid, fpr, tpr))
    return float(np.trapezoid(np.mean(curves, axis=0), grid) / limit)


def iou_grid(maps: np.ndarray, masks: np.ndarray, thresholds: np.ndarray) -> float:
    """The best mean IoU by comparing every map with every threshold."""
    means = []
    for threshold in thresholds:
        detected = maps > threshold
        both = (detected & masks).sum(axis=(1, 2))
        either = (detected | masks).sum(axis=(1, 2))
        means.append(np.where(either == 0, 1.0, both / np.maximum(either, 1)).mean())
    return float(max(means))


def main() -> None:
    """Print one line a metric: ours, straightforward, ratio, and both values."""
    given = [int(word) for word in sys.argv[1:]]
    images, side = given + [83, 256][len(given) :]  # MVTec AD bottle on the default grid
    maps, masks = draw(images, side)
    flat, truth = maps.ravel(), masks.ravel()
    regions = sum(ndimage.label(mask, np.ones((3, 3)))[1] for mask in masks)
    print(f"{images} images of {side}x{side}: {flat.size:,} pixels, {regions} regions")

    def collect() -> PixelStore:
        store = PixelStore(4.0)
        for index in range(images):
            store.add(index, maps[index], masks[index])
        return store

    store_s, store = seconds(collect)
    assert isinstance(store, PixelStore)
    rank_s, ranked = seconds(store.rank)
    print(f"collect {store_s:.3f} s, one sort for all metrics {rank_s:.3f} s")
    shown = slice(0, min(regions, 5))  # a few regions are enough to extrapolate from
    few = masks.copy()
    kept = np.flatnonzero(masks.any(axis=(1, 2)))[shown]
    few[np.setdiff1d(np.arange(images), kept)] = False
    few_regions = sum(ndimage.label(mask, np.ones((3, 3)))[1] for mask in few)
    slow_pro_s, _ = seconds(lambda: per_region_aupro(maps, few, 0.3))
    cut = np.linspace(flat.min(), flat.max(), 40)
    slow_iou_s, _ = seconds(lambda: iou_grid(maps, masks, cut))
    lines = [
        ("pixel AUROC", lambda: ranking.area_under_roc(ranked.pixels),
         seconds(lambda: sklearn_metrics.roc_auc_score(truth, flat))[0]),
        ("pixel AP", lambda: ranking.area_under_precision(ranked.pixels),
         seconds(lambda: sklearn_metrics.average_precision_score(truth, flat))[0]),
        ("pixel F1-max", lambda: ranking.f1_max(ranked.pixels),
         seconds(lambda: sklearn_metrics.precision_recall_curve(truth, flat))[0]),
        ("AUPRO 0.3", lambda: overlap.area_under_overlap(ranked.regions, 0.3),
         slow_pro_s * regions / few_regions),
        ("best mean IoU", lambda: overlap.best_mean_iou(store),
         slow_iou_s * 1401 / cut.size),  # the number of thresholds of U-Flow's oracle
    ]  # fmt: skip
    ours_s, theirs_s = store_s + rank_s, 0.0
    print(f"{'':14s} {'value':>8s} {'ours':>10s} {'plain':>10s}")
    for name, work, plain in lines:
        took, value = seconds(work)
        ours_s, theirs_s = ours_s + took, theirs_s + plain
        print(f"{name:14s} {value:8.4f} {took * 1e3:7.1f} ms {plain:8.2f} s")
    print(f"{'together':14s} {'':8s} {ours_s:8.2f} s {theirs_s:8.2f} s   {theirs_s / ours_s:.0f}x")
    weights = uncertainty.stratified_weights(store.defects > 0, 2000, np.random.default_rng(0))
    limits = {"test/aupro": 0.3, "test/aupro_05": 0.05}
    took, _ = seconds(
        lambda: uncertainty.pixel_metrics(store.histograms(HISTOGRAM_BINS), weights, limits)
    )
    print(f"2000 resamples of all pixel metrics: {took:.2f} s")


if __name__ == "__main__":
    main()
