"""Where a run looks, and turned copies in its memory, by the real commands on drawn parts."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from src.commands.export import export_run
from src.commands.predict import predict_images
from src.composing import compose_checked
from src.detector import Detector
from src.errors import ConfigError, DataError
from src.experiment import run_experiment
from src.models.patchcore.module import angles_of, turned

SIZE = ("data=folder", "backbone=efficientnet_lite0", "hardware=cpu", "hardware.num_workers=0",
        "transform.resize=[64,64]", "model.embedding=official", "model.normalise=none",
        "model.target_dim=32", "model.coreset.ratio=0.1", "evaluation.size=64",
        "evaluation.bootstrap=20", "evaluation.latency_images=1",
        "report.enabled=false")  # fmt: skip


def picture(path, seed, dent=None):
    """A quiet part on the left half; the right half is a screen that shows anything."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    pixels = random.integers(120, 130, (64, 64, 3), dtype=np.uint8)
    pixels[:, 32:] = random.integers(0, 256, (8, 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    if dent:
        pixels[dent] = 255
    Image.fromarray(pixels).save(path)


def mask(path, *places, size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size, dtype=np.uint8)
    for place in places:
        pixels[place] = 255
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    """Eight good parts and two with a dent in the left half; left.png is white there."""
    root = tmp_path / "photos"
    for i in range(8):
        picture(root / "good" / f"{i}.png", i)
    for i in range(2):
        dent = np.s_[16:32, 8:24]
        picture(root / "bad" / f"{i}.png", 100 + i, dent)
        mask(root / "masks" / f"{i}.png", dent, np.s_[:8, 56:])  # the latter on the screen
    mask(root / "left.png", np.s_[:, :32])
    return root


@pytest.fixture
def run(photos, tmp_path):
    def call(*overrides):
        place = (f"data.root={photos}", f"runs_dir={tmp_path / 'runs'}", "data.abnormal_dir=bad",
                 "data.mask_dir=masks")  # fmt: skip
        return run_experiment(compose_checked("run", [*SIZE, *place, *overrides]))

    return call


def other_method(photos, *overrides):
    words = ("experiment=crn_demo", "data=folder", "hardware=cpu", f"data.root={photos}",
             f"runs_dir={photos.parent / 'runs'}")  # fmt: skip
    return compose_checked("run", [*words, *overrides])


def scores_of(path):
    with path.open() as stream:
        return {row["path"].split("/")[-1]: float(row["score"]) for row in csv.DictReader(stream)}


def test_what_lies_outside_of_the_roi_is_neither_kept_nor_scored(run, photos, tmp_path):
    whole, result = run(), run("data.roi=left.png")
    folder = result.run.directory
    assert folder != whole.run.directory
    assert (folder / "roi.png").read_bytes() == (photos / "left.png").read_bytes()
    detector = Detector.load(folder)
    bank = detector.model.memory.bank
    assert int(bank.origin[:, 2].max()) < 4 < int(bank.origin[:, 1].max())  # grid of 8 x 8
    assert len(bank) == int(0.1 * 6 * 32)
    for name in ("0.png", "1.png"):
        found = detector.detect([detector.read(photos / "bad" / name)])[0]
        assert found.anomaly_map[:, :32].min() > 0
        assert (found.anomaly_map[:, 32:] == found.anomaly_map.min()).all()
        rows, columns = np.unravel_index(found.anomaly_map.argmax(), (64, 64))
        assert 8 <= rows < 40 and columns < 32
    screen = np.asarray(detector.read(photos / "bad" / "0.png")).copy()
    far = screen.copy()
    far[:, 63] = 0  # nothing near the border of the ROI
    scores = [one.score for one in detector.detect([screen, far])]
    assert scores[0] == pytest.approx(scores[1], rel=0.2)
    assert result.metrics["test/image_auroc"] == 1.0
    assert result.metrics["test/pixel_auroc"] > whole.metrics["test/pixel_auroc"]
    words = [f"run={folder}", f"images={photos / 'bad'}", f"out={tmp_path / 'found'}"]
    assert predict_images(compose_checked("predict", words)) == 0
    known = scores_of(folder / "scores.csv")
    for name, score in scores_of(tmp_path / "found" / "scores.csv").items():
        assert score == pytest.approx(known[name], rel=1e-4)


def test_an_exported_detector_looks_where_its_run_did(run, tmp_path):
    folder = run("data.roi=left.png").run.directory
    words = [f"run={folder}", f"out={tmp_path / 'detector'}", "parity.images=4", "parity.repeats=1"]
    assert export_run(compose_checked("export", words))  # compares both on real images
    assert (tmp_path / "detector.onnx").is_file()


def test_another_roi_is_another_run(run, photos):
    first = run("data.roi=left.png").run.directory
    assert run("data.roi=left.png").run.directory == first
    mask(photos / "left.png", np.s_[:, :40])
    assert run("data.roi=left.png").run.directory != first


FAULTS = {
    "another shape": ({"size": (64, 32)}, "another shape"),
    "all black": ({}, "leaves nothing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_roi_that_cannot_be_meant_is_refused(run, photos, fault):
    drawn, words = FAULTS[fault]
    mask(photos / "roi.png", *([np.s_[:, :8]] if drawn else []), **drawn)
    with pytest.raises(DataError, match=words):
        run("data.roi=roi.png")


def test_an_roi_that_is_no_picture_or_for_another_method_is_refused(run, photos):
    (photos / "roi.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="cannot be read"):
        run("data.roi=roi.png")
    with pytest.raises(DataError, match="no image"):
        run("data.roi=nowhere.png")
    with pytest.raises(ConfigError, match="cannot leave out"):
        run_experiment(other_method(photos, "data.roi=left.png"))


def test_turns_are_named_or_counted():
    assert angles_of(4) == [90, 180, 270]
    assert angles_of([10, -10]) == [10, -10]
    assert angles_of([]) == angles_of(None) == []


def test_images_turn_in_their_frame():
    image = torch.rand(2, 3, 16, 16)
    assert torch.equal(turned(image, 90), image.rot90(1, (2, 3)))
    assert torch.equal(turned(image, 0), image)
    torch.testing.assert_close(turned(image, 90 + 1e-5), image.rot90(1, (2, 3)), atol=1e-3, rtol=0)
    wide = torch.zeros(1, 1, 8, 16)
    wide[..., 2:6, 6:10] = 1
    assert torch.equal(turned(wide, 180), wide.rot90(2, (2, 3)))
    upright = turned(wide, 90)
    torch.testing.assert_close(upright[..., 4:12], wide[..., 4:12], atol=1e-3, rtol=0)  # a square
    mirrored = upright[..., 4:8].flip(3)  # what lies beyond the frame, as in AnomalyDINO
    torch.testing.assert_close(upright[..., :4], mirrored, atol=1e-3, rtol=0)
    flat = torch.full((1, 1, 8, 16), 0.7)
    torch.testing.assert_close(turned(flat, 33), flat)  # nothing black comes in from outside


def test_turned_copies_fill_the_bank_but_set_no_threshold(run, photos):
    plain = run()
    result = run("data.rotations=[90,180,270]")
    memory = Detector.load(result.run.directory).model.memory
    assert len(memory.bank) == int(0.1 * 6 * 4 * 64)
    assert set(memory.bank.origin[:, 0].tolist()) <= set(range(6))
    normal = result.run.calibration()
    assert list(normal.paths) == list(plain.run.calibration().paths)
    assert len(normal.image) == 6
    with pytest.raises(ConfigError, match="memory bank"):
        run_experiment(other_method(photos, "data.rotations=4"))
