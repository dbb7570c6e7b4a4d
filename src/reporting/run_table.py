"""The last thing a run prints: its headline numbers and where to look."""

from rich.console import Console
from rich.table import Table

from src.data.record import place_of
from src.evaluation.threshold import POINTS, OperatingPoint, deciding
from src.evaluation.view import pixel_convention
from src.metrics import HEADLINES
from src.reporting import wording
from src.result import Threshold
from src.saved_run import SavedRun


def print_result(run: SavedRun, *, repeated: bool = False) -> None:
    """Metrics and paths of a finished run on the console."""
    if repeated:
        print(f"Already finished (force=true repeats it): {run.directory}")
    metrics, config, console = run.metrics(), run.config(), Console()
    title = f"{config.model.name} on {config.data.name} {place_of(config.data)[1]}"
    table = Table("metric", "value", "95 % interval", title=title, title_justify="left")
    for metric in HEADLINES:
        if (key := metric.key) in metrics and not metric.unit:  # times are told below
            table.add_row(metric.name, wording.number(metrics[key]), wording.interval(metrics, key))
    console.print(table)
    if rows := wording.category_rows(metrics):
        table = Table("category", *wording.CATEGORY_NAMES, title="each by its own threshold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if "test/pixel_auroc" in metrics:
        console.print(pixel_convention(config))
    if chosen := wording.checkpoint_choice(config.protocol, metrics):
        console.print(f"checkpoint: {chosen}")
    if run.has("model/threshold.json"):
        threshold = Threshold.from_json(run.read_json("model/threshold.json"))
        normal = run.calibration()
        labels = "TEST LABELS WERE USED" if threshold.oracle else "no test label was used"
        console.print(
            f"protocol {config.protocol}: {labels}; threshold {threshold.image:.4g} by rule "
            f"{threshold.rule} {wording.aim(threshold, normal.way if normal else None)}".rstrip()
        )
        if run.has(POINTS):
            points = [OperatingPoint.from_row(row) for row in run.read_rows(POINTS)]
            wanted = (points[0].attained, 0.05, 0.1, threshold.alpha)  # the strictest, the usual
            shown = {point.threshold: point for point in reversed(points) if point.possible}
            table = Table("alpha", "threshold", "promised", "defects found", "false alarms")
            for point in reversed(shown.values()):
                if point.alpha in wanted or point.threshold == threshold.image:
                    table.add_row(*wording.point_texts(point))
            console.print(table)
        if decides := deciding(normal, threshold):
            console.print(
                wording.deciding_sentence(decides), soft_wrap=True, highlight=False, markup=False
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
