"""What finished runs measured, read from their folders."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.evaluation.uncertainty import (
    Interval,
    image_metrics,
    percentile_interval,
    stratified_weights,
)
from src.reproduction.jobs import Job
from src.reproduction.judging import Measured
from src.reproduction.ledger import Ledger
from src.saved_run import SavedRun

RESAMPLES = 2000  # as evaluation.bootstrap
RESAMPLED = ("test/image_ap", "test/image_f1_max")  # AUROC has a better interval of its own
LOW, HIGH = "_ci_low", "_ci_high"
#: Metrics without an interval of their own borrow the distances of a near relative.
RELATIVES = {
    "test/aupro_defective_only": "test/aupro",
    "test/pixel_auroc_defective_only": "test/pixel_auroc",
    "test/miou_oracle": "test/miou",
}


def measure(job: Job, ledger: Ledger) -> Measured:
    """The numbers of a finished job, with every interval that its folder allows."""
    run = SavedRun(job.folder)
    metrics = run.metrics()
    intervals = stored_intervals(metrics) | resampled_intervals(job.folder / "scores.csv", metrics)
    seconds = ledger.seconds(job.key)
    return Measured(
        seed=job.seed,
        metrics=metrics,
        intervals=intervals | borrowed_intervals(metrics, intervals),
        config_hash=job.folder.name.rpartition("-")[2],
        protocol=str(run.config().get("protocol", "")),
        seconds=math.nan if seconds is None else seconds,
    )


def stored_intervals(metrics: dict[str, float]) -> dict[str, Interval]:
    """Intervals that evaluation wrote beside its metrics.

    Under a paper's protocol a metric may come from another epoch than its interval. When it lies
    outside, it gets an interval of the same width around itself.
    """
    found = {}
    for name in [key.removesuffix(LOW) for key in metrics if key.endswith(LOW)]:
        value, low, high = metrics.get(name, math.nan), metrics[name + LOW], metrics[name + HIGH]
        if value < low or value > high:
            low, high = value - (high - low) / 2, value + (high - low) / 2
        found[name] = Interval(low, high)
    return found


def resampled_intervals(table: Path, metrics: dict[str, float]) -> dict[str, Interval]:
    """Intervals of image AP, image F1-max and mIoU, resampling the images of scores.csv."""
    scores, defect, ious = _read_scores(table)
    if not defect.any() or defect.all():
        return {}
    weights = stratified_weights(defect, RESAMPLES, np.random.default_rng(0))
    drawn = image_metrics(scores, defect, weights)
    found = {name: percentile_interval(drawn[name]) for name in RESAMPLED}
    if np.isfinite(ious).all() and "test/miou" in metrics:
        found["test/miou"] = percentile_interval(weights @ ious / len(ious))
    return found


def borrowed_intervals(
    metrics: dict[str, float], intervals: dict[str, Interval]
) -> dict[str, Interval]:
    """Intervals of RELATIVES: the same distances around another value."""
    found = {}
    for name, relative in RELATIVES.items():
        if name in metrics and name not in intervals and relative in intervals:
            shift = metrics[name] - metrics[relative]
            low, high = intervals[relative]
            found[name] = Interval(low + shift, high + shift)
    return found


def _read_scores(table: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, truth and IoU of the labelled images of scores.csv, each (n,); IoU may be NaN."""
    try:
        with table.open(newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if row["label"] in ("0", "1")]
    except FileNotFoundError:
        rows = []
    scores = np.array([float(row["score"]) for row in rows])
    defect = np.array([row["label"] == "1" for row in rows], dtype=bool)
    return scores, defect, np.array([_iou(row) for row in rows], dtype=float)


def _iou(row: dict[str, str]) -> float:
    text = row.get("iou")
    return float(text) if text else math.nan


def cells(jobs: Sequence[Job], ledger: Ledger) -> dict[str, list[Measured]]:
    """Measurements of finished jobs by category."""
    found: dict[str, list[Measured]] = {}
    for job in jobs:
        if job.is_finished():
            found.setdefault(job.category, []).append(measure(job, ledger))
    return found
