"""Two run folders compared: a table, a CSV file, and the pictures on which they disagree.

With runs=FOLDER: all methods in it ranked over categories, with a critical-difference figure. With
exact=true, and for `src.run replay=RUN`: whether every number is the same to the last bit, and what
may have caused a difference.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from src.commands.selection import configuration_labels, runs_table
from src.detector import Detector, data_of, samples_with
from src.errors import ConfigError, GoodpartsError
from src.evaluation import comparison
from src.evaluation.comparison import Matched, MetricPair, match, rank_methods
from src.evaluation.overlap import aupro_key
from src.evaluation.view import pixel_convention
from src.explaining import picture_of
from src.files import write_text
from src.metrics import find_metric
from src.reporting.chart_files import critical_difference, save_figure
from src.reporting.colour_scale import ColourScale
from src.reporting.figures import contact_sheet, overlay, save_png
from src.reporting.report import flatten
from src.saved_run import SavedRun, outcome

SIGNIFICANT = 0.05
DIFFERENT = 1  # exit code of an exact comparison
_TIMING = ("speed/", "fit/")  # these depend on what else the machine does


def compare_runs(cfg: DictConfig) -> list[MetricPair] | int:
    """Compare two runs, beyond chance or to the last bit, or rank the methods below `cfg.runs`."""
    if cfg.runs:
        return write_ranks(cfg)
    for name in (name for name in ("run_a", "run_b") if cfg[name] is None):
        do = f"add {name}=..., or runs=FOLDER to rank all methods in it"
        raise ConfigError(f"{name} is needed.", found="no value", do=do)
    first, second = SavedRun(Path(cfg.run_a)), SavedRun(Path(cfg.run_b))
    if cfg.exact:
        return say_exactly(first, second)
    matched = match(first.scores(), second.scores())
    rows = comparison.compare_images(matched, cfg.resamples, cfg.seed)
    pixels = [run.pixel_statistics() for run in (first, second)]
    if pixels[0] is not None and pixels[1] is not None:
        limits = {aupro_key(limit): limit for limit in second.config().evaluation.aupro_limits}
        rows += comparison.compare_pixels(
            pixels[0], pixels[1], matched.same_masks, limits, cfg.resamples, cfg.seed
        )
    folders = (f"{run.directory.parent.name}-{run.directory.name}" for run in (first, second))
    out = SavedRun(Path(cfg.out or second.directory / "comparisons" / "-vs-".join(folders)))
    apart = matched.disagreements
    columns = {"value": "difference", "low": "low", "high": "high", "p_value": "p_value"}
    out.write_rows("comparison.csv", [
        {"metric": row.metric, "a": row.first, "b": row.second}
        | {name: getattr(row.difference, key) for key, name in columns.items()}
        | {"better": verdict(row)}
        for row in rows
    ])  # fmt: skip
    names = {"path_a": "path", "label_a": "label", "defect_a": "defect"}
    both = apart[[*names, "score_a", "decision_a", "score_b", "decision_b"]].rename(columns=names)
    both = both.astype({"decision_a": int, "decision_b": int})
    records: list[Any] = both.to_dict("records")
    out.write_rows("disagreements.csv", records)
    _print_comparison(first, second, matched, rows)
    if cfg.pictures and len(apart):
        runs = {"a": first, "b": second}
        _draw(runs, apart[: cfg.pictures], cfg.device, out.directory / "disagreements.png")
    print(f"Written to {out.directory}")
    return rows


def write_ranks(cfg: DictConfig) -> int:
    """Rank the methods of the runs below `cfg.runs` over their categories by `cfg.metric`.

    Seeds are averaged; categories that a method lacks are left out. DataError: too few are left.
    """
    metric, runs = find_metric(cfg.metric), runs_table(Path(cfg.runs))
    known = runs[runs[metric.key].notna()] if metric.key in runs else runs[:0]
    table = pd.DataFrame()
    if len(known):
        places = [Path(run).parent.name for run in known["run"]]  # also of data=folder
        known = known.assign(method=configuration_labels(known), category=places)
        table = known.pivot_table(metric.key, ["data", "category"], "method").dropna()
    ranks = rank_methods(table, lower_is_better=metric.lower_is_better)
    out = Path(cfg.out or Path(cfg.runs) / "ranks")
    means = pd.DataFrame({"mean_rank": ranks.mean, "mean": table.mean().loc[ranks.mean.index]})
    write_text(out / "ranks.csv", means.to_csv(index_label="method"))
    save_figure(critical_difference(ranks, metric.name), out / "critical_difference.png")
    grids = {pixel_convention(SavedRun(Path(run)).config()) for run in known["run"]}
    print(
        f"{metric.name} on {ranks.categories} categories; Friedman p {ranks.p_value:.2g}; mean "
        f"ranks that differ by {ranks.critical:.2f} or less cannot be told apart (Nemenyi, 0.05)",
        *sorted(grids if metric.of_pixels else ()), means.round(4).to_string(),
        f"Written to {out}", sep="\n",
    )  # fmt: skip
    return 0


def verdict(row: MetricPair) -> str:
    """Which run is better beyond chance: "a", "b", or "" when it cannot be told."""
    if not row.difference.p_value < SIGNIFICANT:
        return ""
    return "b" if (row.difference.value > 0) != find_metric(row.metric).lower_is_better else "a"


class ExactComparison(NamedTuple):
    """Two runs of one config, number by number."""

    metrics: list[str]  # compared; times are not
    different: dict[str, tuple[float, float]]  # metrics that are not identical; NaN equals NaN
    facts: dict[str, tuple[str, str]]  # of the manifests and the data, those that differ
    score_change: float  # largest difference of an image score; NaN: other images

    @property
    def identical(self) -> bool:
        """Whether every metric and every image score is the same to the last bit."""
        return not self.different and self.score_change == 0


def compare_exactly(first: SavedRun, second: SavedRun) -> ExactComparison:
    """Metrics, image scores and manifest facts of two runs."""
    old, new = first.metrics(), second.metrics()
    keys = [key for key in old | new if not key.startswith(_TIMING)]
    pairs = {key: (old.get(key, math.nan), new.get(key, math.nan)) for key in keys}
    before, after = (dict(flatten(run.read_json("manifest.json"))) for run in (first, second))
    facts = {
        name: (str(before.get(name)), str(after.get(name)))
        for name in before | after
        if before.get(name) != after.get(name) and name not in ("started", "command")
    }
    if difference := first.record().difference(second.record()):
        facts["data"] = "as fitted on", difference
    old_scores, new_scores = (run.scores().set_index("path").score for run in (first, second))
    same = list(old_scores.index) == list(new_scores.index)
    change = (new_scores - old_scores).abs().max() if len(old_scores) else 0.0
    return ExactComparison(
        metrics=keys,
        different={k: (a, b) for k, (a, b) in pairs.items() if a != b and (a == a or b == b)},
        facts=facts,
        score_change=float(change) if same else math.nan,
    )


def say_exactly(first: SavedRun, second: SavedRun) -> int:
    """The verdict; then what differs, and what may have caused it. Returns the exit code."""
    found, console = compare_exactly(first, second), Console(highlight=False)
    total = len(found.metrics)
    if found.identical:
        console.print(f"identical: {total} metrics and every image score", soft_wrap=True)
    else:
        console.print(
            f"DIFFERENT: {len(found.different)} of {total} metrics; largest change of an "
            f"image score {found.score_change:.3g}",
            soft_wrap=True,
        )
        table = Table("metric", "A", "B", "B - A", box=None)
        for key, (old, new) in found.different.items():
            table.add_row(key, f"{old:.6f}", f"{new:.6f}", f"{new - old:+.2e}")
        console.print(table)
    for name, (before, now) in found.facts.items():
        console.print(f"changed  {name}: {before} -> {now}", markup=False, soft_wrap=True)
    console.print(f"A  {first.directory}\nB  {second.directory}", soft_wrap=True)
    return 0 if found.identical else DIFFERENT


def _print_comparison(
    first: SavedRun, second: SavedRun, matched: Matched, rows: list[MetricPair]
) -> None:
    """The table of metrics on the console, significant differences in bold."""
    console = Console()
    console.print(f"A  {first.directory}\nB  {second.directory}", highlight=False)
    count = len(matched.images)
    scope = f"{count} common images"
    if matched.only_first or matched.only_second:
        scope = (
            f"The runs are on DIFFERENT data: compared on the {count} test images that both have, "
            f"of {count + matched.only_first} in A and {count + matched.only_second} in B"
        )
    other = count - len(matched.same_masks)
    scope += f"; {other} with another mask, left out of pixel metrics" if other else ""
    scope += f"; decisions differ on {len(matched.disagreements)}"
    console.print(scope, highlight=False, soft_wrap=True)
    if any(find_metric(row.metric).of_pixels for row in rows):
        a, b = (pixel_convention(run.config()) for run in (first, second))
        advice = "src.evaluate evaluation.whole_image=true evaluation.size=256"
        both = f"A  {a}\nB  {b}\nThese cover different pixels; {advice} measures both alike."
        console.print(a if a == b else both, highlight=False)
    table = Table("metric", "A", "B", "B - A", "95 % interval", "p", box=None)
    for row in rows:
        apart = row.difference
        table.add_row(
            row.metric.removeprefix("test/"), f"{row.first:.4f}", f"{row.second:.4f}",
            f"{apart.value:+.4f}", f"{apart.low:+.4f} .. {apart.high:+.4f}",
            f"{apart.p_value:.4f}", style="bold" if apart.p_value < SIGNIFICANT else "",
        )  # fmt: skip
    console.print(table)


def _draw(runs: dict[str, SavedRun], apart: pd.DataFrame, device: str, target: Path) -> None:
    """Overlays of both runs side by side; without the images or models, a line that says so."""
    try:
        contents = dict(zip(apart.path_a, apart.content, strict=True))
        samples, sides = samples_with(data_of(runs["a"].config()), contents), []
        for run in runs.values():
            detector, scale = Detector.load(run.directory, device), ColourScale.of_run(run)
            sides.append([overlay(picture_of(detector, sample), scale) for sample in samples])
    except GoodpartsError as error:
        print(f"No pictures: {error}")
        return
    captions = [
        f"{run.upper()} {outcome(row.label_a, row[f'decision_{run}'])} "
        f"{row[f'score_{run}']:.4g}: {'/'.join(Path(row[f'path_{run}']).parts[-2:])}"
        for _, row in apart.iterrows()
        for run in runs
    ]
    tiles = [tile for pair in zip(*sides, strict=True) for tile in pair]
    save_png(contact_sheet(tiles, captions, columns=4, tile_px=280), target)
