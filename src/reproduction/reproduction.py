"""The story of a reproduction: plan -> work -> collect -> judge -> tables -> exit code."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from src.command_line import INTERRUPTED
from src.reproduction.collecting import cells
from src.reproduction.engine import Outcome, Workplace
from src.reproduction.judging import Row, judge_variant, verdict_line
from src.reproduction.launching import chosen_launcher, launch_workers
from src.reproduction.pages import paper_page, write_page
from src.reproduction.planning import Plan
from src.reproduction.working import listed, make_plan, work, workplace

FAILED = 1


def reproduce(cfg: DictConfig) -> int:
    """Run and judge what `cfg` asks for.

    Returns:
        0 when every judged number is within its tolerance and no run failed, 1 otherwise, 130
        when interrupted.
    """
    plan = make_plan(cfg)
    print_plan(plan)
    if cfg.dry_run:
        for job in plan.jobs:
            state = "finished" if job.is_finished() else "to run"
            print(f"{state:8} {job.name}: python -m src.run {shlex.join(job.overrides)}")
        return 0
    outcome = Outcome() if cfg.tables_only else run_all(cfg, plan)
    if outcome.interrupted:
        print("Interrupted. Run the same command again to continue.", file=sys.stderr)
        return INTERRUPTED
    rows = judge(plan, workplace(cfg))
    for paper in {cell.paper.name: cell.paper for cell in plan.cells}.values():
        page = paper_page(paper, plan, rows, listed(cfg.overrides))
        for path in write_page(page, Path(cfg.tables_dir), paper.name):
            print(path)
    return conclude(plan, rows, outcome)


def run_all(cfg: DictConfig, plan: Plan) -> Outcome:
    """Run what is unfinished, here or through the chosen launcher."""
    if chosen_launcher() is None or all(job.is_finished() for job in plan.jobs):
        return work(cfg, plan)
    before = {job.key for job in plan.jobs if job.is_finished()}
    for message in launch_workers(cfg, int(cfg.workers)):
        print(message, file=sys.stderr)
    outcome = Outcome(before=[job for job in plan.jobs if job.key in before])
    ledger = workplace(cfg).ledger
    for job in plan.jobs:
        if job.key not in before and job.is_finished():
            outcome.elsewhere.append(job)
        elif job.key not in before and (attempts := ledger.attempts(job.key)):
            outcome.failed.append((job, attempts[-1]))
    return outcome


def judge(plan: Plan, place: Workplace) -> list[Row]:
    """Rows of every table from the runs that are finished now."""
    rows: list[Row] = []
    for cell in plan.cells:
        rows += judge_variant(cell.paper.name, cell.variant, cells(cell.jobs, place.ledger))
    return rows


def print_plan(plan: Plan) -> None:
    """How many runs there are, and what cannot be run."""
    finished = [job for job in plan.jobs if job.is_finished()]
    left = len(plan.jobs) - len(finished)
    print(f"{len(plan.jobs)} runs: {len(finished)} finished before, {left} to run.")
    if plan.absent:
        print(f"No data for {', '.join(plan.absent)}: these rows stay empty.")


def conclude(plan: Plan, rows: Sequence[Row], outcome: Outcome) -> int:
    """Print the verdict; the exit code."""
    unfinished = [job for job in plan.jobs if not job.is_finished()]
    ran = len(outcome.done) + len(outcome.elsewhere)
    print(f"{len(outcome.before)} runs were finished before, {ran} ran now.")
    for job, attempt in outcome.failed:
        print(f"failed: {job.name}, exit code {attempt.exit_code}, see {attempt.log}")
    for row in (row for row in rows if row.fails):
        print(
            f"outside: {row.table}/{row.variant} {row.category} {row.metric} {row.ours:.4f}, "
            f"paper {row.paper:.4f} ({row.source}), tolerated "
            f"{row.tolerance.low:.4f} to {row.tolerance.high:.4f}"
        )
    print(verdict_line(rows, len(unfinished), plan.absent))
    return FAILED if unfinished or any(row.fails for row in rows) else 0
