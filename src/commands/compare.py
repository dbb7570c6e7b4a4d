"""Two run folders compared: a table, a CSV file, and the pictures on which they disagree.

With exact=true, and for `python -m src.run replay=RUN`: whether every number is the same to the
last bit, and what of code, packages, machine and data may have caused a difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from src.data.datamodule import AnomalyDataModule
from src.data.images import read_sample
from src.data.samples import Sample
from src.detector import Detector
from src.errors import GoodpartsError, SavedModelError
from src.evaluation.comparison import Matched, MetricPair, compare_images, compare_pixels, match
from src.evaluation.overlap import aupro_key
from src.evaluation.view import pixel_convention
from src.metrics import find_metric
from src.reporting.colour_scale import ColourScale
from src.reporting.figures import contact_sheet, overlay, save_png
from src.reporting.records import Picture, outcome
from src.reporting.report import flatten
from src.saved_run import SavedRun

SIGNIFICANT = 0.05
DIFFERENT = 1  # exit code of an exact comparison
_TIMING = ("speed/", "fit/")  # these depend on what else the machine does


def compare_runs(cfg: DictConfig) -> list[MetricPair] | int:
    """Compare `cfg.run_a` and `cfg.run_b`; print the table and write everything to `cfg.out`.

    With `cfg.exact` nothing is written; the exit code is 1 when the runs differ in any number.
    """
    first, second = (SavedRun(Path(path).expanduser()) for path in (cfg.run_a, cfg.run_b))
    if cfg.exact:
        return say_exactly(first, second)
    matched = match(first.scores(), second.scores())
    rows = compare_images(matched, cfg.resamples, cfg.seed)
    pixels = [run.pixel_statistics() for run in (first, second)]
    if pixels[0] is not None and pixels[1] is not None:
        limits = {aupro_key(limit): limit for limit in second.config().evaluation.aupro_limits}
        rows += compare_pixels(
            pixels[0], pixels[1], matched.same_masks, limits, cfg.resamples, cfg.seed
        )
    names = (f"{run.directory.parent.name}-{run.directory.name}" for run in (first, second))
    default = second.directory / "comparisons" / "-vs-".join(names)
    out = SavedRun(Path(cfg.out).expanduser() if cfg.out else default)
    out.write_rows("comparison.csv", [_flat(row) for row in rows])
    out.write_rows("disagreements.csv", _both(matched.disagreements))
    _print_comparison(first, second, matched, rows)
    if cfg.pictures and len(matched.disagreements):
        _draw(cfg, first, second, matched, out.directory / "disagreements.png")
    print(f"Written to {out.directory}")
    return rows


def verdict(row: MetricPair) -> str:
    """Which run is better beyond chance: "a", "b", or "" when it cannot be told."""
    if not row.difference.p_value < SIGNIFICANT:
        return ""
    return "b" if (row.difference.value > 0) != find_metric(row.metric).lower_is_better else "a"


# --- to the last bit -----------------------------------------------------------------------------


@dataclass(frozen=True)
class ExactComparison:
    """Two runs of one config, number by number."""

    metrics: dict[str, tuple[float, float]]  # without times
    facts: dict[str, tuple[str, str]]  # of the manifests and the data, those that differ
    score_change: float  # largest difference of an image score; NaN: other images

    @property
    def different(self) -> dict[str, tuple[float, float]]:
        """Metrics that are not identical; NaN equals NaN."""
        return {
            key: (a, b)
            for key, (a, b) in self.metrics.items()
            if a != b and not (math.isnan(a) and math.isnan(b))
        }

    @property
    def identical(self) -> bool:
        """Whether every metric and every image score is the same to the last bit."""
        return not self.different and self.score_change == 0


def compare_exactly(first: SavedRun, second: SavedRun) -> ExactComparison:
    """Metrics, image scores and manifest facts of two runs."""
    old, new = first.metrics(), second.metrics()
    keys = [key for key in old | new if not key.startswith(_TIMING)]
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
        metrics={key: (old.get(key, math.nan), new.get(key, math.nan)) for key in keys},
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
            f"DIFFERENT: {len(found.different)} of {total} metrics; largest change of an image "
            f"score {found.score_change:.3g}",
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


# --- beyond chance -------------------------------------------------------------------------------


def _print_comparison(
    first: SavedRun, second: SavedRun, matched: Matched, rows: list[MetricPair]
) -> None:
    """The table of metrics on the console, significant differences in bold."""
    console = Console()
    console.print(f"A  {first.directory}\nB  {second.directory}", highlight=False)
    console.print(_scope(matched), highlight=False, soft_wrap=True)
    if any(find_metric(row.metric).of_pixels for row in rows):
        console.print(*_conventions(first, second), sep="\n", highlight=False)
    table = Table("metric", "A", "B", "B - A", "95 % interval", "p", box=None)
    for row in rows:
        apart = row.difference
        table.add_row(
            row.metric.removeprefix("test/"), f"{row.first:.4f}", f"{row.second:.4f}",
            f"{apart.value:+.4f}", f"{apart.low:+.4f} .. {apart.high:+.4f}",
            f"{apart.p_value:.4f}", style="bold" if apart.p_value < SIGNIFICANT else "",
        )  # fmt: skip
    console.print(table)


def _conventions(first: SavedRun, second: SavedRun) -> list[str]:
    """What the pixel metrics of both runs were measured on, and whether that is the same."""
    a, b = (pixel_convention(run.config()) for run in (first, second))
    if a == b:
        return [a]
    advice = "src.evaluate evaluation.whole_image=true evaluation.size=256"
    return [f"A  {a}", f"B  {b}", f"These cover different pixels; {advice} measures both alike."]


def _scope(matched: Matched) -> str:
    """On which images the runs are compared."""
    count = len(matched.images)
    told = f"{count} common images"
    if matched.only_first or matched.only_second:
        told = (
            f"The runs are on DIFFERENT data: compared on the {count} test images that both have, "
            f"of {count + matched.only_first} in A and {count + matched.only_second} in B"
        )
    other = count - len(matched.same_masks)
    told += f"; {other} with another mask, left out of pixel metrics" if other else ""
    return f"{told}; decisions differ on {len(matched.disagreements)}"


def _flat(row: MetricPair) -> dict[str, object]:
    apart = row.difference
    return {
        "metric": row.metric, "a": row.first, "b": row.second, "difference": apart.value,
        "low": apart.low, "high": apart.high, "p_value": apart.p_value, "better": verdict(row),
    }  # fmt: skip


def _both(apart: pd.DataFrame) -> list[dict[Any, Any]]:
    """Rows of disagreements.csv."""
    names = {"path_a": "path", "label_a": "label", "defect_a": "defect"}
    kept = ["score_a", "decision_a", "score_b", "decision_b"]
    table = apart[[*names, *kept]].rename(columns=names)
    return table.astype({"decision_a": int, "decision_b": int}).to_dict("records")


def _draw(
    cfg: DictConfig, first: SavedRun, second: SavedRun, matched: Matched, target: Path
) -> None:
    """Overlays of both runs side by side; without the images or models, a line that says so."""
    apart = matched.disagreements[: cfg.pictures]
    try:
        samples = _samples(first, apart)
        sides = [_overlays(run, samples, cfg.device) for run in (first, second)]
    except GoodpartsError as error:
        print(f"No pictures: {error}")
        return
    captions = [
        f"{run.upper()} {outcome(row.label_a, row[f'decision_{run}'])} "
        f"{row[f'score_{run}']:.4g}: {'/'.join(Path(row[f'path_{run}']).parts[-2:])}"
        for _, row in apart.iterrows()
        for run in "ab"
    ]
    tiles = [tile for pair in zip(*sides, strict=True) for tile in pair]
    save_png(contact_sheet(tiles, captions, columns=4, tile_px=280), target)


def _samples(run: SavedRun, rows: pd.DataFrame) -> list[Sample]:
    """The samples of the run with these contents."""
    data = AnomalyDataModule(run.config())
    data.prepare_data()
    data.setup()
    here = {data.entry_of(sample).content: sample for sample in data.found}
    missing = rows.path_a[~rows.content.isin(list(here))]
    if len(missing):
        raise SavedModelError(
            "Images of the run are missing or were changed.",
            found=f"{len(missing)} below {data.root}, first: {missing.iloc[0]}",
            do="put them back, or compare with pictures=0",
        )
    return [here[content] for content in rows.content]


def _overlays(run: SavedRun, samples: list[Sample], device: str) -> list[np.ndarray]:
    """Heat and outlines of one run over each image, (H, W, 3) uint8, in the run's colours."""
    detector, scale = Detector.load(run.directory, device), ColourScale.of_run(run)
    drawn = []
    for sample in samples:
        image = read_sample(sample)
        found = detector.detect([image])[0]
        mask = None if sample.mask_path is None else detector.transform.mask(sample.mask_path)
        display = detector.transform.display(image)
        drawn.append(overlay(Picture(display, found.anomaly_map, mask, found.mask), scale))
    return drawn
