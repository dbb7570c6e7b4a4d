"""`python -m src.run`: one experiment, or the repetition of a finished one."""

from __future__ import annotations

from omegaconf import DictConfig

from src.commands.replay import replay_run
from src.experiment import run_experiment


def run(cfg: DictConfig) -> int:
    """Run the experiment of `cfg`, or repeat a finished one with replay=<run folder>."""
    if cfg.replay:
        return replay_run(cfg)
    run_experiment(cfg)
    return 0
