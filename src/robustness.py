"""How a detector holds up under change: `python -m src.robustness run=runs/...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.command_line import app, quick_imports

if TYPE_CHECKING:
    from omegaconf import DictConfig


@app("robustness")
def main(cfg: DictConfig) -> int:
    """Write robustness.csv and robustness.png and print the table."""
    with quick_imports():
        from src.deployment.robustness import measure_robustness

    measure_robustness(cfg)
    return 0


if __name__ == "__main__":
    main()
