"""Two runs side by side: `python -m src.compare run_a=runs/... run_b=runs/...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.command_line import app, quick_imports

if TYPE_CHECKING:
    from omegaconf import DictConfig


@app("compare")
def main(cfg: DictConfig) -> int:
    """Print and save how the metrics differ, and the images on which decisions disagree."""
    with quick_imports():
        from src.reporting.comparing import compare_runs

    compare_runs(cfg)
    return 0


if __name__ == "__main__":
    main()
