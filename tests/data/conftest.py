from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_image(path: Path, seed: int = 0, size: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)
    Image.fromarray(values).save(path)
    return path


def write_mask(path: Path, size: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((size, size), np.uint8)
    values[4:12, 6:20] = 255
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def image():
    return write_image


@pytest.fixture
def mask():
    return write_mask


@pytest.fixture
def mvtec_root(tmp_path) -> Path:
    """Two categories: 12 train, 4 good, 3 + 2 defective; 'good' occurs in the root's name."""
    root = tmp_path / "good" / "mvtec"
    seed = 0
    for category in ("bolt", "cloth"):
        for folder, count in (("train/good", 12), ("test/good", 4), ("test/hole", 3),
                              ("test/scratch", 2)):  # fmt: skip
            for i in range(count):
                write_image(root / category / folder / f"{i:03d}.png", seed := seed + 1)
                if folder in ("test/hole", "test/scratch"):
                    write_mask(root / category / "ground_truth" / folder[5:] / f"{i:03d}_mask.png")
    return root
