"""Faults of folders, masks and scales, through the real commands and with the right numbers."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.commands.check import check_data_set
from src.commands.predict import predict_images
from src.composing import compose_checked
from src.data.folder import index_folder
from src.data.mvtec import index_mvtec
from src.errors import GoodpartsError
from src.experiment import run_experiment

SIZE = ("transform.resize=40", "transform.crop=null", "model.target_dim=32", "evaluation.size=40",
        "evaluation.bootstrap=20", "evaluation.latency_images=2", "report.enabled=false",
        "backbone=efficientnet_lite0", "hardware=cpu", "hardware.num_workers=0")  # fmt: skip
KINDS = {"dent": (4, 4), "rust": (24, 24)}  # where each kind of defect sits, in pixels


def part(path, seed, spot=None, dtype=np.uint8, gain=1):
    """A grey part of 40 px with slight noise; a defect is a bright square of 10 px."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(100, 2, (40, 40))
    if spot:
        values[spot[0] : spot[0] + 10, spot[1] : spot[1] + 10] = 230
    Image.fromarray((values * gain).astype(dtype)).save(path)


def marked(path, spot):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((40, 40), np.uint8)
    if spot:
        values[spot[0] : spot[0] + 10, spot[1] : spot[1] + 10] = 255
    Image.fromarray(values).save(path)


@pytest.fixture
def photos(tmp_path):
    """Eight good parts, two of each defect with equal names; masks of the dents only."""
    root = tmp_path / "photos"
    for i in range(8):
        part(root / "good" / f"{i}.png", i)
    for i in range(2):
        for number, (kind, spot) in enumerate(KINDS.items()):
            part(root / "test" / kind / f"{i}.png", 50 + 10 * number + i, spot)
        marked(root / "masks/dent" / f"{i}.png", KINDS["dent"])
    return root


@pytest.fixture
def run(photos, tmp_path):
    def call(*overrides):
        where = ("data=folder", f"data.root={photos}", "data.abnormal_dir=test")
        place = f"runs_dir={tmp_path / 'runs'}"
        cfg = compose_checked("run", [*SIZE, *where, place, *overrides])
        return run_experiment(cfg)

    return call


@pytest.fixture
def doctor(app_config, photos, tmp_path, capsys):
    def call(*overrides):
        where = ("data=folder", f"data.root={photos}", "data.abnormal_dir=test")
        code = check_data_set(app_config("check", *where, f"out={tmp_path / 'out'}", *overrides))
        facts = json.loads((tmp_path / "out/findings.json").read_text())
        return code, {f["what"]: f["remedy"] for f in facts["findings"]}, capsys.readouterr().out

    return call


MASKS = "data.mask_dir=masks"


def test_masks_are_not_borrowed_from_another_defect(run, photos):
    honest = run(MASKS).metrics["test/pixel_auroc"]
    for kind in KINDS:
        for i in range(2):
            marked(photos / "masks" / kind / f"{i}.png", KINDS[kind])
    complete = run(MASKS, "seed=1").metrics["test/pixel_auroc"]
    assert honest > 0.9  # with the dents' masks on rusty parts it would be near 0.75
    assert complete > 0.9


def test_the_run_and_the_doctor_say_the_same_line(run, doctor, caplog):
    caplog.set_level("INFO")
    run(MASKS)
    line = "train 6, test good 2, defective 4 (dent 2, rust 2), masks 2"
    assert line in caplog.text
    assert line in doctor(MASKS)[2]


def test_good_parts_inside_the_folder_of_defects_are_good(run, photos, caplog):
    caplog.set_level("INFO")
    for i in range(3):
        part(photos / "test/good" / f"{i}.png", 80 + i)
    metrics = run().metrics
    assert "train 8, test good 3, defective 4 (dent 2, rust 2), masks 0" in caplog.text
    assert "Good parts inside the folder of defective images" in caplog.text
    assert metrics["test/image_auroc"] == 1.0


def test_masks_in_the_folder_of_defects_never_make_it_empty(run, photos, caplog):
    caplog.set_level("INFO")
    for kind, spot in KINDS.items():
        marked(photos / "test" / kind / "0_gt.png", spot)
        marked(photos / "test" / kind / "1_mask1.png", spot)
    assert run("data.mask_dir=test").metrics["test/pixel_auroc"] > 0.9
    assert "defective 4 (dent 2, rust 2), masks 4" in caplog.text
    for path in photos.glob("test/*/*_*.png"):
        path.unlink()
    with pytest.raises(GoodpartsError, match="told apart"):
        run("data.mask_dir=test", "seed=1")


