"""Export a finished run to one file: `python -m src.export run=runs/... format=onnx`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.command_line import app, quick_imports

if TYPE_CHECKING:
    from omegaconf import DictConfig


@app("export")
def main(cfg: DictConfig) -> int:
    """Write the file after the parity check passed."""
    with quick_imports():
        from src.deployment.exporting import export_run

    export_run(cfg)
    return 0


if __name__ == "__main__":
    main()
