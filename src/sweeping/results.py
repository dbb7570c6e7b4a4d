"""What a trial reported: read from the run folder it writes."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

LOG = Path("log") / "metrics.csv"  # the CSV logger of a run, always on


def run_folder(trial_folder: Path) -> Path | None:
    """The run folder below a trial's own RUNS_DIR; None: nothing was written yet."""
    for mark in ("metrics.json", "config.yaml"):
        found = sorted(trial_folder.rglob(mark), key=lambda path: path.stat().st_mtime)
        if found:
            return found[-1].parent
    return None


def final_metrics(folder: Path) -> dict[str, float]:
    """The finite metrics of a finished run; empty while it is not finished."""
    try:
        values = json.loads((folder / "metrics.json").read_text())
    except FileNotFoundError:
        return {}
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float) and is_finite(v)}


def metric_history(folder: Path, metric: str) -> list[float]:
    """Every value of `metric` that the run logged, in order."""
    try:
        with (folder / LOG).open(newline="") as stream:
            cells = [row.get(metric) for row in csv.DictReader(stream)]
    except (OSError, csv.Error):
        return []
    values = [_number(cell) for cell in cells if cell]
    return [value for value in values if value is not None]


def is_finite(value: float) -> bool:
    """A real number, neither NaN nor infinite."""
    return math.isfinite(value)


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:  # the last line may be half written
        return None
    return value if is_finite(value) else None
