"""The latents of a fitted U-Flow beside the density that its threshold takes them for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from src.models.uflow.latents import BINS, REACH

NORMAL_CURVE, LATENTS = "#1c2026", "#8fb8de"


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
