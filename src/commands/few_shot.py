"""What a method finds after 1, 2, 4, ... good images: runs over shots and seeds, table, figure.

The protocol of AnomalyDINO (Damm et al., WACV 2025): disjoint slices of the good images by the
seed, mean and standard deviation over the seeds. Runs are those of `src.run`; none is made twice.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig, open_dict

from src.commands.selection import draw_curve
from src.data.record import place_of
from src.evaluation.view import pixel_convention
from src.experiment import run_experiment
from src.files import write_text
from src.identity import locate_run, newest_finished
from src.metrics import find_metric
from src.reporting.chart_files import NORMAL_COLOUR, new_panels, save_figure
from src.reporting.tables import Cell, Column, Line, Table, as_markdown
from src.saved_run import SavedRun

MEAN = "mean"


def few_shot(cfg: DictConfig) -> pd.DataFrame:
    """Make what is missing of the runs, then write few_shot.{csv,md,png} to `cfg.curve.out`."""
    options = cfg.curve
    known: dict[str, str] = {}  # fingerprints of data sets
    categories = options.categories or [cfg.data.get("category")]
    jobs = list(product(categories, options.shots, options.seeds))
    rows, last = [], None
    for number, job in enumerate(jobs, 1):
        one = run_config(cfg, *job)
        last = SavedRun(newest_finished(locate_run(one, known)))
        if not last.finished:
            print(f"run {number} of {len(jobs)}: {place_of(one.data)[1]}, {job[1]} shots")
            last = run_experiment(one).run
        rows.append(run_facts(last, str(job[1]), options.metrics))
    table, out = pd.DataFrame(rows), Path(options.out).expanduser()
    title = f"{cfg.model.name}, {cfg.backbone.name or 'no backbone'}"
    seeds = ", ".join(map(str, options.seeds))
    notes = [f"Mean and standard deviation over the seeds {seeds}, in percent."]
    if last:
        notes += [f"P{pixel_convention(last.config())[1:]}."]
    shown = [metric for metric in options.metrics if table[metric].notna().any()]
    if missing := [find_metric(key).name for key in options.metrics if key not in shown]:
        notes += [f"Not defined without labelled test images: {', '.join(missing)}."]
    texts = [as_markdown(curve_table(table, metric)) for metric in shown]
    texts += [as_markdown(basis_table(table))]
    write_text(out / "few_shot.md", "\n".join([f"# {title}", "", *notes, "", *texts]))
    write_text(out / "few_shot.csv", table.to_csv(index=False))
    save_figure(curve_figure(table, shown), out / "few_shot.png")
    print(*(out / f"few_shot.{ending}" for ending in ("csv", "md", "png")), sep="\n")
    return table


def run_config(cfg: DictConfig, category: Any, shots: str | int, seed: int) -> DictConfig:
    """The config that `src.run` has of one point of the curve."""
    one = cfg.copy()
    with open_dict(one):
        del one.curve
        one.seed = seed
        if category is not None:  # data=folder has none
            one.data.category = category
        one.data.shots = None if shots == "all" else shots
    return one


def run_facts(run: SavedRun, shots: str, metrics: Sequence[str]) -> dict[str, Any]:
    """A row of few_shot.csv: what was learnt from, what set the threshold, what was found."""
    config, measured, normal = run.config(), run.metrics(), run.calibration()
    threshold = run.read_json("model/threshold.json")
    return {
        "category": place_of(config.data)[1], "shots": shots, "seed": config.seed,
        "train": sum(entry.used == "train" for entry in run.record().entries),
        "calibration": threshold["rule"] if normal is None else normal.way.value,
        "images": threshold["n"], "alpha": threshold["alpha"], "promised": threshold["attained"],
        **{key: measured.get(key, math.nan) for key in metrics}, "run": str(run.directory),
    }  # fmt: skip


def over_seeds(table: pd.DataFrame, metric: str) -> dict[tuple[str, str], np.ndarray]:
    """Values (seeds,) by category and shots; of several categories also of their mean."""
    found = {
        (str(category), str(shots)): group.sort_values("seed")[metric].to_numpy()
        for (category, shots), group in table.groupby(["category", "shots"], sort=False)
    }
    names = dict.fromkeys(category for category, _ in found)
    if len(names) > 1:
        for shots in dict.fromkeys(table["shots"]):
            found[MEAN, shots] = np.mean([found[name, shots] for name in names], axis=0)
    return found


def curve_table(table: pd.DataFrame, metric: str) -> Table:
    """A metric by category and number of good images."""
    texts = {}
    for place, values in over_seeds(table, metric).items():
        spread = f" ± {100 * values.std(ddof=1):.1f}" if len(values) > 1 else ""
        texts[place] = f"{100 * values.mean():.1f}{spread}"
    return _by_shots(find_metric(metric).name, texts)


def basis_table(table: pd.DataFrame) -> Table:
    """How many scores of which kind set the threshold, and the false alarms that they promise."""
    texts = {}
    for place, row in table.groupby(["category", "shots"], sort=False).first().iterrows():
        promised = "" if pd.isna(row.promised) else f", {100 * row.promised:.2g} %"
        texts[place] = f"{row.images} {row.calibration}{promised}".replace("_", " ")
    return _by_shots("What set the threshold, and false alarms promised on average", texts)


def _by_shots(title: str, texts: Mapping[Any, str]) -> Table:
    """A line a category, a column for each number of images."""
    names, shots = (tuple(dict.fromkeys(part)) for part in zip(*texts, strict=True))
    lines = [Line((Cell(n), *(Cell(texts[n, k]) for k in shots))) for n in names]
    return Table(title, (Column("good images", numeric=False), *map(Column, shots)), tuple(lines))


def curve_figure(table: pd.DataFrame, metrics: Sequence[str]) -> Figure:
    """A panel a metric: a line a category, their mean in front with its spread over the seeds."""
    figure, panels = new_panels(3.6 * len(metrics), 3.4, len(metrics))
    shots = list(dict.fromkeys(table["shots"]))
    places = table.assign(place=table["shots"].map(shots.index))
    for axes, metric in zip(panels, metrics, strict=True):
        grid = places.pivot_table(index="place", columns="category", values=metric)
        found = over_seeds(table, metric)
        front = MEAN if grid.shape[1] > 1 else str(grid.columns[0])
        values = np.array([found[front, k] for k in shots])  # (shots, seeds)
        mean, spread = values.mean(1), values.std(1)
        ends = mean - spread, mean + spread
        axes.fill_between(range(len(shots)), *ends, color=NORMAL_COLOUR, alpha=0.15, lw=0)
        draw_curve(axes, grid, find_metric(metric).name)
        axes.set_xticks(range(len(shots)), shots)
        axes.set(xlabel="good images")
    return figure
