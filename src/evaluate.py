"""Metrics again from a saved run: `python -m src.evaluate run=runs/...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.command_line import app, quick_imports

if TYPE_CHECKING:
    from omegaconf import DictConfig


@app("evaluate")
def main(cfg: DictConfig) -> int:
    """Evaluate the run, and its checkpoints when they are asked for."""
    with quick_imports():
        from src.deployment.reevaluation import evaluate_run

    evaluate_run(cfg)
    return 0


if __name__ == "__main__":
    main()
