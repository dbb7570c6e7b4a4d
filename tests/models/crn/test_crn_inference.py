from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.build import build_datamodule
from src.models.build import build_model
from src.models.crn.inference import difference_image, main, write_inference


def write(path, seed, size=(40, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def bolts(tmp_path):
    """40 training and 35 test images whose names repeat in every folder, none square."""
    root = tmp_path / "mvtec"
    seed = 0
    for folder, count in (("train/good", 40), ("test/good", 10), ("test/crack", 15),
                          ("test/hole", 10)):  # fmt: skip
        for i in range(count):
            write(root / "bolt" / folder / f"{i:03d}.png", seed := seed + 1)
    return root


@pytest.fixture
def parts(composed, bolts):
    cfg = composed(
        "data=mvtec", f"data.root={bolts}", "data.category=bolt", "data.batch_size=16",
        "transform.resize=[32,32]", "model.base_channels=2", "model.num_units=2",
    )  # fmt: skip
    data = build_datamodule(cfg)
    data.setup()
    return build_model(cfg, data.transform.size), data


def test_every_image_gets_a_row_and_pictures_of_its_own(parts, tmp_path):
    model, data = parts
    table = write_inference(model, data, tmp_path / "out")
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert table.name == "anomaly_scores.csv"
    assert len({row["file_name"] for row in rows}) == len(rows) == 75
    assert [row["split"] for row in rows] == ["test"] * 35 + ["train"] * 36 + ["calibration"] * 4
    for folder in ("difference_images", "inference"):
        assert len(list((tmp_path / "out" / folder).rglob("*.png"))) == 75
    difference = tmp_path / "out" / "difference_images" / rows[0]["file_name"]
    with Image.open(difference) as picture:
        assert (picture.mode, picture.size) == ("L", (24, 40))  # Pillow's order: width, height
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_the_scores_are_those_of_the_model(parts, tmp_path):
    model, data = parts
    table = write_inference(model, data, tmp_path / "out")
    with table.open(newline="") as stream:
        scores = [float(row["anomaly_score"]) for row in csv.DictReader(stream)]
    batches = [model(batch["image"]).score for batch in data.test_dataloader()]
    assert scores[:35] == pytest.approx(torch.cat(batches).tolist())


def test_grey_values_are_half_the_difference_and_lie_where_it_lies(parts):
    _, data = parts
    anomaly_map = torch.zeros(32, 32)
    anomaly_map[:16] = 1.0  # upper half
    anomaly_map[:16, :16] = 2.5  # beyond what two tanh pictures can differ by
    grey = np.asarray(difference_image(anomaly_map, data.transform, (40, 24)))
    assert grey.shape == (40, 24)
    assert (grey[:18, :10] == 255).all()
    assert (np.abs(grey[:18, 14:] - 127.5) < 1).all()
    assert (grey[22:] == 0).all()


def test_a_folder_that_is_no_run_is_explained(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "not a finished run" in capsys.readouterr().err
