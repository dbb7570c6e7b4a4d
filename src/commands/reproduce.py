"""The story of a reproduction: plan -> run -> collect -> judge -> tables -> exit code."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from src.reproduction.judging import Row, judge_variant, measurements, verdict_line
from src.reproduction.paper_tables import write_tables
from src.reproduction.planning import Job, Plan, listed, make_plan
from src.reproduction.running import Engine, Task

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
    jobs: Sequence[Job],
    cfg: DictConfig,
    finished: int = 0,
    program: Sequence[str] = (sys.executable, "-m", "src.run"),
) -> None:
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
