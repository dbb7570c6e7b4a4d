"""The last thing a run prints: its headline numbers and where to look."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from src.evaluation.view import pixel_convention
from src.metrics import HEADLINES, HIGH, LOW
from src.reporting.wording import checkpoint_choice, interval, number
from src.result import Threshold
from src.saved_run import SavedRun


def print_run_table(run: SavedRun) -> None:
    """Print the table of a finished run."""
    metrics, config, console = run.metrics(), run.config(), Console()
    part = config.data.category or Path(config.data.root).name
    title = f"{config.model.name} on {config.data.name} {part}"
    table = Table("metric", "value", "95 % interval", title=title, title_justify="left")
    for metric in HEADLINES:
        if (key := metric.key) in metrics and not metric.unit:  # times are told below
            known = f"{key}{LOW}" in metrics
            ends = (metrics[f"{key}{LOW}"], metrics[f"{key}{HIGH}"]) if known else None
            table.add_row(metric.name, number(metrics[key]), interval(ends))
    console.print(table)
    if "test/pixel_auroc" in metrics:
        console.print(pixel_convention(config))
    if chosen := checkpoint_choice(config.protocol, metrics):
        console.print(f"checkpoint: {chosen}")
    if run.has("model/threshold.json"):
        threshold = Threshold.from_json(run.read_json("model/threshold.json"))
        labels = "TEST LABELS WERE USED" if threshold.oracle else "no test label was used"
        console.print(
            f"protocol {config.protocol}: {labels}; threshold {threshold.image:.4g} by rule "
            f"{threshold.rule}{_promise(threshold)}"
        )
    if (speed := metrics.get("speed/latency_p50_ms")) is not None:
        fitted = metrics.get("fit/seconds")
        took = f", fitted in {fitted:.1f} s" if fitted is not None else ""
        facts = run.read_json("manifest.json") if run.has("manifest.json") else {}
        several = f" by {facts['processes']} processes" if facts.get("processes", 1) > 1 else ""
        device = facts.get("device", "this machine")
        console.print(f"{speed:.0f} ms per image on {device}{took}{several}")
    console.print(f"run     {run.directory}", soft_wrap=True)
    if run.has("report.html"):
        console.print(f"report  {run.directory / 'report.html'}", soft_wrap=True)


def _promise(threshold: Threshold) -> str:
    average, limit = threshold.attained, threshold.attained_limit
    if average is None or limit is None:
        return ""
    return (
        f": {100 * average:.2g} % of good parts alarm on average, up to {100 * limit:.2g} % with "
        f"these {threshold.n} calibration images (95 %)"
    )
