"""The data doctor as one call: examine the samples of a configuration, or those of a run."""

import io
import itertools
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.table import Column, Table

from src.data.doctor import Report, examine
from src.data.images import open_rgb
from src.data.measured import ImageFacts, settle_depth
from src.data.record import list_samples, place_of, prepare_data
from src.data.samples import summary
from src.data.transforms import ImageTransform, view_of
from src.errors import ConfigError, DataError
from src.evaluation.threshold import suspicion
from src.files import shown, write_text
from src.reporting.chart_files import DEFECT_COLOUR, NORMAL_COLOUR, new_panels
from src.reporting.figures import above, contact_sheet, save_png
from src.saved_run import SavedRun

_STYLE = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_COLOUR = {"train": NORMAL_COLOUR, "test": DEFECT_COLOUR}
_SHOWN, _TILE_PX = 12, 190  # pictures on the contact sheet; side of each
_TOLD = 10  # pictures on console and sheet of a run


def check_data_set(cfg: DictConfig) -> int:
    """Examine `cfg.data`, write to `cfg.out`; 0: a note at most, 1: warnings, 2: errors."""
    if cfg.run:
        return rank_by_suspicion(SavedRun(Path(cfg.run)))
    data, (root, category) = cfg.data, place_of(cfg.data)
    prepare_data(data)
    found = list_samples(data)
    samples, _ = settle_depth(found, data.get("bit_depth"))
    train = [sample.image_path for sample in samples if sample.split == "train"]
    view = view_of(data.view, train) if data.get("view") else None
    transform = ImageTransform(**cfg.transform) if cfg.get("transform") else view
    published = (data.get("counts") or {}).get(category)
    named = bool(data.get("mask_dir", True))  # data sets without the key know where masks are
    report = examine(samples, transform=transform, published=published, masks_named=named)
    console = Console()
    print_report(report, console, f"{data.name}/{category} in {root}", data.get("exclude") or ())
    out = Path(cfg.out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    told, picture = out / "findings.json", out / "check.png"
    write_json(report, told)
    draw_report(report, picture)
    console.print(f"Every file name: {told}\nPicture: {picture}", soft_wrap=True, highlight=False)
    return report.exit_code


def rank_by_suspicion(run: SavedRun) -> int:
    """Rank the pictures a run was calibrated with: ten on the console, all in suspicion.csv."""
    normal = run.calibration()
    if normal is None:
        what = "The run has no scores of good pictures that its model had not seen."
        do = "give a PatchCore run, or one with calibration.fraction=0.1"
        raise ConfigError(what, found=f"no calibration.csv in {run.directory}", do=do)
    ranked, console = suspicion(normal), Console(markup=False, highlight=False)
    root, _ = place_of(run.config().data)
    table = Table("picture", "score", "p", title=f"most suspicious of {len(ranked)}, {normal.way}")
    for path, score, p in ranked[:_TOLD]:
        table.add_row(path, f"{score:.4g}", f"{p:.3f}")
    console.print(table)
    console.print("p: share of these pictures with at least this score. Bad shots can be left out "
                  f"with data.exclude=[{ranked[0][0]},...]", soft_wrap=True)  # fmt: skip
    run.write_rows("suspicion.csv", [{"path": a, "score": b, "p": c} for a, b, c in ranked])
    sheet = run.directory / "suspicion.png"
    chosen = [(root / path, f"{score:.4g}, p {p:.3f}") for path, score, p in ranked[:_TOLD]]
    save_png(_sheet(chosen), sheet)
    console.print(f"All: {sheet.with_suffix('.csv')}, picture: {sheet}", soft_wrap=True)
    return 0


def print_report(
    report: Report, console: Console, title: str, excluded: Sequence[str] = ()
) -> None:
    """Counts and findings as tables."""
    console.print(title, style="bold", soft_wrap=True, highlight=False)
    console.print(summary(report.samples, excluded), soft_wrap=True, highlight=False, markup=False)
    counts = Table(
        "split", "defect", *(Column(n, justify="right") for n in ("images", "with mask"))
    )
    for (split, defect), number in report.counts().items():
        masks = sum(s.mask_path is not None for s in report.samples
                    if (s.split, s.defect) == (split, defect))  # fmt: skip
        counts.add_row(split, defect, str(number), str(masks or "-"))
    console.print(counts)
    if not report.findings:
        console.print("[bold green]Nothing is wrong with these images.[/]")
        return
    heads = (Column(name, overflow="fold") for name in ("", "what", "found", "what to do"))
    table = Table(*heads, show_lines=True)
    for x in report.findings:
        table.add_row(f"[{_STYLE[x.severity]}]{x.severity}[/]", x.what, x.found, x.remedy)
    console.print(table)


def write_json(report: Report, path: Path) -> None:
    """Counts and findings with every file name, for other programs."""
    facts = {
        "counts": {f"{split}/{defect}": n for (split, defect), n in report.counts().items()},
        "findings": [asdict(finding) for finding in report.findings],
        "exit_code": report.exit_code,
    }
    write_text(path, json.dumps(facts, indent=2, default=str) + "\n")


def draw_report(report: Report, path: Path) -> None:
    """PNG: statistics of each split above, the most unusual and the reported images below."""
    save_png(above(_charts(report.images), _sheet(chosen_pictures(report))), path)


def chosen_pictures(report: Report) -> list[tuple[Path, str]]:
    """Up to 12 (file, reason): first of each finding, then the least usual training images."""
    chosen: dict[Path, str] = {}
    for files in itertools.zip_longest(*(finding.files for finding in report.findings)):
        for finding, file in zip(report.findings, files, strict=True):
            if file is not None:
                chosen.setdefault(file, f"{finding.severity}: {finding.what.rstrip('.')}")
    for image in unusual([i for i in report.images if i.sample.split == "train"]):
        chosen.setdefault(image.sample.image_path, "least usual in training")
    return list(chosen.items())[:_SHOWN]


def unusual(images: Sequence[ImageFacts]) -> list[ImageFacts]:
    """Images by falling distance of brightness, contrast and sharpness from the median."""
    if not images:
        return []
    values = np.array([(i.brightness, i.contrast, i.sharpness) for i in images])
    away = np.abs(values - np.median(values, axis=0))
    distance = (away / np.maximum(np.median(away, axis=0), 1e-6)).max(axis=1)
    return [images[i] for i in np.argsort(-distance, kind="stable")]


def _sheet(chosen: Sequence[tuple[Path, str]]) -> Image.Image:
    tiles, captions = [], []
    for path, reason in chosen:
        try:
            picture = open_rgb(path)
        except DataError:
            picture = Image.new("RGB", (64, 64), "#dddddd")
        picture.thumbnail((_TILE_PX, _TILE_PX))
        tiles.append(np.asarray(picture))
        captions.append("\n".join([shown(Path(*path.parts[-2:])), *textwrap.wrap(reason, 32)[:2]]))
    return contact_sheet(tiles, captions, tile_px=_TILE_PX)


def _charts(images: Sequence[ImageFacts]) -> Image.Image:
    """Three statistics and the sizes, training and test images side by side."""
    figure, panels = new_panels(12, 3.4, 4)
    for axes, name in zip(panels, ("brightness", "contrast", "sharpness"), strict=False):
        values = [getattr(image, name) for image in images]
        bins = np.linspace(min(values, default=0), max(values, default=1) + 1e-6, 25).tolist()
        for split, colour in _COLOUR.items():
            numbers = [getattr(image, name) for image in images if image.sample.split == split]
            weights = np.full(len(numbers), 1 / max(len(numbers), 1))
            axes.hist(numbers, bins, weights=weights, alpha=0.6, color=colour, label=split)
        axes.set(title=f"{name} (grey levels)", ylabel="share of images")
    for split, colour in _COLOUR.items():
        sizes = [image.size for image in images if image.sample.split == split]
        panels[3].scatter([w for _, w in sizes], [h for h, _ in sizes], 14, colour, alpha=0.5)
    panels[3].set(title="size (pixels)", xlabel="width", ylabel="height")
    panels[0].legend(frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return Image.open(stream).convert("RGB")
