"""One picture of a sweep: parallel coordinates beside the importance of each parameter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.files import atomic
from src.sweeping.definition import SweepDefinition
from src.sweeping.samplers import hyper_parameters
from src.sweeping.summary import searched, short_names
from src.sweeping.trials import FINISHED, Trial

MIN_TRIALS = 2  # of a picture
MIN_IMPORTANCE = 4  # ours: below, any ranking of parameters is noise


def draw_trials(definition: SweepDefinition, trials: Sequence[Trial], path: Path) -> Path | None:
    """Write the figure; None when too few trials have a metric."""
    done = [trial for trial in trials if trial.state == FINISHED and trial.metric is not None]
    names = searched(definition)
    if len(done) < MIN_TRIALS or not names:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 + 1.6 * len(names), 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2 + len(names), 2])
    positions = parameter_positions(definition, done, names)
    metric = np.array([trial.metric for trial in done], dtype=float)
    _draw_lines(left, definition, done, positions, metric, names)
    _draw_importance(right, importance(positions, metric), names)
    figure.suptitle(f"{definition.path.stem}: {len(done)} trials")
    with atomic(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    return path


def parameter_positions(
    definition: SweepDefinition, trials: Sequence[Trial], names: Sequence[str]
) -> np.ndarray:
    """Where each trial lies on each axis: (trials, parameters) in [0, 1].

    Numbers by their quantile under the sweep's distribution, choices evenly in the file's order.
    """
    parameters = hyper_parameters(definition)
    columns = [_positions(parameters[name], [t.values[name] for t in trials]) for name in names]
    return np.stack(columns, axis=1)


def importance(positions: np.ndarray, metric: np.ndarray) -> np.ndarray | None:
    """Share of the metric's rank variance that each parameter explains alone, (parameters,).

    Squared correlation ratio over groups of equal (or, for continuous ones, neighbouring) values,
    minus what chance gives: 0 for a useless parameter, 1 for one that decides everything. None
    for too few trials. Interactions are not seen; it ranks, it does not prove.
    """
    if len(metric) < MIN_IMPORTANCE or np.ptp(metric) == 0:
        return None
    from scipy.stats import rankdata

    ranks = rankdata(metric)  # (trials,)
    return np.array([_explained(column, ranks) for column in positions.T])


def _positions(parameter: Any, values: Sequence[Any]) -> np.ndarray:
    choices = parameter.config.get("values")
    if choices is not None:
        indices = [choices.index(value) for value in values]
        return np.array(indices, dtype=float) / max(1, len(choices) - 1)
    return np.clip(np.asarray(parameter.cdf(np.array(values, dtype=float)), dtype=float), 0, 1)


def _explained(column: np.ndarray, ranks: np.ndarray) -> float:
    levels, group = np.unique(column, return_inverse=True)
    groups = min(len(levels), 3)  # ours: thirds of a continuous axis; more starve the groups
    if len(levels) > 3 and len(levels) > len(ranks) // 2:
        order = np.argsort(np.argsort(column))
        group = order * groups // len(column)
    else:
        groups = len(levels)
    total = float(np.var(ranks)) * len(ranks)
    within = sum(
        float(np.var(ranks[group == g])) * int((group == g).sum())
        for g in range(groups)
        if (group == g).any()
    )
    n = len(ranks)
    if n <= groups or groups < 2:
        return 0.0
    # epsilon squared: the chance-corrected correlation ratio (Kelley 1935)
    return max(0.0, 1 - (within / (n - groups)) / (total / (n - 1)))


def _draw_lines(
    axes: Any,
    definition: SweepDefinition,
    trials: Sequence[Trial],
    positions: np.ndarray,
    metric: np.ndarray,
    names: Sequence[str],
) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(metric.min(), metric.max()), colormaps["viridis"])
    span = np.ptp(metric) or 1.0
    points = np.column_stack([positions, (metric - metric.min()) / span])
    best_last = np.argsort(metric if definition.maximise else -metric)
    for rank, index in enumerate(best_last):
        is_best = rank == len(trials) - 1
        axes.plot(
            points[index], color=scale.to_rgba(metric[index]), alpha=1.0 if is_best else 0.6,
            linewidth=3.0 if is_best else 1.2,
        )  # fmt: skip
    label = definition.metric or "metric"
    heads = [*short_names(names), label]
    axes.set_xticks(range(points.shape[1]), heads, rotation=20, ha="right")
    axes.set_yticks([])
    axes.set_xlim(-0.1, points.shape[1] - 0.6)
    for x, name in enumerate(names):
        axes.axvline(x, color="0.7", linewidth=0.8, zorder=0)
        for y, text in _labels([trial.values[name] for trial in trials], positions[:, x]):
            axes.annotate(text, (x, y), xytext=(3, 2), textcoords="offset points", fontsize=7)
    axes.figure.colorbar(scale, ax=axes, label=label)


def _labels(values: Sequence[Any], positions: np.ndarray) -> list[tuple[float, str]]:
    """Texts along an axis: every value of a few, else the ends."""
    seen = dict(sorted(zip(positions.tolist(), values, strict=True), key=lambda pair: pair[0]))
    items = list(seen.items())
    chosen = items if len(items) <= 6 else [items[0], items[-1]]
    return [(y, f"{v:.3g}" if isinstance(v, float) else str(v)) for y, v in chosen]


def _draw_importance(axes: Any, shares: np.ndarray | None, names: Sequence[str]) -> None:
    axes.set_title("importance", fontsize=10)
    if shares is None:
        axes.text(0.5, 0.5, "too few trials", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    order = np.argsort(shares)
    heads = short_names(names)
    axes.barh([heads[i] for i in order], shares[order], color="0.4")
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of rank\nvariance explained")
