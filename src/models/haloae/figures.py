"""Pictures of HaloAE: what it rebuilt, where the errors are, how the losses were weighted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from src.models.haloae.losses import loss_weights
from src.models.haloae.options import ScheduleOptions

Array = NDArray[np.float32]

_INK, _GRID = "#1c2026", "#e3e6ea"
#: Okabe and Ito's palette; the three also differ in lightness.
_LINES = (("classification", "#0072b2"), ("features", "#d55e00"), ("image", "#009e73"))
_COLUMNS = ("input", "reconstruction", "feature error", "image error", "anomaly map")
_PERCENTILE = 99.5  # of all rows together: the hottest colour


def loss_weight_curves(schedule: ScheduleOptions) -> Figure:
    """Weights of the three losses over training, with where one overtakes another."""
    fraction = np.linspace(0, 1, 501)
    weights = np.array([loss_weights(float(f), schedule) for f in fraction])  # (501, 3)
    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for column, (name, colour) in enumerate(_LINES):
        axes.plot(fraction, weights[:, column], color=colour, lw=2)
        peak = int(weights[:, column].argmax())
        axes.annotate(
            name,
            (fraction[peak], weights[peak, column]),
            xytext=(-4 if peak > 250 else 4, 5),
            textcoords="offset points",
            color=colour,
            ha="right" if peak > 250 else "left",
        )
    axes.set(xlabel="share of training done", ylabel="weight of the loss", xlim=(0, 1))
    axes.set_ylim(0, max(1.0, float(weights.max())) * 1.1)
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def reconstruction_sheet(
    image: Array,
    reconstruction: Array | None,
    feature_error: Array,
    image_error: Array | None,
    anomaly_map: Array,
    captions: Sequence[str],
) -> Figure:
    """One row an image: input, reconstruction, both error maps, the anomaly map over the input.

    A colour means the same value in every row of a column.

    Args:
        image: RGB (n, H, W, 3) in [0, 1].
        reconstruction: the same, or None without image decoder (its columns are left out).
        feature_error: (n, h, w).
        image_error: (n, h', w') or None.
        anomaly_map: (n, h'', w'').
        captions: one a row.
    """
    columns = [
        (_COLUMNS[0], image, None),
        (_COLUMNS[1], reconstruction, None),
        (_COLUMNS[2], None, feature_error),
        (_COLUMNS[3], None, image_error),
        (_COLUMNS[4], image, anomaly_map),
    ]
    shown = [c for c in columns if c[1] is not None or c[2] is not None]
    rows = len(image)
    figure = Figure(figsize=(2.0 * len(shown), 2.15 * rows + 0.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, len(shown), squeeze=False)
    for column, (title, picture, heat) in enumerate(shown):
        top = 1.0 if heat is None else float(np.percentile(heat, _PERCENTILE))
        for row in range(rows):
            axes = grid[row, column]
            _draw(axes, picture, heat, row, top)
            if row == 0:
                axes.set_title(title, fontsize=9, color=_INK)
            if column == 0:
                axes.set_ylabel(captions[row], fontsize=8, color=_INK)
    return figure


def _draw(axes: Axes, picture: Array | None, heat: Array | None, row: int, top: float) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if picture is not None:
        H, W = picture.shape[1:3]
        shown = np.clip(picture[row], 0, 1)
        if heat is not None:  # faint and grey, so that the map on top keeps its colours
            shown = np.repeat(shown.mean(-1, keepdims=True), 3, -1)
        axes.imshow(shown, extent=(0, W, H, 0))
        if heat is not None:
            axes.imshow(
                heat[row],
                cmap="inferno",
                vmin=0,
                vmax=top,
                alpha=0.6,
                extent=(0, W, H, 0),
                interpolation="bilinear",
            )
    elif heat is not None:
        axes.imshow(heat[row], cmap="inferno", vmin=0, vmax=top)
