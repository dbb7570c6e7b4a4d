"""What finished runs measured, read from their folders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

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
from src.scores_table import ScoreRow, read_scores

RESAMPLES = 2000  # as evaluation.bootstrap
OWN = "test/image_auroc"  # has a better interval of its own


def measure(folder: Path, job: Job) -> Measured:
    """The numbers of a finished run, with every interval that its folder allows."""
    run = SavedRun(folder)
    metrics = run.metrics()
    intervals = resampled_intervals(read_scores(folder)) | stored_intervals(metrics)
    return Measured(
        seed=job.seed,
        metrics=metrics,
        intervals=intervals,
        config_hash=job.key.rpartition("-")[2],
        protocol=str(run.config().get("protocol", "")),
        seconds=metrics.get("fit/seconds", math.nan),
    )


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


def resampled_intervals(rows: Sequence[ScoreRow]) -> dict[str, Interval]:
    """Intervals of image AP, image F1-max and mIoU, resampling the images of scores.csv."""
    known = [row for row in rows if row.label in (NORMAL, DEFECTIVE)]
    defect = np.array([row.label == DEFECTIVE for row in known], dtype=bool)
    if not defect.any() or defect.all():
        return {}
    weights = stratified_weights(defect, RESAMPLES, np.random.default_rng(0))
    drawn = image_metrics([row.score for row in known], defect, weights)
    found = {name: percentile_interval(values) for name, values in drawn.items() if name != OWN}
    ious = np.array([row.iou for row in known])
    seen = np.isfinite(ious)  # the images that mIoU is the mean of
    if seen.any():
        weights = stratified_weights(defect[seen], RESAMPLES, np.random.default_rng(0))
        found["test/miou"] = percentile_interval(weights @ ious[seen] / seen.sum())
    return found


def cells(jobs: Sequence[Job]) -> dict[str, list[Measured]]:
    """Measurements of finished jobs by category."""
    found: dict[str, list[Measured]] = {}
    for job in jobs:
        if (folder := job.folder) is not None:
            found.setdefault(job.category, []).append(measure(folder, job))
    return found
