"""A live page for a finished run: `python -m src.serve run=runs/...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.command_line import app, quick_imports

if TYPE_CHECKING:
    from omegaconf import DictConfig


@app("serve")
def main(cfg: DictConfig) -> int:
    """Serve until Ctrl-C."""
    with quick_imports():
        from src.serving.server import serve

    serve(cfg)
    return 0


if __name__ == "__main__":
    main()
