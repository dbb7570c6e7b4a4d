"""Slow twins of the metrics: written from their definitions, with loops, for tests only."""

from __future__ import annotations

import itertools
import math

import numpy as np


def auroc(scores, labels):
    """Every pair of a defective and a normal item: 1 if ordered, 1/2 if equal."""
    positive = [s for s, y in zip(scores, labels, strict=True) if y]
    negative = [s for s, y in zip(scores, labels, strict=True) if not y]
    if not positive or not negative:
        return math.nan
    won = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative)
    return won / (len(positive) * len(negative))


def counts_at(scores, labels, cut):
    """(true positives, false positives) when every score >= cut is called a defect."""
    called = [(s >= cut, bool(y)) for s, y in zip(scores, labels, strict=True)]
    return sum(c and y for c, y in called), sum(c and not y for c, y in called)


def average_precision(scores, labels):
    """Sum over falling thresholds of precision times the gain in recall."""
    positives = sum(map(bool, labels))
    if not positives or positives == len(labels):
        return math.nan
    total, recall_before = 0.0, 0.0
    for cut in sorted(set(scores), reverse=True):
        tp, fp = counts_at(scores, labels, cut)
        total += (tp / positives - recall_before) * tp / (tp + fp)
        recall_before = tp / positives
    return total


def f1_max(scores, labels):
    """The best F1 of every possible cut."""
    positives = sum(map(bool, labels))
    if not positives or positives == len(labels):
        return math.nan
    f1 = []
    for cut in set(scores):
        tp, fp = counts_at(scores, labels, cut)
        f1.append(2 * tp / (tp + fp + positives))
    return max(f1)


def flood_regions(mask):
    """8-connected components by flood fill: a list of sets of (row, column)."""
    left = {(int(r), int(c)) for r, c in np.argwhere(mask)}
    regions = []
    while left:
        stack, region = [left.pop()], set()
        while stack:
            r, c = stack.pop()
            region.add((r, c))
            for dr, dc in itertools.product((-1, 0, 1), repeat=2):
                if (r + dr, c + dc) in left:
                    left.remove((r + dr, c + dc))
                    stack.append((r + dr, c + dc))
        regions.append(region)
    return regions


def pro_curve(maps, masks, *, anomaly_only=False):
    """Per falling threshold: false positive rate and mean covered share of the regions."""
    regions = [(i, region) for i, mask in enumerate(masks) for region in flood_regions(mask)]
    normal = [
        float(v)
        for m, mask in zip(maps, masks, strict=True)
        if mask.any() or not anomaly_only
        for v in m[~mask]
    ]
    points = [(0.0, 0.0)]
    for cut in sorted({float(v) for m in maps for v in m.ravel()}, reverse=True):
        overlap = [sum(maps[i][p] >= cut for p in region) / len(region) for i, region in regions]
        rate = sum(v >= cut for v in normal) / len(normal)
        points.append((rate, sum(overlap) / len(overlap)))
    return points


def area_up_to(points, limit):
    """Trapezoids of a polyline from x = 0 to x = limit, divided by limit."""
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            y1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            x1 = limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def aupro(maps, masks, limit, *, anomaly_only=False):
    """Area under the per-region overlap curve up to `limit`, scaled to 0..1."""
    return area_up_to(pro_curve(maps, masks, anomaly_only=anomaly_only), limit)


def image_iou(detected, mask):
    """U-Flow: (I + eps) / (U + eps)."""
    eps = np.finfo(float).eps
    return ((detected & mask).sum() + eps) / ((detected | mask).sum() + eps)


def mean_iou(maps, masks, threshold):
    """Mean over images, good ones included, of the IoU of {map > threshold}."""
    return float(np.mean([image_iou(m > threshold, k) for m, k in zip(maps, masks, strict=True)]))


def best_mean_iou(maps, masks):
    """Mean IoU at the best of all thresholds."""
    values = sorted({float(v) for m in maps for v in m.ravel()})
    return max(mean_iou(maps, masks, t) for t in [values[0] - 1, *values])


