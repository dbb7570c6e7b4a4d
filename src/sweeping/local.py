"""The story of a local sweep: read the file, run its trials, show what they came to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from omegaconf import DictConfig

from src.errors import ConfigError
from src.reproduction.slots import find_slots
from src.sweeping.definition import SweepDefinition, load_definition
from src.sweeping.driver import Driver, Plan
from src.sweeping.figure import draw_trials
from src.sweeping.samplers import Sampler, build_sampler
from src.sweeping.summary import print_summary, write_tables
from src.sweeping.trials import FINISHED, TrialFile


def run_sweep(cfg: DictConfig) -> int:
    """Run or continue the sweep of `cfg.file`; exit code 1 when no trial finished."""
    if not cfg.file:
        found = sorted(str(path) for path in Path("sweeps").glob("*.yaml"))
        raise ConfigError(
            "Which sweep?",
            found="no file given",
            do=f"python -m src.sweep FILE count=20 with one of: {', '.join(found) or 'none here'}",
        )
    definition = load_definition(Path(cfg.file))
    sampler = build_sampler(definition, cfg.engine, cfg.seed)
    folder = Path(cfg.sweeps_dir).expanduser() / (cfg.name or definition.path.stem)
    count = _count(cfg, definition)
    slots = find_slots(cfg.slots, cfg.cores_per_job, cfg.jobs_per_gpu)
    file = TrialFile(folder, _identity(definition, sampler, cfg.seed))
    before = len([trial for trial in file.read() if not trial.open])
    total = "every point" if count is None else f"{count} trials"
    print(f"{definition.path}: {definition.method} by {sampler.name}, {total}, {before} done")

    plan = Plan(definition, sampler, folder, count, tuple(cfg.extra))
    trials = Driver(plan, file, slots, print).run()

    paths = [*write_tables(definition, trials, folder)]
    figure = draw_trials(definition, trials, folder / "trials.png")
    print_summary(definition, trials)
    print("\n".join(str(path) for path in [*paths, *([figure] if figure else [])]))
    return 0 if any(trial.state == FINISHED for trial in trials) else 1


def _count(cfg: DictConfig, definition: SweepDefinition) -> int | None:
    count: int | None = cfg.count or definition.config.get("run_cap")
    if count is None and definition.method != "grid":
        raise ConfigError(
            f"A {definition.method} search never ends by itself.",
            found=f"neither count= nor run_cap in {definition.path}",
            do="add count=20",
        )
    if count is not None and count < 1:
        raise ConfigError("count must be at least 1.", found=str(count), do="add count=20")
    return count


def _identity(definition: SweepDefinition, sampler: Sampler, seed: int) -> str:
    """Changes when trials of an older call would no longer belong to this sweep."""
    relevant = {k: v for k, v in definition.config.items() if k not in ("name", "description")}
    relevant.pop("run_cap", None)  # more trials of the same sweep
    text = json.dumps([relevant, sampler.name, seed], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
