"""Two run folders compared: a table, a CSV file, and the pictures on which they disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from src.data.build import build_datamodule
from src.data.images import read_sample
from src.data.samples import Sample
from src.detector import Detector
from src.errors import GoodpartsError, SavedModelError
from src.evaluation.comparison import (
    Matched,
    MetricPair,
    compare_images,
    compare_pixels,
    match,
)
from src.evaluation.localisation import aupro_key
from src.evaluation.view import pixel_convention
from src.metrics import find_metric
from src.reporting.colour_scale import ColourScale
from src.reporting.figures import contact_sheet, overlay, save_png
from src.reporting.records import Picture, outcome
from src.saved_run import SavedRun

SIGNIFICANT = 0.05


def compare_runs(cfg: DictConfig) -> list[MetricPair]:
    """Compare `cfg.run_a` and `cfg.run_b`; print the table and write everything to `cfg.out`."""
    first, second = (SavedRun(Path(path).expanduser()) for path in (cfg.run_a, cfg.run_b))
    matched = match(first.scores(), second.scores())
    rows = compare_images(matched, cfg.resamples, cfg.seed)
    pixels = [run.pixel_statistics() for run in (first, second)]
    if pixels[0] is not None and pixels[1] is not None:
        limits = {aupro_key(limit): limit for limit in second.config().evaluation.aupro_limits}
        rows += compare_pixels(
            pixels[0], pixels[1], matched.same_masks, limits, cfg.resamples, cfg.seed
        )
    out = SavedRun(_folder(cfg, first, second))
    out.write_rows("comparison.csv", [_flat(row) for row in rows])
    out.write_rows("disagreements.csv", _both(matched.disagreements))
    print_comparison(first, second, matched, rows)
    if cfg.pictures and len(matched.disagreements):
        _draw(cfg, first, second, matched, out.directory / "disagreements.png")
    print(f"Written to {out.directory}")
    return rows


def print_comparison(
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


def verdict(row: MetricPair) -> str:
    """Which run is better beyond chance: "a", "b", or "" when it cannot be told."""
    if not row.difference.p_value < SIGNIFICANT:
        return ""
    return "b" if (row.difference.value > 0) != find_metric(row.metric).lower_is_better else "a"


def _flat(row: MetricPair) -> dict[str, object]:
    apart = row.difference
    return {
        "metric": row.metric,
        "a": row.first,
        "b": row.second,
        "difference": apart.value,
        "low": apart.low,
        "high": apart.high,
        "p_value": apart.p_value,
        "better": verdict(row),
    }


def _both(apart: pd.DataFrame) -> list[dict[Any, Any]]:
    """Rows of disagreements.csv."""
    names = {"path_a": "path", "label_a": "label", "defect_a": "defect"}
    kept = ["score_a", "decision_a", "score_b", "decision_b"]
    table = apart[[*names, *kept]].rename(columns=names)
    return table.astype({"decision_a": int, "decision_b": int}).to_dict("records")


# --- pictures ----------------------------------------------------------------------------------


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
    data = build_datamodule(run.config())
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


def _overlays(run: SavedRun, samples: list[Sample], device: str) -> list:
    """Heat and outlines of one run over each image, (H, W, 3) uint8, in the run's colours."""
    detector = Detector.load(run.directory, device)
    scale = ColourScale.of_run(run)
    drawn = []
    for sample in samples:
        image = read_sample(sample)
        found = detector.detect([image])[0]
        mask = None if sample.mask_path is None else detector.transform.mask(sample.mask_path)
        display = detector.transform.display(image)
        picture = Picture(display, found.anomaly_map, mask, found.mask)
        drawn.append(overlay(picture, scale))
    return drawn


def _folder(cfg: DictConfig, first: SavedRun, second: SavedRun) -> Path:
    if cfg.out:
        return Path(cfg.out).expanduser()
    names = (f"{run.directory.parent.name}-{run.directory.name}" for run in (first, second))
    return second.directory / "comparisons" / "-vs-".join(names)
