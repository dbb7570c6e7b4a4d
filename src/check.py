"""Data doctor: `python -m src.check data=folder data.root=photos`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.command_line import app, quick_imports

if TYPE_CHECKING:
    from omegaconf import DictConfig


@app("check")
def main(cfg: DictConfig) -> int:
    """Examine a data set; 0 nothing worse than a note, 1 warnings, 2 errors."""
    with quick_imports():
        from src.data.checkup import check_data_set

    return check_data_set(cfg)


if __name__ == "__main__":
    main()
