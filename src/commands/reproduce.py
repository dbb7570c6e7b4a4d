"""A reproduction: plan -> run -> judge -> tables, ours beside the paper's -> exit code."""

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from src.evaluation.view import pixel_convention
from src.files import write_text
from src.metrics import find_metric
from src.reporting import tables
from src.reporting.tables import FAILS, PLAIN, TOTAL, Cell, Column, Line, Table
from src.reproduction.judging import Row, judge_variant, measurements, verdict_line
from src.reproduction.planning import Job, Paper, Plan, VariantJobs, listed, make_plan
from src.reproduction.running import Engine, Task, duration
from src.saved_run import SavedRun

FAILED = 1


def reproduce(cfg: DictConfig) -> int:
    """Run and judge what `cfg` asks for; 1 when a run or a number fails, else 0."""
    plan = make_plan(cfg)
    left = [job for job in plan.jobs if job.folder is None]
    finished = len(plan.jobs) - len(left)
    print(f"{len(plan.jobs)} runs: {finished} finished before, {len(left)} to run.")
    if plan.absent:
        print(f"No data for {', '.join(plan.absent)}: these rows stay empty.")
    if cfg.dry_run:
        for job in plan.jobs:
            state = "to run" if job in left else "finished"
            print(f"{state:8} {job.name}: python -m src.run {shlex.join(job.overrides)}")
        return 0
    if left and not cfg.tables_only:
        run_jobs(left, cfg, finished)
    rows: list[Row] = []
    for group in plan.variants:
        rows += judge_variant(group.paper.name, group.variant, measurements(group.jobs))
    for paper in {group.paper.name: group.paper for group in plan.variants}.values():
        for path in write_tables(paper, plan, rows, Path(cfg.tables_dir), listed(cfg.overrides)):
            print(path)
    return conclude(plan, rows)


def run_jobs(
    jobs: Sequence[Job], cfg: DictConfig, finished: int = 0,
    program: Sequence[str] = (sys.executable, "-m", "src.run"),
) -> None:  # fmt: skip
    """Give jobs to `program` until each is finished or failed; others were `finished` before."""
    logs = Path(cfg.runs_dir).expanduser() / ".jobs"
    with Engine(cfg.engine, cfg.retries, finished + len(jobs), finished) as engine:
        for job in jobs:
            words, log = (*program, *job.overrides), logs / f"{job.key}.log"
            engine.submit(Task(job.key, job.name, words, log, job.is_finished))
        while engine.running:
            for _ in engine.ended():
                pass  # the board has said it; the run folders tell the rest


def conclude(plan: Plan, rows: Sequence[Row]) -> int:
    """Print the verdict; the exit code."""
    unfinished = [job for job in plan.jobs if job.folder is None]
    for job in unfinished:
        print(f"missing: {job.name}: python -m src.run {shlex.join(job.overrides)}")
    for row in (row for row in rows if row.fails):
        print(
            f"outside: {row.table}/{row.variant} {row.category} {row.metric} {row.ours:.4f}, "
            f"paper {row.paper:.4f} ({row.source}), tolerated "
            f"{row.tolerance.low:.4f} to {row.tolerance.high:.4f}"
        )
    print(verdict_line(rows, len(unfinished), plan.absent))
    return FAILED if unfinished or any(row.fails for row in rows) else 0


COLUMNS = (
    Column("category", numeric=False), Column("paper"), Column("ours"), Column("difference"),
    Column("95 % interval"), Column("std over seeds", in_latex=False),
    Column("tolerated", in_latex=False), Column("verdict", numeric=False),
    Column("seeds", in_latex=False), Column("protocol", numeric=False, in_latex=False),
    Column("config", numeric=False, in_latex=False), Column("time to fit", in_latex=False),
)  # fmt: skip


def write_tables(
    paper: Paper, plan: Plan, rows: Sequence[Row], folder: Path, changes: Sequence[str]
) -> list[Path]:
    """Write the tables of a paper; `changes`, overrides of its recipes, are not to be hidden."""
    own = [row for row in rows if row.table == paper.name]
    groups = [group for group in plan.variants if group.paper.name == paper.name]
    unfinished = sum(job.folder is None for group in groups for job in group.jobs)
    absent = sorted({category for group in groups for category in group.absent})
    changed = [f"Not the paper's recipe: run with {' '.join(changes)}."] if changes else []
    notes = [f"Source: {paper.source}.", *changed, verdict_line(own, unfinished, absent)]
    sections = _sections(own, groups)
    columns = list(_facts(Row(paper.title, "", "", "")))  # also where there are no rows
    texts = {
        "md": "\n".join(
            [f"# {paper.title}", "", *(f"{note}\n" for note in notes)]
            + [tables.as_markdown(section) for section in sections]
        ),
        "csv": pd.DataFrame(map(_facts, own), columns=columns).to_csv(index=False),
        "tex": "".join(f"% {line}\n" for line in (paper.title, *notes))
        + "\n".join(map(tables.as_latex, sections)),
        "html": tables.as_html(paper.title, sections, notes),
    }
    for ending, text in texts.items():
        write_text(folder / f"{paper.name}.{ending}", text)
    return [folder / f"{paper.name}.{ending}" for ending in texts]


def _sections(rows: Sequence[Row], groups: Sequence[VariantJobs]) -> list[Table]:
    """One table per variant, metric and source."""
    of = {group.variant.name: group for group in groups}
    members: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        members.setdefault((row.variant, row.metric, row.column), []).append(row)
    sections = []
    for (variant, metric, _), lines in members.items():
        source = next((row.source for row in lines if row.source), "")
        folder = next((job.folder for job in of[variant].jobs if job.folder is not None), None)
        notes = [f"Paper: {source}." if source else "No published number."]
        notes += [f"Note: {row.note}." for row in lines if row.note][:1]
        notes += ["Numbers in percent."]
        if folder is not None and find_metric(metric).of_pixels:
            notes += [f"Ours: {pixel_convention(SavedRun(folder).config())}."]
        title = f"{of[variant].variant.title}: {metric.removeprefix('test/')}"
        sections.append(Table(title, COLUMNS, tuple(map(_line, lines)), tuple(notes)))
    return sections


def _facts(row: Row) -> dict[str, str | float]:
    return {
        "variant": row.variant, "metric": row.metric, "source": row.source,
        "category": row.category, "paper": row.paper,
        "ours": row.ours, "difference": row.difference,
        "low": row.interval.low, "high": row.interval.high,
        "std": row.std, "tolerated_low": row.tolerance.low, "tolerated_high": row.tolerance.high,
        "seeds": row.seeds, "categories": row.of[0], "of_categories": row.of[1],
        "seconds": row.seconds, "verdict": row.verdict, "protocol": row.protocol,
        "config": " ".join(row.hashes), "note": row.note,
    }  # fmt: skip


def _line(row: Row) -> Line:
    present, total = row.of
    name = row.category if present == total else f"{row.category} of {present}/{total}"
    cells = (
        Cell(name), tables.percent(row.paper), tables.percent(row.ours),
        tables.percent(row.difference, sign=True), tables.interval(*row.interval),
        tables.percent(row.std),
        tables.interval(*row.tolerance),
        Cell(row.verdict), Cell(str(row.seeds), row.seeds), Cell(row.protocol),
        Cell(" ".join(row.hashes) or "-"),
        Cell("-" if math.isnan(row.seconds) else duration(row.seconds), row.seconds),
    )  # fmt: skip
    return Line(cells, FAILS if row.fails else TOTAL if row.members else PLAIN)
