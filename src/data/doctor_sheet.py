"""What the doctor found, on the terminal, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from PIL import Image
from rich.console import Console
from rich.table import Table

from src.data.doctor import Report
from src.data.images import open_rgb
from src.data.measured import ImageFacts
from src.data.samples import Finding, summary
from src.errors import DataError
from src.files import atomic, shown, write_text

_STYLE = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_COLOUR = {"train": "#4477aa", "test": "#ee6677", "calibration": "#228833"}
_SHOWN = 12  # pictures on the contact sheet


def print_report(
    report: Report, console: Console, title: str, excluded: Sequence[str] = ()
) -> None:
    """Counts and findings as tables."""
    console.print(title, style="bold", soft_wrap=True, highlight=False)
    console.print(summary(report.samples, excluded), soft_wrap=True, highlight=False, markup=False)
    counts = Table()
    for name in ("split", "defect", "images", "with mask"):
        counts.add_column(name, justify="right" if name in ("images", "with mask") else "left")
    for (split, defect), number in report.counts().items():
        masks = sum(s.mask_path is not None for s in report.samples
                    if (s.split, s.defect) == (split, defect))  # fmt: skip
        counts.add_row(split, defect, str(number), str(masks or "-"))
    console.print(counts)
    if not report.findings:
        console.print("[bold green]Nothing is wrong with these images.[/]")
        return
    table = Table(show_lines=True)
    for name in ("", "what", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for finding in report.findings:
        style = _STYLE[finding.severity]
        label = f"[{style}]{finding.severity}[/]"
        table.add_row(label, finding.what, finding.found, finding.remedy)
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
    figure = Figure(figsize=(12, 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=(1, 1.7))).flat
    charts = above.subplots(1, 4)
    for axes, name in zip(charts, ("brightness", "contrast", "sharpness"), strict=False):
        _histogram(axes, report.images, name)
    _shapes(charts[3], report.images)
    charts[0].legend(frameon=False, fontsize=8)
    chosen = contact_sheet(report)
    _place(below, chosen, "Reported and most unusual images" if chosen else "No image to show")
    _save(figure, path)


def draw_pictures(chosen: Sequence[tuple[Path, str]], title: str, path: Path) -> None:
    """PNG: up to 12 pictures, each under its name and what is said of it."""
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    _place(figure, chosen, title)
    _save(figure, path)


def _place(place: Figure | SubFigure, chosen: Sequence[tuple[Path, str]], title: str) -> None:
    place.suptitle(title, fontsize=10)
    grid = place.subplots(2, _SHOWN // 2).flat
    for axes, (picture, caption, colour) in zip(grid, _pictures(chosen), strict=False):
        axes.imshow(picture)
        axes.set_title(caption, fontsize=7, color=colour)
    for axes in place.axes:
        axes.set_axis_off()


def _save(figure: Figure, path: Path) -> None:
    with atomic(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def contact_sheet(report: Report) -> list[tuple[Path, str]]:
    """Up to 12 (file, reason): first of each finding, then the least usual training images."""
    chosen: dict[Path, str] = {}
    most = max((len(finding.files) for finding in report.findings), default=0)
    for rank in range(most):
        for finding in report.findings:
            if rank < len(finding.files):
                chosen.setdefault(finding.files[rank], _reason(finding))
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


def _reason(finding: Finding) -> str:
    return f"{finding.severity}: {finding.what.rstrip('.')}"


def _pictures(chosen: Sequence[tuple[Path, str]]) -> list[tuple[Image.Image, str, str]]:
    drawn = []
    for path, reason in chosen:
        try:
            picture = open_rgb(path)
        except DataError:
            picture = Image.new("RGB", (64, 64), "#dddddd")
        picture.thumbnail((220, 220))
        colour = "#aa0000" if reason.startswith("error") else "#333333"
        words = reason if len(reason) <= 34 else f"{reason[:33]}…"
        name = shown(Path(*path.parts[-2:]))
        drawn.append((picture, f"{name}\n{words}", colour))
    return drawn


def _histogram(axes: Axes, images: Sequence[ImageFacts], name: str) -> None:
    """One statistic, normals of each split and defective images."""
    values = [getattr(image, name) for image in images]
    bins = np.linspace(min(values, default=0), max(values, default=1) + 1e-6, 25).tolist()
    for split in ("train", "test"):
        numbers = [getattr(image, name) for image in images if image.sample.split == split]
        weights = np.full(len(numbers), 1 / max(len(numbers), 1))
        axes.hist(numbers, bins, weights=weights, alpha=0.6, color=_COLOUR[split], label=split)
    axes.set_title(f"{name} (grey levels)", fontsize=9)
    axes.set_ylabel("share of images", fontsize=8)
    axes.tick_params(labelsize=7)


def _shapes(axes: Axes, images: Sequence[ImageFacts]) -> None:
    """Width against height of every image."""
    for split in ("train", "test"):
        sizes = [image.size for image in images if image.sample.split == split]
        axes.scatter([w for _, w in sizes], [h for h, _ in sizes], s=14, alpha=0.5,
                     color=_COLOUR[split])  # fmt: skip
    axes.set_title("size (pixels)", fontsize=9)
    axes.set_xlabel("width", fontsize=8)
    axes.set_ylabel("height", fontsize=8)
    axes.tick_params(labelsize=7)
