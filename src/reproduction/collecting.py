"""What finished runs measured, read from their folders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from src.data.samples import DEFECTIVE, NORMAL
from src.evaluation.uncertainty import (
    Interval,
    image_metrics,
    percentile_interval,
    stratified_weights,
)
from src.metrics import HIGH, LOW
from src.reproduction.judging import Measured
from src.reproduction.planning import Job
from src.saved_run import SavedRun

RESAMPLES = 2000  # as evaluation.bootstrap
OWN = "test/image_auroc"  # has a better interval of its own


def measurements(jobs: Sequence[Job]) -> dict[str, list[Measured]]:
    """What finished jobs measured, by category, with every interval that their folders allow."""
    found: dict[str, list[Measured]] = {}
    for job in jobs:
        if (folder := job.folder) is None:
            continue
        run = SavedRun(folder)
        metrics = run.metrics()
        found.setdefault(job.category, []).append(
            Measured(
                seed=job.seed,
                metrics=metrics,
                intervals=resampled_intervals(run.scores()) | stored_intervals(metrics),
                config_hash=job.key.rpartition("-")[2],
                protocol=str(run.config().get("protocol", "")),
                seconds=metrics.get("fit/seconds", math.nan),
            )
        )
    return found


def stored_intervals(metrics: dict[str, float]) -> dict[str, Interval]:
    """Intervals that evaluation wrote beside its metrics.

    Under a paper's protocol a metric may come from another epoch than its interval; one that does
    not hold its metric is left out.
    """
    found = {}
    for name in [key.removesuffix(LOW) for key in metrics if key.endswith(LOW)]:
        interval = Interval(metrics[name + LOW], metrics[name + HIGH])
        if interval.low <= metrics.get(name, math.nan) <= interval.high:
            found[name] = interval
    return found


def resampled_intervals(images: pd.DataFrame) -> dict[str, Interval]:
    """Intervals of image AP, image F1-max and mIoU, resampling the `images` of scores.csv."""
    known = images[images.label.isin([NORMAL, DEFECTIVE])]
    defect = (known.label == DEFECTIVE).to_numpy()
    if not defect.any() or defect.all():
        return {}
    weights = stratified_weights(defect, RESAMPLES, np.random.default_rng(0))
    drawn = image_metrics(known.score, defect, weights)
    found = {name: percentile_interval(values) for name, values in drawn.items() if name != OWN}
    ious = known.iou.to_numpy()
    seen = np.isfinite(ious)  # the images that mIoU is the mean of
    if seen.any():
        weights = stratified_weights(defect[seen], RESAMPLES, np.random.default_rng(0))
        found["test/miou"] = percentile_interval(weights @ ious[seen] / seen.sum())
    return found
