"""The charts that a method draws of itself (`AnomalyModule.diagnostics`) as figures."""

from __future__ import annotations

from matplotlib.figure import Figure

from src.models.base import LineChart
from src.reporting.curves import GRID, new_figure

#: Okabe and Ito's palette; the first three also differ in lightness.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")


def draw_lines(chart: LineChart) -> Figure:
    """All lines in one pair of axes that begin at zero, named when there are several."""
    figure, axes = new_figure(6.0, 3.4)
    for number, (name, (x, y)) in enumerate(chart.lines.items()):
        axes.plot(x, y, color=_COLOURS[number % len(_COLOURS)], lw=2, label=name)
    axes.set(xlabel=chart.x, ylabel=chart.y, xscale="log" if chart.log_x else "linear")
    axes.set_ylim(bottom=0)
    axes.grid(color=GRID)
    if len(chart.lines) > 1:
        axes.legend(frameon=False)
    return figure
