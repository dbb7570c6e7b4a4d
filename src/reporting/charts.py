"""Geometry of the charts of a run, drawn twice: by templates for the page, by `chart_files` else.

Inline SVG follows the colours of the page and its threshold can move. x is in percent of the plot's
width, so that charts need no script to fit any screen; y is in pixels from the top.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from src.data.samples import DEFECTIVE, NORMAL, UNKNOWN
from src.result import Curve, DefectRecall
from src.saved_run import ScoreRow

_HIST_PX, _STRIP_PX, _TOP_PX = 150, 42, 22
_KINDS = {NORMAL: "normal", DEFECTIVE: "defective", UNKNOWN: "unknown"}
_MAX_DOTS = 4000  # more circles make a page slow to scroll

#: Title and names of the axes of a curve, by its kind.
CURVES = {
    "roc": ("ROC of images", "false positive rate", "true positive rate"),
    "pr": ("Precision and recall", "recall", "precision"),
    "pro": ("Region overlap (PRO)", "false positive rate of pixels", "mean region overlap"),
}


class Bar(NamedTuple):
    """One column of the histogram."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Dot:
    """One image in the strip of its defect type."""

    x: float
    y: float
    kind: str
    index: int


class ScoreChart(NamedTuple):
    """Histogram above strips of dots over one axis of scores from `low` to `high`."""

    low: float
    high: float
    height: int
    base: int  # y of the histogram's foot
    most: int  # images in its highest column
    strip: int  # height of one strip
    bars: list[Bar]
    dots: list[Dot]
    strips: list[tuple[str, int]]  # name and y of the strip's top
    ticks: list[tuple[float, str]]  # x and text
    threshold: float | None  # x in percent; None: not finite
    left_out: int  # images without a finite score, or beyond _MAX_DOTS
    kinds: list[str]


def score_chart(images: Sequence[ScoreRow], threshold: float) -> ScoreChart:
    """Chart of all images with a finite score."""
    finite = [index for index, row in enumerate(images) if math.isfinite(row.score)]
    scores = np.array([images[index].score for index in finite])
    labels = np.array([images[index].label for index in finite])
    low, high = axis_range(scores, threshold)
    base = _TOP_PX + _HIST_PX
    names = defect_names(images)
    tops = {name: base + 14 + row * _STRIP_PX for row, name in enumerate(names)}
    bars, most = _bars(scores, labels, low, high)
    drawn, dots = finite[:: max(1, -(-len(finite) // _MAX_DOTS))], []
    for index in drawn:
        row = images[index]
        spread = (index * 0.6180339887) % 1.0  # the golden ratio parts equal scores evenly
        y = round(tops[row.defect] + 21 + spread * (_STRIP_PX - 26), 1)
        dots.append(Dot(percent(row.score, low, high), y, _KINDS[row.label], index))
    return ScoreChart(
        low, high, height=base + 14 + len(names) * _STRIP_PX, base=base, most=most, strip=_STRIP_PX,
        bars=bars, dots=dots, strips=list(tops.items()),
        ticks=[(percent(value, low, high), f"{value:.10g}") for value in nice_ticks(low, high)],
        threshold=percent(threshold, low, high) if math.isfinite(threshold) else None,
        left_out=len(images) - len(drawn),
        kinds=[kind for label, kind in _KINDS.items() if (labels == label).any()],
    )  # fmt: skip


def defect_names(images: Sequence[ScoreRow]) -> list[str]:
    """Names of the defect types, good parts first."""
    return sorted({row.defect for row in images}, key=lambda name: (name != "good", name))


def axis_range(scores: np.ndarray, threshold: float) -> tuple[float, float]:
    """Ends of an axis that holds all scores (n,) and the threshold with a little room."""
    values = np.r_[scores, threshold] if math.isfinite(threshold) else scores
    if values.size == 0:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    room = 0.03 * (high - low)
    if room <= 1e-9 * max(abs(low), abs(high)):
        room = 0.5 * max(abs(low), abs(high), 1e-9)
    return low - room, high + room


def percent(value: float, low: float, high: float) -> float:
    """Place of a value on an axis, 0..100."""
    return round(100.0 * (value - low) / (high - low), 3)


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside low..high, about six."""
    step = 10.0 ** math.floor(math.log10((high - low) / 6))
    step *= next(m for m in (1, 2, 5, 10) if m * step >= (high - low) / 6)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _bars(scores: np.ndarray, labels: np.ndarray, low: float, high: float) -> tuple[list[Bar], int]:
    """Stacked columns, normal at the foot, so that no class hides another; the highest count."""
    bins = int(min(40, round(math.sqrt(scores.size)) + 12))
    edges = np.linspace(low, high, bins + 1)
    counts = {label: np.histogram(scores[labels == label], edges)[0] for label in _KINDS}
    most = int(np.sum(list(counts.values()), axis=0).max())
    foot = np.zeros(bins)
    bars = []
    for label, kind in _KINDS.items():
        heights = _HIST_PX * counts[label] / max(1, most)
        for column in np.flatnonzero(counts[label]):
            text = f"{counts[label][column]} {kind}, {edges[column]:.4g} to {edges[column + 1]:.4g}"
            x, width = round(100.0 * (column + 0.04) / bins, 3), round(92.0 / bins, 3)
            y = round(float(_TOP_PX + _HIST_PX - foot[column] - heights[column]), 2)
            bars.append(Bar(x, y, width, round(float(heights[column]), 2), kind, text))
        foot += heights
    return bars, most


def curve_path(curve: Curve) -> str:
    """SVG path of a curve in a unit square that is 100 wide and high, y upwards; ends are kept."""
    thin = curve.thinned(300)
    places = zip(thin.x.tolist(), thin.y.tolist(), strict=True)
    path = "L".join(f"{100 * x:.2f} {100 * (1 - y):.2f}" for x, y in places)
    return path and f"M{path}"


def recall_bar(recall: DefectRecall) -> dict[str, float]:
    """Percent places of a recall bar and its interval; empty when there are no images."""
    if recall.total == 0:
        return {}
    places = {"value": recall.found / recall.total, "low": recall.low, "high": recall.high}
    return {name: round(100.0 * value, 2) for name, value in places.items()}
