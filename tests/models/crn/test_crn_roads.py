"""CRN on drawn roads in the layouts of RoadImages and Panorama, from files to the report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from src.composing import compose
from src.experiment import run_experiment

SIDE = 64


def road(chance, defective):
    """Height and intensity (2, SIDE, SIDE) uint8: crowned asphalt, ruts, a marking, potholes."""
    across = np.linspace(-1, 1, SIDE)
    height = 150 - 30 * across**2 - 14 * np.exp(-(((np.abs(across) - 0.5) / 0.1) ** 2))
    height = np.tile(height, (SIDE, 1)) + chance.normal(0, 6)
    light = np.full((SIDE, SIDE), 95.0) + chance.normal(0, 8)
    lane = int(SIDE * 0.15) + chance.integers(-2, 3)
    dash = (np.arange(SIDE) + chance.integers(SIDE)) % 32 < 20
    light[dash, lane : lane + 3] = 220
    grain = gaussian_filter(chance.normal(0, 1, (2, SIDE, SIDE)), (0, 0.7, 0.7))
    picture = np.stack([height, light]) + grain * np.array([5, 16])[:, None, None]
    if defective:
        y, x = chance.integers(10, SIDE - 10, 2)
        rows, columns = np.mgrid[:SIDE, :SIDE]
        radius = chance.uniform(3, 7)
        hole = np.exp(-((((rows - y) ** 2 + (columns - x) ** 2) / radius**2) ** 2))
        picture += hole * np.array([-45, -35])[:, None, None]
    return picture.clip(0, 255).astype(np.uint8)


def draw(root, good, bad):
    """Both data sets below `root`."""
    chance = np.random.default_rng(0)
    for folder, count in (("good_ones", good), ("bad_ones", bad)):
        for number in range(count):
            height, light = road(chance, folder == "bad_ones")
            for kind, plane in (("height", height), ("intensity", light)):
                path = root / "road_images" / folder / f"{kind}_files" / f"{number:03d}_{kind}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(plane).save(path)
            path = root / "panorama" / folder / f"{number:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(light).convert("RGB").save(path, quality=95)


def run(root, *words):
    return run_experiment(
        compose("run", [*words, f"data.root={root}", f"runs_dir={root.parent / 'runs'}"])
    )


@pytest.mark.parametrize("data", ["road_images", "panorama"])
def test_a_run_on_each_road_data_set_goes_from_files_to_a_report(data, tmp_path):
    draw(tmp_path, 40, 62 if data == "panorama" else 12)
    result = run(
        tmp_path / data, "experiment=crn_small", f"data={data}", "trainer.max_steps=8",
        "model.base_channels=4", "model.check_every=4", "model.must_reconstruct=false",
        "evaluation.bootstrap=50", "report.max_images=8",
    )  # fmt: skip
    assert 0 <= result.metrics["test/image_auroc"] <= 1
    assert "test/pixel_auroc" not in result.metrics  # these data have no masks
    folder = result.run.directory
    assert (folder / "report.html").stat().st_size > 10_000
    assert json.loads((folder / "metrics.json").read_text())["val/obstruction_auroc"] > 0
    assert {"path", "score"} <= set(result.run.scores().columns)


@pytest.mark.slow
def test_the_small_budget_beats_the_floor_on_drawn_roads(tmp_path):
    draw(tmp_path, 200, 60)
    root = tmp_path / "road_images"
    floor = run(root, "model=pixel_statistics", "data=road_images").metrics["test/image_auroc"]
    crn = run(root, "experiment=crn_small", "data=road_images").metrics["test/image_auroc"]
    assert crn > floor
