"""Matplotlib figures of one run, for files, papers and loggers.

Each function returns a `matplotlib.figure.Figure` without pyplot, so nothing is global and nothing
stays open. Two colours carry the labels everywhere, blue for normal and orange for defective; they
differ in lightness too (Okabe and Ito's palette, 2008).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from src.files import atomic
from src.reporting.records import Curve

NORMAL_COLOUR, DEFECT_COLOUR, UNKNOWN_COLOUR = "#3a6ea5", "#d55e00", "#8a8f98"
INK, FAINT, GRID = "#1c2026", "#68707a", "#e3e6ea"
TITLES = {
    "roc": ("false positive rate", "true positive rate", "ROC", "area"),
    "pr": ("recall", "precision", "Precision and recall", "average precision"),
    "pro": ("false positive rate of pixels", "mean region overlap", "PRO", "normalised area"),
}


def score_histogram(
    scores: np.ndarray, labels: np.ndarray, threshold: float, *, unit: str = "anomaly score"
) -> Figure:
    """Histogram of image scores (n,) by label (n,), with the threshold as a line.

    Counts are drawn, not densities: one defective image among hundreds must stay visible.
    Scores that are not finite are left out and counted in the legend.
    """
    figure, axes = new_figure(6.0, 3.4)
    finite = np.isfinite(scores)
    inside = scores[finite]
    edges = _bin_edges(np.r_[inside, threshold] if math.isfinite(threshold) else inside)
    for label, colour, name in _classes(labels):
        mine = scores[(labels == label) & finite]
        lost = int(((labels == label) & ~finite).sum())
        text = f"{name} ({mine.size}{f', {lost} not finite' if lost else ''})"
        axes.hist(
            mine, edges.tolist(), color=colour, alpha=0.72, label=text, edgecolor="white", lw=0.5
        )
    _threshold_line(axes, threshold)
    axes.set(xlabel=unit, ylabel="images")
    if labels.size:
        axes.legend(frameon=False)
    return figure


def score_strip(
    scores: np.ndarray,
    defects: Sequence[str],
    labels: np.ndarray,
    threshold: float,
    *,
    unit: str = "anomaly score",
) -> Figure:
    """One dot an image, one line a defect type, with the threshold across all of them."""
    names = sorted(set(defects), key=lambda name: (name != "good", name))
    figure, axes = new_figure(6.0, 1.1 + 0.36 * len(names))
    jitter = np.random.default_rng(0)  # vertical only; keeps equal scores apart
    kinds = np.asarray(defects)
    for row, name in enumerate(names):
        for label, colour, _ in _classes(labels):
            mine = (kinds == name) & (labels == label) & np.isfinite(scores)
            height = row + jitter.uniform(-0.26, 0.26, int(mine.sum()))
            axes.scatter(scores[mine], height, s=15, color=colour, alpha=0.75, lw=0)
    _threshold_line(axes, threshold)
    axes.set(xlabel=unit, yticks=range(len(names)), yticklabels=names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    return figure


def ranking_curve(curve: Curve, point: tuple[float, float] | None = None) -> Figure:
    """A ROC, precision-recall or PRO curve; `point` marks the operating point (x, y)."""
    figure, axes = new_figure(3.9, 3.9)
    x_name, y_name, title, area = TITLES[curve.kind]
    if curve.kind == "roc":
        axes.plot([0, 1], [0, 1], color=GRID, lw=1, zorder=0)
    inside = curve.x <= curve.limit
    if curve.kind == "pro":
        axes.fill_between(curve.x[inside], curve.y[inside], color=NORMAL_COLOUR, alpha=0.10, lw=0)
        axes.axvline(curve.limit, color=FAINT, lw=0.8, ls=":")
    axes.plot(curve.x, curve.y, color=NORMAL_COLOUR, lw=1.8)
    if point is not None:
        axes.plot(*point, "o", color=DEFECT_COLOUR, ms=7, label="chosen threshold", clip_on=False)
        axes.legend(frameon=False, loc="lower right")
    limit = f" up to {curve.limit:g}" if curve.limit < 1 else ""
    axes.set_title(f"{title}: {area}{limit} {curve.area:.4f}", loc="left", fontsize=10)
    axes.set(xlabel=x_name, ylabel=y_name, xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axes.set_aspect("equal")
    return figure


def save_figure(figure: Figure, path: Path, dpi: int = 160) -> None:
    """Write a figure in the format of the file name; the file appears only when complete."""
    with atomic(path) as partial:
        stable = {"Date": None} if path.suffix in (".svg", ".pdf") else None
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else stable
        figure.savefig(partial, format=path.suffix[1:], dpi=dpi, metadata=metadata)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of width x height inches in the style of all figures here."""
    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    style(axes)
    return figure, axes


def style(axes: Axes) -> None:
    """Quiet axes: two spines, faint grid behind the data, small grey ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, size=9.5)
    axes.yaxis.label.set(color=INK, size=9.5)
    axes.grid(color=GRID, lw=0.7)
    axes.set_axisbelow(True)


def _threshold_line(axes: Axes, threshold: float) -> None:
    if not math.isfinite(threshold):
        return
    axes.axvline(threshold, color=INK, lw=1.2, ls=(0, (4, 2)))
    axes.annotate(
        f"threshold {threshold:.4g}", (threshold, 1.0), xycoords=("data", "axes fraction"),
        xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8.5, color=INK,
    )  # fmt: skip


def _classes(labels: np.ndarray) -> list[tuple[int, str, str]]:
    every = (
        (0, NORMAL_COLOUR, "normal"),
        (1, DEFECT_COLOUR, "defective"),
        (-1, UNKNOWN_COLOUR, "no label"),
    )
    return [each for each in every if (labels == each[0]).any()]


def _bin_edges(values: np.ndarray) -> np.ndarray:
    """Edges of about sqrt(n) + 10 equal bins, at most 60; works for equal or no values."""
    if values.size == 0:
        return np.array([0.0, 1.0])
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = max(abs(low), 1.0) * 0.5
        low, high = low - margin, high + margin
    return np.linspace(low, high, min(60, round(math.sqrt(values.size)) + 10) + 1)