def conformal_threshold(scores, alpha):
    """Smallest score that at most alpha of n + 1 exchangeable scores can exceed; else the max."""
    n = len(scores)
    for candidate in sorted(scores):
        # The new score is the (n+1)-th; worst case it lies above every score that is <= candidate.
        rank = sum(s <= candidate for s in scores)
        if (n + 1 - rank) / (n + 1) <= alpha + 1e-12:
            return candidate
    return max(scores)


def resampled_auroc(scores, labels, generator, rounds):
    """One AUROC a round: normals and defectives drawn with replacement, separately."""
    scores, labels = np.asarray(scores), np.asarray(labels).astype(bool)
    positive, negative = scores[labels], scores[~labels]
    values = []
    for _ in range(rounds):
        p = generator.choice(positive, positive.size)
        n = generator.choice(negative, negative.size)
        values.append(auroc([*p, *n], [1] * p.size + [0] * n.size))
    return np.array(values)


def spro_curve(maps, masks, regions):
    """Per falling threshold: false positive rate and mean of min(overlap / saturation, 1).

    `regions`: (marked pixels, saturation) of each image; None: its connected regions, whole.
    """
    defects = [
        (i, set(map(tuple, np.argwhere(pixels))), area)
        for i, own in enumerate(regions)
        for pixels, area in own or []
    ]
    for i, mask in enumerate(masks):
        if regions[i] is None:
            defects += [(i, region, len(region)) for region in flood_regions(mask)]
    normal = [float(v) for m, mask in zip(maps, masks, strict=True) for v in m[~mask]]
    points = [(0.0, 0.0)]
    for cut in sorted({float(v) for m in maps for v in m.ravel()}, reverse=True):
        found = [
            min(sum(maps[i][p] >= cut for p in region) / min(area, len(region)), 1)
            for i, region, area in defects
        ]
        rate = sum(v >= cut for v in normal) / len(normal)
        points.append((rate, sum(found) / len(found)))
    return points


def aupimo(maps, masks, low, high):
    """Per image the mean share of defective pixels found over ln(rate) in low..high; else NaN."""
    good = [m for m, mask in zip(maps, masks, strict=True) if not mask.any()]
    values = []
    for anomaly_map, mask in zip(maps, masks, strict=True):
        points, area = [], 0.0
        for cut in sorted({float(v) for m in maps for v in m.ravel()}, reverse=True):
            rate = sum(float((m >= cut).mean()) for m in good) / max(len(good), 1)
            if rate > 0:
                share = float((anomaly_map[mask] >= cut).mean()) if mask.any() else math.nan
                points.append((math.log(rate), share))
        if not points or points[0][0] > math.log(low) or not mask.any():
            values.append(math.nan)
            continue
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            a, b = (min(max(x, math.log(low)), math.log(high)) for x in (x0, x1))
            if a < b:
                at_a, at_b = (y0 + (y1 - y0) * (x - x0) / (x1 - x0) for x in (a, b))
                area += (b - a) * (at_a + at_b) / 2
        values.append(area / math.log(high / low))
    return values


def delong(scores, labels):
    """AUROC of each row of scores and their covariance, from every pair of images."""
    positive = [i for i, y in enumerate(labels) if y]
    negative = [i for i, y in enumerate(labels) if not y]

    def wins(row, i, j):
        return 1.0 if row[i] > row[j] else 0.5 if row[i] == row[j] else 0.0

    pairs = [[[wins(row, i, j) for j in negative] for i in positive] for row in scores]
    pairs = np.array(pairs)  # (rows, positive, negative)
    areas = pairs.mean(axis=(1, 2))
    covariance = np.zeros((len(scores),) * 2)
    for a, b in itertools.product(range(len(scores)), repeat=2):
        for axis, count in ((2, len(positive)), (1, len(negative))):
            left, right = (pairs[k].mean(axis=axis - 1) - areas[k] for k in (a, b))
            covariance[a, b] += float(left @ right) / (count - 1) / count
    return areas, covariance
