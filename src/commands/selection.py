"""Figures for choosing a model: accuracy against coreset size, and accuracy, latency, memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from scipy.optimize import isotonic_regression

from src.data.record import categories_of
from src.errors import DataError, SavedModelError, did_you_mean
from src.files import write_text
from src.identity import without_content
from src.metrics import METRICS
from src.reporting.chart_files import DEFECT_COLOUR as DEFECT
from src.reporting.chart_files import FAINT, INK, NORMAL_COLOUR, new_figure, save_figure
from src.saved_run import SavedRun

#: Column of the table -> key of config.yaml.
_CONFIG = {
    "model": "model.name", "backbone": "backbone.name", "ratio": "model.coreset.ratio",
    "neighbors": "model.neighbors", "data": "data.name", "seed": "seed", "protocol": "protocol",
}  # fmt: skip
_LATENCY = "speed/latency_p50_ms"
_MARKER_AREA = (30.0, 700.0)  # square points of the smallest and the largest model


def write_selection(cfg: DictConfig) -> list[Path]:
    """Write runs.csv, and figures of what the runs below `cfg.runs` differ in, to `cfg.out`."""
    table, out = runs_table(Path(cfg.runs).expanduser()), Path(cfg.out).expanduser()
    known = table[table[cfg.metric].notna()] if cfg.metric in table else table[:0]
    if known.empty:
        metrics = [str(name) for name in table if "/" in str(name)]
        what = f"No finished run below {cfg.runs} has the metric {cfg.metric}."
        do = did_you_mean(cfg.metric, metrics) if metrics else "give a folder of run folders"
        raise DataError(what, found=f"{len(table)} finished runs", do=do)
    known = known.assign(label=configuration_labels(known))
    write_text(out / "runs.csv", known.to_csv(index=False))
    figures = {}
    if known["ratio"].nunique() > 1:
        figures["coreset.png"] = coreset_curve(known, cfg.metric)
    if known["label"].nunique() > 1 and _LATENCY in known:
        figures["pareto.png"] = pareto_figure(known, cfg.metric)
    for name, figure in figures.items():
        save_figure(figure, out / name)
    written = [out / name for name in ("runs.csv", *figures)]
    print(*written, sep="\n")
    return written


def runs_table(folder: Path) -> pd.DataFrame:
    """One row a finished run below `folder` that can be read: config, metrics, size, path."""
    found = {path.parent for path in folder.rglob("metrics.json")}
    runs = sorted(
        (path for path in found if not found & set(path.parents)),
        key=lambda path: (path / "metrics.json").stat().st_mtime,
    )
    # One config on data that changed since is several runs side by side: the newest counts.
    newest = {without_content(path): path for path in runs}
    if len(newest) < len(runs):
        print(f"{len(runs) - len(newest)} runs on earlier data or weights are left out.")
    rows = []
    for path in sorted(newest.values()):
        try:
            metrics, config = SavedRun(path).metrics(), SavedRun(path).config()
        except (SavedModelError, OmegaConfBaseException):
            continue
        row = {name: OmegaConf.select(config, key) for name, key in _CONFIG.items()}
        row["category"] = "+".join(categories_of(config.data))
        weights = path / "model" / "model.safetensors"
        row["model_mb"] = weights.stat().st_size / 1e6 if weights.is_file() else np.nan
        rows.append(row | {"run": str(path)} | metrics)
    return pd.DataFrame(rows)


def coreset_curve(table: pd.DataFrame, metric: str = "test/image_auroc") -> Figure:
    """A metric against the coreset fraction, averaged over seeds: a line a category, their mean."""
    grid = table.pivot_table(index="ratio", columns="category", values=metric, aggfunc="mean")
    figure, axes = new_figure(6.2, 3.8)
    draw_curve(axes, grid, METRICS[metric].name if metric in METRICS else metric)
    axes.set_xscale("log")
    axes.set_xticks(grid.index, [f"{100 * value:g} %" for value in grid.index])
    axes.minorticks_off()
    axes.set(xlabel="patches kept in the memory bank")
    return figure


def draw_curve(axes: Axes, grid: pd.DataFrame, name: str) -> None:
    """A named line a column of `grid` over its index; in front the mean of complete columns."""
    lines = {str(column): grid[column].dropna() for column in grid.columns}
    for line in lines.values():
        axes.plot(line.index, line.to_numpy(), "-", color=NORMAL_COLOUR, alpha=0.35, lw=1.0)
    complete = grid.dropna(axis=1)
    if complete.shape[1]:
        mean = complete.mean(axis=1)
        of = f"black: mean of {complete.shape[1]} categories"
        axes.plot(mean.index, mean.to_numpy(), "o-", color=INK, lw=2.2, ms=5)
        axes.set_title(of, fontsize=8, loc="left")
    ends = sorted((float(x.iloc[-1]), float(x.index[-1]), n) for n, x in lines.items() if len(x))
    low, high = axes.get_ylim()
    gap = (high - low) / 26  # a line of 7.5-point text in this figure
    heights = spread([height for height, _, _ in ends], gap)
    if heights:
        axes.set_ylim(min(low, heights[0] - gap), max(high, heights[-1] + gap))
    for (_, x, column), height in zip(ends, heights, strict=True):
        axes.annotate(
            column, (x, height), xytext=(7, 0), textcoords="offset points", va="center",
            fontsize=7.5, color=FAINT, annotation_clip=False,
        )  # fmt: skip
    axes.set(ylabel=name)
    axes.margins(x=0.14)


def pareto_figure(table: pd.DataFrame, accuracy: str = "test/image_auroc") -> Figure:
    """Accuracy against latency, marker area by memory; the step line joins the best of each speed.

    Rows with the same label are averaged. Points are numbered by latency and named beside the plot,
    since names on the points would hide each other.
    """
    means = table.groupby("label", sort=True)[[accuracy, _LATENCY, "model_mb"]].mean().dropna()
    means = means.sort_values(_LATENCY, kind="stable")
    figure, axes = new_figure(8.8, max(4.2, 1.2 + 0.19 * len(means)))
    x, y, memory = (means[name].to_numpy() for name in (_LATENCY, accuracy, "model_mb"))
    front = pareto_front(x, y)
    axes.step(x[front], y[front], where="post", color=DEFECT, lw=1.3, zorder=1)
    colours = list(np.where(front, DEFECT, NORMAL_COLOUR))
    axes.scatter(x, y, s=marker_areas(memory), c=colours, alpha=0.5, lw=0, zorder=2)
    axes.scatter(x, y, s=5, c=INK, lw=0, zorder=3)
    for k, place in enumerate(zip(x, y, strict=True)):
        axes.annotate(
            str(k + 1), place, xytext=(0, 4), textcoords="offset points", ha="center",
            fontsize=8, color=INK, zorder=4,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.12)
    name = METRICS[accuracy].name if accuracy in METRICS else accuracy
    axes.set(xlabel="latency in ms per image, median (log)", ylabel=name)
    heading = "number, configuration, size of the model; dark: nothing is faster and better"
    axes.set_title(heading, fontsize=8.5, color=FAINT, loc="right")
    for k, name in enumerate(means.index):
        axes.annotate(
            f"{k + 1:>2}  {name}, {memory[k]:.3g} MB",
            (1.03, 1.0 - k * 0.228 / figure.get_figheight()), xycoords="axes fraction", va="top",
            fontsize=8, color=INK if front[k] else FAINT,
        )  # fmt: skip
    return figure


def pareto_front(cost: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Which points (n,) no other beats by costing less or being better; equal ones are all kept."""
    cheaper, better = cost <= cost[:, None], gain >= gain[:, None]  # column against row
    differs = (cost != cost[:, None]) | (gain != gain[:, None])
    return ~(cheaper & better & differs).any(axis=1)


def marker_areas(memory: np.ndarray) -> np.ndarray:
    """Areas in square points proportional to memory (n,), the largest fixed, small ones visible."""
    low, high = _MARKER_AREA
    return np.maximum(low, high * memory / max(memory.max(initial=0.0), 1e-12))


def configuration_labels(table: pd.DataFrame) -> pd.Series:
    """A short name of each run's configuration: model (if they differ), backbone, coreset ratio."""
    several = table["model"].nunique() > 1

    def label(row: pd.Series) -> str:
        parts = [str(row["model"])] if several else []
        backbone = row["backbone"]
        parts.append("no backbone" if pd.isna(backbone) else str(backbone).split(".")[0])
        return " ".join(parts if pd.isna(row["ratio"]) else [*parts, f"{100 * row['ratio']:g} %"])

    return table.apply(label, axis=1)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights moved as little as needed to be at least `gap` apart (isotonic)."""
    steps = gap * np.arange(len(heights))
    return [] if not heights else list(isotonic_regression(np.array(heights) - steps).x + steps)
