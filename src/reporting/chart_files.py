"""Charts of runs for files, papers and loggers, drawn by matplotlib, without pyplot's global state.

Two colours carry the labels everywhere, blue for normal and orange for defective; they differ in
lightness too (Okabe and Ito's palette, 2008).
"""

import itertools
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from src.evaluation.comparison import MethodRanks
from src.files import atomic
from src.reporting.charts import CURVES, ScoreChart
from src.result import Curve, LineChart

NORMAL_COLOUR, DEFECT_COLOUR, UNKNOWN_COLOUR = "#3a6ea5", "#d55e00", "#8a8f98"
INK, FAINT, GRID = "#1c2026", "#68707a", "#e3e6ea"
_COLOURS = {"normal": NORMAL_COLOUR, "defective": DEFECT_COLOUR, "unknown": UNKNOWN_COLOUR}
_LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_PX = 1 / 62  # inches of a pixel of the page


def score_figure(chart: ScoreChart) -> Figure:
    """The chart of the page: counts by score, where one defect shows; below them a dot an image."""
    figure, axes = new_figure(6.0, chart.height * _PX + 0.6)
    for kind in chart.kinds:
        colour, bars = _COLOURS[kind], [bar[:4] for bar in chart.bars if bar.kind == kind]
        left, foot, width, height = zip(*bars, strict=True)
        axes.bar(left, height, width, foot, align="edge", color=colour, alpha=0.8, label=kind)
        dots = [(dot.x, dot.y) for dot in chart.dots if dot.kind == kind]
        x, y = np.array(dots).reshape(-1, 2).T
        axes.scatter(x, y, s=14, color=colour, alpha=0.75, lw=0)
    axes.axhline(chart.base, color=FAINT, lw=0.8)
    axes.annotate(f"{chart.most} images", (0, chart.base - 152), fontsize=8, color=FAINT)
    for name, top in chart.strips:
        axes.annotate(name, (0, top + 12), fontsize=8.5, color=FAINT)
        axes.axhline(top + chart.strip, color=GRID, lw=0.7)
    if chart.threshold is not None:
        axes.axvline(chart.threshold, color=INK, lw=1.2, ls=(0, (4, 2)))
        value = chart.low + chart.threshold / 100 * (chart.high - chart.low)
        axes.annotate(
            f"threshold {value:.4g}", (chart.threshold, 0), xytext=(0, 3),
            textcoords="offset points", ha="center", fontsize=8.5, color=INK,
        )  # fmt: skip
    lost = f" ({chart.left_out} images are not drawn)" if chart.left_out else ""
    axes.set(xlim=(0, 100), ylim=(chart.height, 0), xlabel=f"anomaly score{lost}", yticks=[])
    axes.set_xticks([x for x, _ in chart.ticks], [text for _, text in chart.ticks])
    axes.spines["left"].set_visible(False)
    if chart.kinds:
        axes.legend(frameon=False, loc="upper right", fontsize=8.5)
    return figure


def ranking_curve(curve: Curve) -> Figure:
    """A ROC, precision-recall or PRO curve."""
    figure, axes = new_figure(3.9, 3.9)
    title, x_name, y_name = CURVES[curve.kind]
    if curve.kind == "roc":
        axes.plot([0, 1], [0, 1], color=GRID, lw=1, zorder=0)
    if curve.limit < 1:
        inside = curve.x <= curve.limit
        axes.fill_between(curve.x[inside], curve.y[inside], color=NORMAL_COLOUR, alpha=0.10, lw=0)
        axes.axvline(curve.limit, color=FAINT, lw=0.8, ls=":")
    axes.plot(curve.x, curve.y, color=NORMAL_COLOUR, lw=1.8)
    limit = f" up to {curve.limit:g}" if curve.limit < 1 else ""
    axes.set_title(f"{title}: area{limit} {curve.area:.4f}", loc="left", fontsize=10)
    axes.set(xlabel=x_name, ylabel=y_name, xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axes.set_aspect("equal")
    return figure


def draw_lines(chart: LineChart) -> Figure:
    """What a method draws of itself: lines from zero on, or from below; named when several."""
    figure, axes = new_figure(6.0, 3.4)
    for colour, (name, (x, y)) in zip(itertools.cycle(_LINES), chart.lines.items(), strict=False):
        axes.plot(x, y, color=colour, lw=2, label=name)
    axes.set(xlabel=chart.x, ylabel=chart.y, xscale="log" if chart.log_x else "linear")
    if min(min(y) for _, y in chart.lines.values()) >= 0:  # a likelihood may be above 1
        axes.set_ylim(bottom=0)
    if len(chart.lines) > 1:
        axes.legend(frameon=False)
    return figure


def critical_difference(ranks: MethodRanks, metric: str) -> Figure:
    """Mean ranks on a line; bars join methods that cannot be told apart (Demsar 2006, figure 1)."""
    count, rows = len(ranks.mean), (len(ranks.mean) + 1) // 2
    start = 0.6 + 0.25 * len(ranks.groups)  # names begin below the bars
    figure, axes = new_figure(8.0, 1.2 + 0.3 * (start + rows))
    axes.plot([1, 1 + ranks.critical], [-0.9, -0.9], "|-", color=DEFECT_COLOUR)
    axes.annotate(f"critical difference {ranks.critical:.2f}", (1, -1.1), fontsize=8.5, color=FAINT)
    for row, ends in enumerate(ranks.groups):
        places = ranks.mean.iloc[list(ends)].to_numpy() + np.array([-0.03, 0.03])
        axes.plot(places, [0.4 + 0.25 * row] * 2, color=INK, lw=3.5)
    for place, (name, rank) in enumerate(ranks.mean.items()):
        left = place < rows
        end, y = (0.7, place) if left else (count + 0.3, count - 1 - place)
        axes.plot([rank, rank, end], [0, start + y, start + y], color=NORMAL_COLOUR, lw=1)
        axes.annotate(f" {name} ({rank:.2f}) ", (end, start + y), ha="right" if left else "left",
                      va="center", fontsize=9)  # fmt: skip
    title = f"mean rank by {metric}, {ranks.categories} categories"
    axes.set_title(f"{title}; Friedman p {ranks.p_value:.2g}", fontsize=10)
    axes.set(xlim=(0.7, count + 0.3), ylim=(start + rows - 0.5, -1.6), yticks=[])
    axes.set_xticks(range(1, count + 1))
    axes.xaxis.tick_top()
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.spines["top"].set(visible=True, position=("data", 0))
    axes.grid(visible=False)
    return figure


def save_figure(figure: Figure, path: Path, dpi: int = 160) -> None:
    """Write a figure in the format of the file name; the file appears only when complete."""
    with atomic(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=dpi)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of width x height inches in the style of all figures here."""
    figure, (axes,) = new_panels(width, height, 1)
    return figure, axes


def new_panels(width: float, height: float, count: int) -> tuple[Figure, list[Axes]]:
    """`count` empty panels side by side: two spines, faint grid behind the data, small ticks."""
    figure = Figure((width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(1, count, place + 1) for place in range(count)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(colors=FAINT, labelcolor=INK, labelsize=9)
        axes.xaxis.label.set(color=INK, size=9.5)
        axes.yaxis.label.set(color=INK, size=9.5)
        axes.grid(color=GRID, lw=0.7)
        axes.set_axisbelow(True)
    return figure, panels
