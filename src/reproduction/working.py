"""What every worker of a reproduction does: plan the same jobs, run those that nobody has run."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from src.errors import DataError
from src.grammar import quoted
from src.reproduction.display import LiveTable
from src.reproduction.engine import Grid, Outcome, Workplace
from src.reproduction.jobs import config_identity
from src.reproduction.papers import load_papers
from src.reproduction.planning import Choice, Plan, data_finder, plan_jobs
from src.reproduction.slots import find_slots


def make_plan(cfg: DictConfig) -> Plan:
    """The jobs that `cfg` selects."""
    papers = load_papers(cfg.paper)
    runs = (f"runs_dir={quoted(str(cfg.runs_dir))}",)
    choice = Choice(
        variants=listed(cfg.variants) or None,
        categories=listed(cfg.categories) or None,
        seeds=tuple(int(seed) for seed in listed(cfg.seeds)) or None,
        overrides=(*listed(cfg.overrides), *runs),
    )
    with config_identity() as identify, data_finder(download=cfg.download) as has_data:
        plan = plan_jobs(papers, choice, identify, has_data)
    if not plan.jobs:
        raise DataError(
            "There is nothing to run.",
            found=f"no data for {', '.join(plan.absent) or 'any category'}",
            do="set DATA_DIR (in .env) to the folder that holds mvtec/, or use paper=smoke",
        )
    return plan


def workplace(cfg: DictConfig) -> Workplace:
    """The shared folder of all grids below one runs_dir."""
    folder = Path(cfg.runs_dir).expanduser() / ".grid"
    command = (sys.executable, "-m", "src.run")
    return Workplace(folder, command, float(cfg.lease_s), int(cfg.retries))


def work(cfg: DictConfig, plan: Plan | None = None) -> Outcome:
    """Run unfinished jobs in processes of this machine."""
    jobs = (plan or make_plan(cfg)).jobs
    place = workplace(cfg)
    slots = find_slots(cfg.slots, cfg.cores_per_job, cfg.jobs_per_gpu)
    with LiveTable(jobs, len(slots), place.ledger) as watcher:
        return Grid(jobs, place, slots, watcher).run()


def listed(value: object) -> tuple[str, ...]:
    """None, one name or a list of names, as a tuple."""
    if value is None:
        return ()
    if isinstance(value, ListConfig | list | tuple):
        return tuple(str(item) for item in value)
    return (str(value),)
