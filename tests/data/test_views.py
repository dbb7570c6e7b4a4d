"""What a run looks at: the shape of its images, and good parts of another day, by real commands."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from src.commands.check import check_data_set
from src.commands.evaluate import evaluate_run
from src.commands.predict import predict_images
from src.composing import compose_checked
from src.data.transforms import fitting_size
from src.errors import DataError
from src.experiment import run_experiment

SIZE = ("data=folder", "hardware=cpu",
        "hardware.num_workers=0", "model.embedding=official", "model.normalise=none",
        "model.target_dim=32", "model.coreset.ratio=0.1", "evaluation.size=32",
        "evaluation.bootstrap=20", "evaluation.latency_images=1", "report.enabled=false",
        "backbone=efficientnet_lite0")  # fmt: skip


def picture(path, seed, size=(128, 64), dent=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(90, 160, (*size, 3), dtype=np.uint8)
    if dent:
        pixels[size[0] // 2 :, : size[1] // 2] = 255
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    """Eight good parts, twice as high as wide, two bad ones, and four good ones of another day."""
    for i in range(8):
        picture(tmp_path / "photos" / "good" / f"{i}.png", i)
    for i in range(2):
        picture(tmp_path / "photos" / "bad" / f"{i}.png", 100 + i, dent=True)
    for i in range(4):
        picture(tmp_path / "photos" / "day2" / f"{i}.png", 200 + i)
    return tmp_path / "photos"


@pytest.fixture
def run(photos, tmp_path):
    def call(*overrides):
        place = (f"data.root={photos}", f"runs_dir={tmp_path / 'runs'}", "data.abnormal_dir=bad")
        return run_experiment(compose_checked("run", [*SIZE, *place, *overrides]))

    return call


@pytest.mark.parametrize(
    ("sizes", "side", "expected"),
    [
        ([(512, 256)], 224, (320, 160)),
        ([(256, 512)] * 3, 224, (160, 320)),
        ([(900, 900)], 224, (224, 224)),
        ([(512, 256), (512, 256), (64, 512)], 224, (320, 160)),  # the median decides
        ([(40, 4000)], 224, (32, 2240)),
    ],
)
def test_the_view_has_the_shape_of_the_median_image(tmp_path, sizes, side, expected):
    for i, size in enumerate(sizes):
        picture(tmp_path / f"{i}.png", i, size)
    paths = [tmp_path / f"{i}.png" for i in range(len(sizes))]
    (tmp_path / "broken.png").write_bytes(b"")
    assert fitting_size([*paths, tmp_path / "broken.png"], side) == expected


def test_a_run_keeps_the_shape_of_its_images_and_so_do_its_followers(run, photos, tmp_path):
    result = run("data.view.side=96")
    folder = result.run.directory
    assert result.run.config().transform.resize == [128, 64]
    assert run("data.view.side=96").run.directory == folder  # found again
    words = [f"run={folder}", f"images={photos / 'bad'}", f"out={tmp_path / 'found'}"]
    assert predict_images(compose_checked("predict", words)) == 0
    with (tmp_path / "found" / "scores.csv").open() as stream:
        found = {row["path"]: float(row["score"]) for row in csv.DictReader(stream)}
    with (folder / "scores.csv").open() as stream:
        known = {row["path"]: float(row["score"]) for row in csv.DictReader(stream)}
    for name, score in found.items():
        assert score == pytest.approx(known[f"bad/{name}"], rel=1e-4)
    again = evaluate_run(compose_checked("evaluate", [f"run={folder}"]))
    assert again["test/image_auroc"] == result.metrics["test/image_auroc"]


def test_a_size_that_is_named_decides(run):
    assert run("data.view.resize=[64,96]").run.config().transform.resize == [64, 96]


def test_the_doctor_warns_of_a_view_that_distorts_or_shrinks(photos, tmp_path):
    def findings(*overrides):
        words = ["data=folder", f"data.root={photos}", f"out={tmp_path / 'out'}", *overrides]
        check_data_set(compose_checked("check", words))
        facts = json.loads((tmp_path / "out" / "findings.json").read_text())
        return {finding["what"]: finding for finding in facts["findings"]}

    assert not [what for what in findings() if "view" in what]
    squeezed = findings("data.view.resize=[96,96]")["The view distorts the images."]
    assert "64 x 128 pixels become 96 x 96" in squeezed["found"]
    shrunk = findings("data.view.resize=[30,15]")
    what = "The view shrinks the images to less than a quarter."
    assert "64 x 128 pixels become 15 x 30" in shrunk[what]["found"]
    assert "The view distorts the images." not in shrunk


def test_good_parts_of_another_day_set_the_threshold_and_nothing_else(run, photos, caplog):
    caplog.set_level("INFO")
    result = run("calibration.dir=day2", "calibration.fraction=0.3", "transform.resize=[64,32]")
    assert "train 6, calibration 4, test good 2" in caplog.text  # no share is held out besides
    normal = result.run.calibration()
    assert list(normal.paths) == [f"day2/{i}.png" for i in range(4)]
    assert normal.way == "held_out"
    used = {entry.path: entry.used for entry in result.run.record().entries}
    assert [path for path, use in used.items() if use == "calibration"] == list(normal.paths)
    assert result.run.read_json("model/threshold.json")["n"] == 4
    without = run("transform.resize=[64,32]").run.directory
    picture(photos / "day2" / "0.png", 999)
    changed = run("calibration.dir=day2", "calibration.fraction=0.3", "transform.resize=[64,32]")
    assert len({without, result.run.directory, changed.run.directory}) == 3


def test_calibration_pictures_of_the_training_or_of_nowhere_are_refused(run, photos):
    with pytest.raises(DataError, match="no images in"):
        run("calibration.dir=day3")
    (photos / "day2" / "copy.png").write_bytes((photos / "good" / "5.png").read_bytes())
    (photos / "day2" / "copy2.png").write_bytes((photos / "good" / "6.png").read_bytes())
    (photos / "day2" / "copy3.png").write_bytes((photos / "good" / "7.png").read_bytes())
    with pytest.raises(DataError, match="also in training") as caught:
        run("calibration.dir=day2")
    assert "day2/copy" in caught.value.found
