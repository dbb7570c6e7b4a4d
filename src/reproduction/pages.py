"""The tables of a paper: ours beside the paper's, in every format of `reporting.tables`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from src.evaluation.view import pixel_convention
from src.files import write_text
from src.metrics import find_metric
from src.reporting import tables
from src.reporting.tables import FAILS, PLAIN, TOTAL, Cell, Column, Line, Table
from src.reproduction.judging import Row, verdict_line
from src.reproduction.papers import Paper
from src.reproduction.planning import Cell as VariantJobs
from src.reproduction.planning import Plan
from src.reproduction.progress import duration
from src.saved_run import SavedRun

COLUMNS = (
    Column("category", numeric=False),
    Column("paper"),
    Column("ours"),
    Column("difference"),
    Column("95 % interval"),
    Column("std over seeds", in_latex=False),
    Column("tolerated", in_latex=False),
    Column("verdict", numeric=False),
    Column("seeds", in_latex=False),
    Column("protocol", numeric=False, in_latex=False),
    Column("config", numeric=False, in_latex=False),
    Column("time to fit", in_latex=False),
)
LONG = (
    *(Column(name, numeric=False) for name in ("variant", "metric", "source", "category")),
    *(Column(name) for name in (
        "paper", "ours", "difference", "low", "high", "std", "tolerated_low", "tolerated_high",
        "seeds", "categories", "of_categories", "seconds",
    )),
    *(Column(name, numeric=False) for name in ("verdict", "protocol", "config", "note")),
)  # fmt: skip


@dataclass(frozen=True)
class Page:
    """Everything about one paper."""

    title: str
    notes: tuple[str, ...]  # source and verdict
    sections: tuple[Table, ...]  # one per variant, metric and source
    long: Table  # all rows in one, for machines


def paper_page(paper: Paper, plan: Plan, rows: Sequence[Row], changes: Sequence[str]) -> Page:
    """The page of `paper` from the judged rows of a whole reproduction.

    `changes` are overrides of the recipes, which the page must not hide.
    """
    own = [row for row in rows if row.table == paper.name]
    cells = [cell for cell in plan.cells if cell.paper.name == paper.name]
    unfinished = sum(job.folder is None for cell in cells for job in cell.jobs)
    absent = sorted({category for cell in cells for category in cell.absent})
    verdict = verdict_line(own, unfinished, absent)
    changed = [f"Not the paper's recipe: run with {' '.join(changes)}."] if changes else []
    grouped: dict[tuple[str, str, int], list[Row]] = {}
    for row in own:
        grouped.setdefault((row.variant, row.metric, row.column), []).append(row)
    titles = {variant.name: variant.title for variant in paper.variants}
    pixels = {cell.variant.name: _convention(cell) for cell in cells}
    return Page(
        title=paper.title,
        notes=(f"Source: {paper.source}.", *changed, verdict),
        sections=tuple(
            _section(
                f"{titles[variant]}: {metric.removeprefix('test/')}",
                members,
                pixels.get(variant, "") if find_metric(metric).of_pixels else "",
            )
            for (variant, metric, _), members in grouped.items()
        ),
        long=Table(paper.title, LONG, tuple(_long_line(row) for row in own)),
    )


def write_page(page: Page, folder: Path, name: str) -> list[Path]:
    """Write `folder`/`name`.{md,csv,tex,html}; their paths."""
    head = [f"# {page.title}", "", *(f"{note}\n" for note in page.notes)]
    comments = "".join(f"% {note}\n" for note in (page.title, *page.notes))
    texts = {
        "md": "\n".join([*head, *map(tables.as_markdown, page.sections)]),
        "csv": tables.as_csv(page.long),
        "tex": comments + "\n".join(map(tables.as_latex, page.sections)),
        "html": tables.as_html(page.title, page.sections, page.notes),
    }
    for ending, text in texts.items():
        write_text(folder / f"{name}.{ending}", text)
    return [folder / f"{name}.{ending}" for ending in texts]


def _convention(cell: VariantJobs) -> str:
    """What the pixel metrics of a variant cover, from its first finished run."""
    folder = next((job.folder for job in cell.jobs if job.folder is not None), None)
    return "" if folder is None else f"Ours: {pixel_convention(SavedRun(folder).config())}."


def _section(title: str, rows: Sequence[Row], convention: str) -> Table:
    source = next((row.source for row in rows if row.source), "")
    note = next((row.note for row in rows if row.note), "")
    notes = [f"Paper: {source}." if source else "No published number."]
    notes += [f"Note: {note}."] if note else []
    notes += ["Numbers in percent.", *([convention] if convention else [])]
    return Table(title, COLUMNS, tuple(_line(row) for row in rows), tuple(notes))


def _line(row: Row) -> Line:
    present, total = row.of
    name = row.category if present == total else f"{row.category} of {present}/{total}"
    cells = (
        Cell(name), tables.percent(row.paper), tables.percent(row.ours),
        tables.percent(row.difference, sign=True), tables.interval(*row.interval),
        tables.percent(row.std),
        Cell("-", math.nan) if row.paper is None else tables.interval(*row.tolerance),
        Cell(row.verdict), Cell(str(row.seeds), row.seeds), Cell(row.protocol),
        Cell(" ".join(row.hashes) or "-"), _time(row.seconds),
    )  # fmt: skip
    return Line(cells, FAILS if row.fails else TOTAL if row.is_mean else PLAIN)


def _long_line(row: Row) -> Line:
    texts = (row.variant, row.metric, row.source, row.category)
    numbers = (
        row.paper, row.ours, row.difference, *row.interval, row.std, *row.tolerance,
        row.seeds, *row.of, row.seconds,
    )  # fmt: skip
    last = (row.verdict, row.protocol, " ".join(row.hashes), row.note)
    return Line((*map(Cell, texts), *map(tables.number, numbers), *map(Cell, last)))


def _time(seconds: float) -> Cell:
    return Cell("-", math.nan) if math.isnan(seconds) else Cell(duration(seconds), seconds)
