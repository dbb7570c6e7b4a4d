"""Figures for choosing a model from finished runs: `python -m src.selection runs=runs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.command_line import app, quick_imports

if TYPE_CHECKING:
    from omegaconf import DictConfig


@app("selection")
def main(cfg: DictConfig) -> int:
    """Write the table and the figures and print where they are."""
    with quick_imports():
        from src.reporting.selection import write_selection

    for path in write_selection(cfg):
        print(path)
    return 0


if __name__ == "__main__":
    main()
