"""A generated data set in MVTec's layout: works anywhere, needs no download and no licence.

Light, pose, grain, focus and dust vary from image to image, so that neither a pixel-wise mean nor a
histogram finds the defects, while patch features do (`tests/data/test_synthetic.py`).
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image
from scipy.ndimage import binary_closing, binary_erosion, binary_fill_holes

from src.data import drawing
from src.data.drawing import PARTS, Array, Draw, Rng, Scene
from src.data.listing import missing
from src.data.mvtec import index_mvtec
from src.data.samples import Found

#: Raise it whenever a drawing changes: old folders are then left alone and new ones are made.
VERSION = 1
Recipe = Mapping[str, int]  # what determines every pixel, explained by conf/data/synthetic.yaml
#: Changes a scene in place and returns the mask (S, S) in [0, 1] of what it touched.
Damage = Callable[[Scene, Rng], Array]


def recipe_folder(root: Path, recipe: Recipe) -> Path:
    """Where this recipe lives below `root`: another recipe or version is another folder."""
    facts = json.dumps({"version": VERSION, **recipe}, sort_keys=True)
    return root / f"{recipe['size']}px-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def index_synthetic(root: Path, category: str, *, recipe: Recipe) -> Found:
    """Samples of a generated category; DataError: it has not been generated."""
    return index_mvtec(recipe_folder(root.absolute(), recipe), category)


def prepare_synthetic(root: Path, category: str, *, recipe: Recipe) -> None:
    """Generate a category unless it is there; safe when several processes ask at once.

    Built in a temporary folder and renamed at the end: a folder that exists is complete.
    """
    if category not in PARTS:
        raise missing(root, "The synthetic data set", category, category, PARTS)
    home = recipe_folder(root.absolute(), recipe)
    if (home / category).is_dir():
        return
    home.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home / f".{category}.lock")
    with lock, tempfile.TemporaryDirectory(prefix=".drawing-", dir=home) as scratch:
        if not (home / category).is_dir():
            _write_category(Path(scratch, category), category, recipe)
            Path(scratch, category).rename(home / category)


def draw_pair(category: str, defect: str, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One photograph uint8 (S, S, 3) and its mask bool (S, S); defect "good" for a normal one."""
    scene, mask = draw_scene(PARTS[category], defect, size, seed)
    return drawing.photograph(scene, np.random.default_rng((seed, 1))), mask


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


# --- defects: they act on colour and height before light falls on the scene, so that a scratch
# glints and a dent has a shadow; sizes are in units of half the picture ------------------------


def scratch(scene: Scene, rng: Rng) -> Array:
    """One or two thin curved grooves with bright, thrown-up edges."""
    at = drawing.canvas(len(scene.height))
    touched = np.zeros_like(scene.height)
    angle = rng.uniform(0, np.pi)
    for _ in range(rng.integers(1, 3)):
        start = _place(scene, rng)
        length = rng.uniform(0.25, 0.6)
        heading = angle + rng.normal(0, 0.12) + np.linspace(0, rng.normal(0, 0.5), 13)
        steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * length / 12
        distance, along = drawing.line(at, start + np.cumsum(steps, axis=0) - steps.sum(axis=0) / 2)
        width = 0.011 * np.sqrt(np.clip(4 * along * (1 - along), 0.05, 1))
        groove = drawing.cover(distance - width, at.pixel) * scene.part
        scene.height -= 0.012 * groove
        bright = np.clip(scene.albedo * 1.35 + 0.14, 0, 1)
        scene.albedo = scene.albedo + 0.85 * groove[..., None] * (bright - scene.albedo)
        touched = np.maximum(touched, groove)
    return touched


def crack(scene: Scene, rng: Rng) -> Array:
    """A dark jagged line with one or two branches."""
    at = drawing.canvas(len(scene.height))
    touched = np.zeros_like(scene.height)
    heading = rng.uniform(0, 2 * np.pi)
    path = _walk(_place(scene, rng), heading, 14, rng)
    branches = [(path, 0.012)]
    for _ in range(rng.integers(1, 3)):
        turn = rng.choice((-1, 1)) * rng.uniform(0.5, 1.0)
        branches.append((_walk(path[rng.integers(3, 10)], heading + turn, 6, rng), 0.008))
    for points, width in branches:
        distance, along = drawing.line(at, points)
        gap = drawing.cover(distance - width * (1.1 - 0.8 * along), at.pixel) * scene.part
        scene.albedo *= (1 - 0.7 * gap)[..., None]
        scene.height -= 0.02 * gap
        touched = np.maximum(touched, gap)
    return touched


