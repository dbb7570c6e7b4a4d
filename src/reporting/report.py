"""One self-contained page of a run: `report.html`.

It can be read without JavaScript; with it, pictures can be filtered, compared and zoomed and the
threshold can be moved.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from src.files import write_text
from src.metrics import HIGH, LOW, METRICS
from src.reporting import charts, figures, page_images, wording
from src.reporting.page_images import Layers
from src.reporting.pages import render_page
from src.reporting.records import ReportData, choose_pictures, margin
from src.saved_run import ScoreRow

_MAX_CARDS = 5000  # rows without a picture are small, but not free; scores.csv holds all


class Card(NamedTuple):
    """One image in the gallery."""

    number: int
    row: ScoreRow
    score: str
    layers: Layers | None

    @property
    def alt(self) -> str:
        """What a screen reader says of the picture."""
        truth = {0: "normal", 1: f"defective ({self.row.defect})"}.get(self.row.label, "no label")
        return f"{self.row.path}: {truth}, score {self.score}, {self.row.outcome}"


def write_report(
    path: Path, data: ReportData, *, max_images: int, max_side: int, max_megabytes: float
) -> None:
    """Write the page to `path`.

    Pictures of up to `max_images` images, the most telling first, fill up to `max_megabytes`; no
    side is longer than `max_side` pixels. All other images are listed without a picture.
    """
    threshold, images = score_threshold(data), data.images

    def worst_first(index: int) -> tuple[bool, float, int]:
        """Wrong decisions by how wrong they are, then right ones by how close they were."""
        wrong = images[index].outcome in ("miss", "false alarm")
        away = margin(images[index], threshold)
        return not wrong, -away if wrong else away, index

    chart = charts.score_chart(images, threshold)
    chosen = choose_pictures(images, threshold, len(images))
    layers = _encode(data, chosen[:max_images], max_side, max_megabytes * 1e6)
    page = render_page(
        "report.html.j2", "report.css", "report.js",
        data=data, wording=wording, geometry=charts,
        chart=chart,
        deciders=_decider_cards(data, max_side),
        cards=[
            Card(i, images[i], wording.score(images[i].score), layers.get(i))
            for i in sorted(chosen[:_MAX_CARDS], key=worst_first)
        ],
        pictures=len(layers),
        extra=sorted({name for each in layers.values() for name in each.extra}),
        counts=Counter(row.outcome for row in images),
        legend=page_images.webp(figures.colours_of(data.scale, 241, 12), lossless=True),
        device=data.manifest.get("device", "this machine"),
        runtime=_metric_rows(data, ("speed/", "fit/")),
        metrics=_metric_rows(data, ("test/",)),
        manifest=flatten(data.manifest),
        page_data=page_data(data, threshold, chart),
    )  # fmt: skip
    write_text(path, page)


def score_threshold(data: ReportData) -> float:
    """The threshold on the scores; NaN where regions decide: a line would be a lie."""
    limit = data.threshold.image
    agrees = all((row.score > limit) == row.decision for row in data.images)
    return limit if agrees else math.nan


def page_data(data: ReportData, threshold: float, chart: charts.ScoreChart) -> dict[str, Any]:
    """What the script needs: a short row an image, the threshold, its axis and what it rests on."""

    def finite(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    rows = [[x.path, x.label, x.defect, finite(x.score), int(x.decision)] for x in data.images]
    return {"rows": rows, "threshold": finite(threshold), "low": chart.low, "high": chart.high,
            "normal": list(data.normal_scores)}  # fmt: skip


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as (dotted key, text) rows, in order."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            rows.append((f"{prefix}{key}", text))
    return rows


def _encode(
    data: ReportData, chosen: list[int], max_side: int, max_bytes: float
) -> dict[int, Layers]:
    """Layers of the chosen images, one in memory at a time, until the page is full."""
    layers: dict[int, Layers] = {}
    used = 0
    for index in chosen:
        if (draw := data.pictures.get(index)) is not None:
            encoded = page_images.encode_layers(draw(), data.scale, max_side)
            used += encoded.size
            if used > max_bytes:
                break
            layers[index] = encoded
    return layers


def _decider_cards(data: ReportData, max_side: int) -> list[tuple[str, str, str]]:
    """(path, score, picture with map) of the images that set the threshold."""
    cards = []
    for path, score, picture in data.deciders:
        drawn = figures.overlay(picture, data.scale)
        small = figures.fit_within(drawn, min(max_side, max(drawn.shape)))
        cards.append((path, wording.score(score), page_images.webp(small)))
    return cards


def _metric_rows(data: ReportData, prefixes: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Key, value and interval of the metrics whose keys begin like this."""
    rows = []
    for key, value in data.metrics.items():
        if key.startswith(prefixes) and not key.endswith((LOW, HIGH)):
            text = wording.number(value, METRICS[key].unit if key in METRICS else "")
            rows.append((key, text, wording.interval(data.metrics, key)))
    return rows
