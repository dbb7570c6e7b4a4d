"""A generated data set in MVTec's layout: works anywhere, needs no download and no licence.

A texture and an object with six kinds of defects. Light, pose, grain, focus and dust vary
from image to image, so that neither a pixel-wise mean nor a histogram finds the defects
(`tests/data/test_synthetic.py` measures it), while patch features do.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from src.data.drawing import PARTS, photograph
from src.data.drawn_defects import DEFECTS, draw_defective
from src.data.mvtec import index_mvtec
from src.data.samples import Found
from src.errors import ConfigError, did_you_mean

#: Raise it whenever a drawing changes: old folders are then left alone and new ones are made.
VERSION = 1
#: What determines every pixel: size, train, test_normal, test_defective, seed; explained by
#: conf/data/synthetic.yaml.
Recipe = Mapping[str, int]


def recipe_folder(root: Path, recipe: Recipe) -> Path:
    """Where this recipe lives below `root`: another recipe or version is another folder."""
    facts = json.dumps({"version": VERSION, **recipe}, sort_keys=True)
    return root / f"{recipe['size']}px-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def index_synthetic(root: Path, category: str, *, recipe: Recipe) -> Found:
    """Samples of a generated category.

    Raises:
        DataError: it has not been generated.
    """
    return index_mvtec(_home(root, category, recipe), category)


def prepare_synthetic(root: Path, category: str, *, recipe: Recipe) -> None:
    """Generate a category unless it is there; safe when several processes ask at once.

    Built in a temporary folder that is renamed at the end: a folder that exists is complete.
    """
    home = _home(root, category, recipe)
    target = home / category
    if target.is_dir():
        return
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / f".{category}.lock"):
        if target.is_dir():
            return
        partial = home / f"{category}.{os.getpid()}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _write_category(partial, category, recipe)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def draw_pair(category: str, defect: str, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One photograph uint8 (S, S, 3) and its mask bool (S, S); defect "good" for a normal one."""
    camera = np.random.default_rng((seed, 1))
    if defect == "good":
        scene = PARTS[category](size, np.random.default_rng(seed), None)
        return photograph(scene, camera), np.zeros((size, size), bool)
    scene, mask = draw_defective(PARTS[category], defect, size, seed)
    return photograph(scene, camera), mask


def _write_category(folder: Path, category: str, recipe: Recipe) -> None:
    """Every image and mask of a category, and the record of how it was made."""
    plan = [("train", "good")] * recipe["train"] + [("test", "good")] * recipe["test_normal"]
    plan += [("test", DEFECTS[i % len(DEFECTS)]) for i in range(recipe["test_defective"])]
    number = 2 + sorted(PARTS).index(category)  # as when there were more products
    base = np.random.SeedSequence((recipe["seed"], number, VERSION))
    seeds = base.generate_state(len(plan), np.uint64).tolist()
    for i, ((split, defect), seed) in enumerate(zip(plan, seeds, strict=True)):
        number = plan[:i].count((split, defect))
        image, mask = draw_pair(category, defect, recipe["size"], seed)
        _save(image, folder / split / defect / f"{number:03d}.png")
        if defect != "good":
            masks = folder / "ground_truth" / defect
            _save(mask.astype(np.uint8) * 255, masks / f"{number:03d}_mask.png")
    record = {"version": VERSION, "category": category, **recipe}
    (folder / "generated.json").write_text(json.dumps(record, indent=2) + "\n")


def _save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)  # twice as fast, 6 % larger


def _home(root: Path, category: str, recipe: Recipe) -> Path:
    """The folder of the recipe, if it can hold this category."""
    if category not in PARTS:
        raise ConfigError(
            f"There is no synthetic category {category!r}.",
            found=", ".join(sorted(PARTS)),
            do=f"{did_you_mean(category, PARTS)} Set data.category to it.",
        )
    return recipe_folder(root.absolute(), recipe)