def stain(scene: Scene, rng: Rng) -> Array:
    """A translucent spill with a darker rim: oil, rust or coffee."""
    colour = ((0.10, 0.08, 0.05), (0.45, 0.22, 0.10), (0.30, 0.20, 0.12))[rng.integers(3)]
    depth = _blob(scene, rng, rng.uniform(0.13, 0.24), 0.20)
    body = np.clip(depth / 0.03, 0, 1) * scene.part
    rim = np.exp(-(((depth - 0.02) / 0.018) ** 2)) * scene.part
    scene.albedo = drawing.blend(scene.albedo, colour, np.clip(0.42 * body + 0.25 * rim, 0, 1))
    return body


def hole(scene: Scene, rng: Rng) -> Array:
    """A punched or burnt opening with a rough, raised edge."""
    depth = _blob(scene, rng, rng.uniform(0.06, 0.12), 0.22)
    pixel = 2 / len(scene.height)
    opening = drawing.cover(-depth, pixel) * scene.part
    rim = np.exp(-((depth / 0.022) ** 2)) * scene.part
    scene.albedo = drawing.blend(scene.albedo, (0.04, 0.035, 0.03), opening)
    scene.albedo *= (1 - 0.25 * rim * (1 - opening))[..., None]
    scene.height += 0.018 * rim - 0.05 * opening
    return np.maximum(opening, (rim > 0.5).astype(float))


def discoloured(scene: Scene, rng: Rng) -> Array:
    """A patch of another hue, as of heat or a wrong batch of dye; brightness stays."""
    depth = _blob(scene, rng, rng.uniform(0.18, 0.32), 0.15)
    share = np.clip(depth / 0.06, 0, 1) * scene.part
    tint = np.array(((1.20, 0.94, 0.74), (0.82, 0.98, 1.24), (1.16, 0.84, 1.12))[rng.integers(3)])
    tinted = scene.albedo * tint + 0.03 * (tint - 1)
    level = scene.albedo.mean(axis=2) / np.maximum(tinted.mean(axis=2), 1e-6)
    tinted = np.clip(tinted * level[..., None], 0, 1)
    scene.albedo = scene.albedo + share[..., None] * (tinted - scene.albedo)
    return share


DAMAGES: dict[str, Damage] = {
    draw.__name__: draw for draw in (crack, discoloured, hole, scratch, stain)
}
#: Folder names of the defects; "missing" is drawn by the part itself.
DEFECTS = (*sorted([*DAMAGES, "missing"]),)


def draw_scene(draw: Draw, defect: str, size: int, seed: int) -> tuple[Scene, Array]:
    """A specimen and the mask bool (S, S) of its defect, never empty but of a good one.

    A missing piece is where the specimen differs from its like that has it.
    """
    for attempt in range(20):
        rng = np.random.default_rng((seed, attempt))
        scene = draw(size, np.random.default_rng(seed), None)
        if defect == "good":
            return scene, np.zeros((size, size), bool)
        if defect == "missing":
            good, scene = scene, draw(size, np.random.default_rng(seed), rng)
            change = np.abs(scene.albedo - good.albedo).max(axis=2)
            change += 3 * np.abs(scene.height - good.height)
            closed = binary_closing(np.pad(change > 0.1, 8), iterations=max(1, round(size / 100)))
            mask, least = binary_fill_holes(closed)[8:-8, 8:-8], size * size / 1000
        else:
            mask, least = DAMAGES[defect](scene, rng) > 0.35, 12.0
        if mask.sum() >= least:
            break
    return scene, mask


def _place(scene: Scene, rng: Rng) -> Array:
    """A point (x, y) well inside the part and the picture."""
    size = len(scene.height)
    margin = size // 8
    inside = binary_erosion(scene.part > 0.9, iterations=max(1, size // 40), border_value=1)
    inside[:margin], inside[-margin:], inside[:, :margin], inside[:, -margin:] = (False,) * 4
    rows, columns = np.nonzero(inside)
    pick = rng.integers(len(rows))
    return (np.array((columns[pick], rows[pick])) + 0.5) / size * 2 - 1


def _blob(scene: Scene, rng: Rng, radius: float, rough: float) -> Array:
    """Depth (S, S) below the outline of an irregular spot, positive inside, in units."""
    size = len(scene.height)
    x, y = _place(scene, rng)
    at = drawing.canvas(size)
    wobble = drawing.noise(rng, size, 0.16) + 0.4 * drawing.noise(rng, size, 0.05)
    return -drawing.circle(at, x, y, radius) + radius * rough * wobble


def _walk(start: Array, heading: float, steps: int, rng: Rng) -> Array:
    """A jagged path (steps + 1, 2)."""
    angles = heading + rng.normal(0, 0.55, steps)
    lengths = rng.uniform(0.025, 0.055, (steps, 1))
    moves = np.stack([np.cos(angles), np.sin(angles)], axis=1) * lengths
    return start + np.vstack([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
