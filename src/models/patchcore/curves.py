"""How the cover radius falls while the coreset grows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def radius_curve(radii: Mapping[str, Tensor]) -> Figure:
    """Cover radius (M,) before each pick against rows kept, one line per memory.

    A bend shows where more rows stop paying; `coreset.stop_radius` puts the end there.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, radius in radii.items():
        axes.plot(range(len(radius)), radius.numpy(), label=name)
    axes.set_xscale("log")
    axes.set_xlabel("rows kept")
    axes.set_ylabel("distance of the worst covered patch")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if len(radii) > 1:
        axes.legend()
    return figure
