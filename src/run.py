"""One experiment: `python -m src.run model=patchcore data=mvtec data.category=bottle`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.command_line import app, quick_imports

if TYPE_CHECKING:
    from omegaconf import DictConfig


@app("run")
def main(cfg: DictConfig) -> int:
    """Run the experiment of `cfg`, or repeat a finished one with replay=<run folder>."""
    if cfg.replay:
        with quick_imports():
            from src.replay import replay_run

        return replay_run(cfg)
    with quick_imports():
        from src.experiment import run_experiment

    run_experiment(cfg)
    return 0


if __name__ == "__main__":
    main()
