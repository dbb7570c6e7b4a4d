"""Score images with a finished run: `python -m src.predict run=runs/... images=folder`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.command_line import app, quick_imports

if TYPE_CHECKING:
    from omegaconf import DictConfig


@app("predict")
def main(cfg: DictConfig) -> int:
    """Write scores, overlays, masks and maps; 3 when some files could not be read."""
    with quick_imports():
        from src.deployment.predicting import predict_images

    return predict_images(cfg)


if __name__ == "__main__":
    main()
