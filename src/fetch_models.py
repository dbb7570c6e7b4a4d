"""Published models: `python -m src.fetch_models model=uflow categories=[carpet,grid]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.command_line import app, quick_imports

if TYPE_CHECKING:
    from omegaconf import DictConfig


@app("fetch_models")
def main(cfg: DictConfig) -> int:
    """Fetch and convert the models of `cfg`."""
    with quick_imports():
        from src.models.uflow.fetching import fetch_published

    fetch_published(cfg)
    return 0


if __name__ == "__main__":
    main()
