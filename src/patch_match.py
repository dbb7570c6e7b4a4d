"""The normal patches an image was compared with: `python -m src.patch_match run=... image=...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from src.command_line import app, quick_imports

if TYPE_CHECKING:
    from omegaconf import DictConfig


@app("patch_match")
def main(cfg: DictConfig) -> int:
    """Write the pictures and print where they are."""
    with quick_imports():
        from src.reporting.matching import explain_image

    for path in explain_image(cfg):
        print(path)
    return 0


if __name__ == "__main__":
    main()
