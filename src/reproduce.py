"""The tables of the papers, run and judged: `python -m src.reproduce paper=smoke`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.command_line import app, quick_imports

if TYPE_CHECKING:
    from omegaconf import DictConfig


@app("reproduce")
def main(cfg: DictConfig) -> int:
    """Run the jobs of `cfg.paper`, write their tables, and judge them."""
    with quick_imports():
        from src.reproduction.reproduction import reproduce

    return reproduce(cfg)


if __name__ == "__main__":
    main()
