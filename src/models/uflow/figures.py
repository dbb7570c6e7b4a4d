"""Figures of U-Flow: what was seen, how likely it is, how many false alarms it would be.

The segmentation panel needs no threshold: it marks log10 NFA < 0. Colours are safe for
colour-blind readers and the same in every figure: white is what is true, cyan what is detected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from torch import Tensor

from src.errors import ConfigError
from src.models.base import Prediction, resize_maps
from src.models.uflow.latents import BINS, REACH

TRUTH, FOUND = "#ffffff", "#00e5ff"
NORMAL_CURVE, LATENTS = "#1c2026", "#8fb8de"
NFA_COLOURS = LinearSegmentedColormap.from_list(
    "log_nfa", ["#4a1500", "#b8540a", "#f6b45c", "#ffffff", "#dfe3e8", "#c2c8d0"]
)
MOST_CERTAIN = 300.0  # colour scale of log10 NFA: from -300 (and below) over 0 to what there is


def prediction_figure(
    image: np.ndarray, mask: np.ndarray | None, prediction: Prediction, row: int = 0
) -> Figure:
    """Input, truth, likelihood map, log NFA and segmentation of one image, side by side.

    Args:
        image: RGB uint8 (H, W, 3), as a person sees it.
        mask: true defect (H, W) bool, None when it is not known.
        prediction: of a batch, with `log_nfa`.
        row: which image of the batch.

    Raises:
        ConfigError: the prediction has no log NFA.
    """
    if prediction.log_nfa is None:
        raise ConfigError(
            "This figure needs the number of false alarms.",
            found="a prediction without log_nfa",
            do="use threshold=nfa, or set model.wants_log_nfa before predicting",
        )
    height, width = image.shape[:2]
    likelihood = _fit(prediction.anomaly_map[row], height, width)
    log_nfa = _fit(prediction.log_nfa[row], height, width)
    panel = 2.5
    figure = Figure(figsize=(5 * panel + 1.2, panel * height / width + 0.5), layout="constrained")
    axes = figure.subplots(1, 5)
    for axis, title in zip(
        axes, ["input", "truth", "anomaly likelihood", "log10 NFA", "log10 NFA < 0"], strict=True
    ):
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    axes[0].imshow(image)
    _truth_panel(axes[1], image, mask)
    shown = axes[2].imshow(likelihood, cmap="inferno")
    _outline(axes[2], mask, TRUTH)
    figure.colorbar(shown, ax=axes[2], fraction=0.046, pad=0.02).ax.tick_params(labelsize=7)
    _nfa_panel(figure, axes[3], log_nfa)
    _outline(axes[3], mask, "#000000")
    axes[4].imshow(image)
    _outline(axes[4], mask, TRUTH)
    _outline(axes[4], log_nfa < 0, FOUND)
    return figure


def latent_figure(statistics: Sequence[dict[str, Any]]) -> Figure:
    """Histogram of the latents of each scale beside the density they should have.

    `statistics`: `latent_facts` of a fitted module, finest scale first.
    """
    count = max(1, len(statistics))
    figure = Figure(figsize=(3.6 * count, 2.8), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, count, sharey=True))
    edges = np.linspace(-REACH, REACH, BINS + 1)
    centres, step = 0.5 * (edges[1:] + edges[:-1]), edges[1] - edges[0]
    for scale, (axis, found) in enumerate(zip(axes, statistics, strict=False), start=1):
        bins = np.asarray(found["histogram"], dtype=np.float64)
        axis.bar(centres, bins / max(bins.sum(), 1.0) / step, width=step, color=LATENTS)
        density = np.exp(-0.5 * centres**2) / math.sqrt(2 * math.pi)
        axis.plot(centres, density, color=NORMAL_CURVE, linewidth=1.4, label="N(0, 1)")
        axis.set_title(
            f"scale {scale}: deviation {found['deviation']:.3f}, "
            f"energy spread {found['energy_spread']:.1f}",
            fontsize=9,
        )
        axis.set_xlabel("latent z", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("density", fontsize=8)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _fit(values: Tensor, height: int, width: int) -> np.ndarray:
    resized = resize_maps(values[None].detach().cpu(), (height, width))
    return torch.squeeze(resized, 0).numpy()


def _truth_panel(axis: Axes, image: np.ndarray, mask: np.ndarray | None) -> None:
    if mask is None:
        axis.text(0.5, 0.5, "not known", ha="center", va="center", transform=axis.transAxes)
        axis.imshow(np.full_like(image, 235))
        return
    axis.imshow(mask.astype(float), cmap="gray", vmin=0, vmax=1)


def _nfa_panel(figure: Figure, axis: Axes, log_nfa: np.ndarray) -> None:
    """White where detection begins, grey above, orange to brown the more certain it is."""
    low = -float(np.clip(-log_nfa.min(), 1.0, MOST_CERTAIN))
    high = max(1.0, float(log_nfa.max()))
    norm = TwoSlopeNorm(0.0, vmin=low, vmax=high)
    shown = axis.imshow(log_nfa, cmap=NFA_COLOURS, norm=norm)
    bar = figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.02)
    bar.set_ticks([low, 0.0, high], labels=[f"{low:.0f}", "0", f"{high:.0f}"])
    bar.ax.tick_params(labelsize=7)


def _outline(axis: Axes, mask: np.ndarray | None, colour: str) -> None:
    if mask is not None and mask.any() and not mask.all():
        axis.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.2)