def test_overlapping_folders_of_defects_count_once(run, caplog):
    caplog.set_level("INFO")
    run("data.abnormal_dir=[test,test/rust]")
    assert "defective 4 (dent 2, rust 2)" in caplog.text


def test_empty_and_lost_masks_are_said_and_the_doctor_advises_nothing_that_is_set(
    run, doctor, photos, caplog
):
    marked(photos / "masks/dent/0.png", None)
    (photos / "masks/dent/1.png").rename(photos / "masks/dent/9.png")
    run(MASKS)
    assert "Empty masks of defective images. Found: 1 files: dent/0.png" in caplog.text
    assert "Masks without an image. Found: 1 files: dent/9.png" in caplog.text
    for setting, advised in ((MASKS, False), ("data.mask_dir=null", True)):
        code, remedies, _ = doctor(setting)
        assert any("set data.mask_dir" in remedy for remedy in remedies.values()) == advised
        assert code == 1  # eight training images are few


def test_linked_folders_are_seen_and_unread_pictures_are_named(run, photos, tmp_path, caplog):
    caplog.set_level("INFO")
    for i in range(5):
        part(tmp_path / "disk2" / f"n{i}.png", 30 + i)
    (photos / "good/night").symlink_to(tmp_path / "disk2")
    (photos / "good/phone.heic").write_bytes(b"x")
    run()
    assert "train 10, test good 3" in caplog.text
    assert "Pictures of a type that is not read; they are left out. Found: 1 .heic" in caplog.text


@pytest.mark.parametrize(
    ("setting", "hint"),
    [("data.test_fraction=20", "data.test_fraction=0.2"),
     ("calibration.fraction=10", "calibration.fraction=0.1"),
     ("data.test_fraction=-0.1", "at least 0"), ("data.limit_test=-3", "limit_test"),
     ("data.shots=0.5", "shots"), ("data.bit_depth=40", "bit_depth")],
)  # fmt: skip
def test_shares_and_limits_that_mean_nothing_are_refused(run, setting, hint):
    with pytest.raises(GoodpartsError) as caught:
        run(setting)
    assert hint in str(caught.value)


def test_twelve_bit_images_have_one_scale_from_training_to_prediction(
    run, photos, app_config, tmp_path, caplog
):
    caplog.set_level("INFO")
    for path in sorted([*photos.glob("good/*"), *photos.glob("test/*/*")]):
        spot = KINDS.get(path.parent.name)
        part(path, int(path.stem) + len(path.parent.name) * 100, spot, np.uint16, gain=16)
    directory = run().run.directory
    assert "deep grey of 11 bits (white is 2047; data.bit_depth)" in caplog.text
    with (directory / "scores.csv").open(newline="") as stream:
        before = {Path(r["path"]).name: float(r["score"]) for r in csv.DictReader(stream)
                  if "rust" in r["path"]}  # fmt: skip
    cfg = app_config("predict", f"run={directory}", f"images={photos / 'test/rust'}",
                     f"out={tmp_path / 'scored'}", "device=cpu")  # fmt: skip
    predict_images(cfg)
    with (tmp_path / "scored/scores.csv").open(newline="") as stream:
        after = {Path(r["path"]).name: float(r["score"]) for r in csv.DictReader(stream)}
    assert before.keys() == after.keys() == {"0.png", "1.png"}
    assert all(after[name] == pytest.approx(before[name], rel=1e-4) for name in before)


REAL = {"bottle": (209, 20, 63), "screw": (320, 41, 119)}


@pytest.mark.skipif("MVTEC_AD_ROOT" not in os.environ, reason="MVTEC_AD_ROOT has no photographs")
@pytest.mark.parametrize("category", REAL)
def test_real_categories_are_indexed_completely(category):
    root = Path(os.environ["MVTEC_AD_ROOT"])
    if not (root / category).is_dir():
        pytest.skip(f"no {category} in {root}")
    named = {"normal_dir": "train/good", "abnormal_dir": "test", "mask_dir": "ground_truth",
             "normal_test_dir": "test/good", "test_fraction": 0.2, "seed": 0}  # fmt: skip
    for found in (index_mvtec(root, category), index_folder(root / category, category, **named)):
        bad = [s for s in found if s.label]
        train = sum(s.split == "train" for s in found)
        assert (train, len(found) - train - len(bad), len(bad)) == REAL[category]
        assert all(s.mask_path.stem == f"{s.image_path.stem}_mask" for s in bad)
        assert all(s.mask_path.parent.name == s.defect for s in bad)
        assert found.findings == []
