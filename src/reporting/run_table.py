"""The last thing a run prints: its headline numbers and where to look."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from src.evaluation.view import pixel_convention
from src.metrics import HEADLINES
from src.reporting.wording import checkpoint_choice
from src.result import realised_rate_limit
from src.saved_run import SavedRun


def print_run_table(run: SavedRun) -> None:
    """Print the table of a finished run."""
    metrics, console = run.metrics(), Console()
    config = run.config()
    threshold = run.read_json("model/threshold.json") if run.has("model/threshold.json") else {}
    part = config.data.category or Path(config.data.root).name
    title = f"{config.model.name} on {config.data.name} {part}"
    table = Table("metric", "value", "95 % interval", title=title, title_justify="left")
    for metric in HEADLINES:
        if metric.key in metrics and not metric.unit:  # times are told below
            key = metric.key
            table.add_row(metric.name, _number(metrics[key]), _interval(metrics, key))
    console.print(table)
    if "test/pixel_auroc" in metrics:
        console.print(pixel_convention(config))
    if chosen := checkpoint_choice(config.protocol, metrics):
        console.print(f"checkpoint: {chosen}")
    if threshold:
        labels = "TEST LABELS WERE USED" if threshold["oracle"] else "no test label was used"
        console.print(
            f"protocol {config.protocol}: {labels}; threshold {threshold['image']:.4g} by rule "
            f"{threshold['rule']}{_promise(threshold)}"
        )
    speed = metrics.get("speed/latency_p50_ms")
    if speed is not None:
        fitted = metrics.get("fit/seconds")
        took = f", fitted in {fitted:.1f} s" if fitted is not None else ""
        facts = run.read_json("manifest.json") if run.has("manifest.json") else {}
        several = f" by {facts['processes']} processes" if facts.get("processes", 1) > 1 else ""
        console.print(
            f"{speed:.0f} ms per image on {facts.get('device', 'this machine')}{took}{several}"
        )
    console.print(f"run     {run.directory}", soft_wrap=True)
    if run.has("report.html"):
        console.print(f"report  {run.directory / 'report.html'}", soft_wrap=True)


def _promise(threshold: Mapping[str, float]) -> str:
    if threshold.get("attained") is None:
        return ""
    average, n = threshold["attained"], int(threshold["n"])
    return (
        f": {100 * average:.2g} % of good parts alarm on average, up to "
        f"{100 * realised_rate_limit(n, average):.2g} % with these {n} calibration images (95 %)"
    )


def _interval(metrics: Mapping[str, float], key: str) -> str:
    low, high = metrics.get(f"{key}_ci_low"), metrics.get(f"{key}_ci_high")
    return "" if low is None or high is None else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:.4f}"
