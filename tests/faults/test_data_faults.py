"""Faults of data sets: the message names the place and the remedy."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from hydra.errors import HydraException
from PIL import Image

from src import mistakes
from src.composing import compose_checked
from src.data import datamodule
from src.errors import ConfigError, GoodpartsError
from src.experiment import run_experiment

SIZE = ("transform.resize=32", "transform.crop=null", "model.target_dim=32", "evaluation.size=32",
        "evaluation.bootstrap=20", "evaluation.latency_images=2", "report.enabled=false",
        "backbone=efficientnet_lite0", "hardware=cpu", "hardware.num_workers=0")  # fmt: skip


def picture(path, seed=0, size=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(90, 160, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Six good parts, two bad ones, one mask each."""
    for i in range(6):
        picture(tmp_path / "photos" / "good" / f"{i}.png", i)
    for i in range(2):
        picture(tmp_path / "photos" / "bad" / f"{i}.png", 100 + i)
        mask = np.zeros((40, 40), dtype=np.uint8)
        mask[10:20, 10:20] = 255
        (tmp_path / "photos" / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "photos" / "masks" / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def run(folder, tmp_path):
    def call(*overrides, data=True):
        where = ["data=folder", f"data.root={folder}", "data.normal_dir=good"] if data else []
        place = f"runs_dir={tmp_path / 'runs'}"
        cfg = compose_checked("run", [*SIZE, *where, place, *overrides])
        return run_experiment(cfg)

    return call


BAD, MASKS = "data.abnormal_dir=bad", "data.mask_dir=masks"


def test_only_good_parts_give_a_detector(run):
    result = run()
    assert (result.run.directory / "model" / "threshold.json").is_file()
    assert result.metrics["test/false_alarm_rate"] >= 0
    assert "test/pixel_auroc" not in result.metrics


def test_missing_masks_leave_pixel_metrics_out_but_not_the_run(run):
    metrics = run(BAD).metrics
    assert "test/image_auroc" in metrics
    assert "test/pixel_auroc" not in metrics


def test_masks_give_pixel_metrics(run):
    assert 0 <= run(BAD, MASKS).metrics["test/pixel_auroc"] <= 1


def test_surplus_masks_do_not_disturb(run, folder):
    Image.new("L", (40, 40)).save(folder / "masks" / "nobody.png")
    assert "test/pixel_auroc" in run(BAD, MASKS).metrics


def test_an_empty_mask_is_not_counted_as_a_marked_defect(run, folder):
    Image.new("L", (40, 40)).save(folder / "masks" / "0.png")
    assert np.isfinite(run(BAD, MASKS).metrics["test/pixel_auroc"])


FAULTS = {
    "folder of good parts missing": (lambda f: ["data.normal_dir=goood"], "goood"),
    "root missing": (lambda f: [f"data.root={f / 'nowhere'}"], "nowhere"),
    "folder of defects missing": (lambda f: ["data.abnormal_dir=baad"], "baad"),
    "folder of masks missing": (lambda f: [BAD, "data.mask_dir=maskz"], "maskz"),
    "crop larger than image": (lambda f: ["transform.crop=64"], "crop"),
    "limit below one image": (lambda f: ["data.shots=0"], "shots"),
    "batch of nothing": (lambda f: ["data.batch_size=0"], "batch_size"),
    "unknown cache": (lambda f: ["data.cache=disc"], "cache"),
    "alpha above one": (lambda f: ["threshold.alpha=7"], "alpha"),
    "unknown coreset method": (lambda f: ["model.coreset.method=greedi"], "greedy"),
    "unknown distance": (lambda f: ["model.distance=cosin"], "cosine"),
    "graph index": (lambda f: ["model.search.backend=hnsw"], "flat, faiss, ivf"),
    "a threshold another method needs": (lambda f: ["threshold=nfa"], "uflow"),
    "an oracle without defects": (lambda f: ["threshold=f1_oracle"], "conformal"),
    "too many good parts held out": (lambda f: ["calibration.fraction=1.0"], "fraction"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_setting_is_explained(run, folder, fault):
    overrides, hint = FAULTS[fault]
    with pytest.raises((GoodpartsError, HydraException)) as caught:
        run(*overrides(folder))
    assert hint in f"{caught.value} {caught.value.__cause__}"  # the latter: of the schema
    assert not list(folder.parent.rglob("*.partial"))


def test_an_empty_training_folder_is_explained(run, folder):
    for path in (folder / "good").iterdir():
        path.unlink()
    with pytest.raises(GoodpartsError, match="good"):
        run()


def test_one_single_good_image_promises_nothing_and_is_refused(run, folder):
    for path in sorted((folder / "good").iterdir())[1:]:
        path.unlink()
    with pytest.raises(ConfigError, match="two normal images at least"):
        run(BAD)


def test_a_broken_training_image_is_named(run, folder):
    (folder / "good" / "3.png").write_bytes(b"")
    with pytest.raises(GoodpartsError, match=r"3\.png"):
        run("data.test_fraction=0.01")


def test_a_broken_image_in_a_worker_process_is_named(run, folder):
    (folder / "good" / "3.png").write_bytes(b"")
    with pytest.raises(GoodpartsError, match=r"3\.png"):
        run("data.test_fraction=0.01", "hardware.num_workers=1", "data.cache=none")


def test_a_killed_worker_process_is_met_with_advice(run, monkeypatch, capsys):
    parent, read = os.getpid(), datamodule.ImageDataset.__getitems__

    def killed(self, positions):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, positions)

    monkeypatch.setattr(datamodule.ImageDataset, "__getitems__", killed)
    with pytest.raises(RuntimeError) as caught:
        run("hardware.num_workers=1", "data.cache=none")
    mistakes.explain(caught.value, "run", [])
    said = capsys.readouterr().err
    assert "hardware.num_workers" in said
    assert "Traceback" not in said


def test_a_mask_of_another_size_still_follows_its_image(run, folder):
    Image.fromarray(np.full((80, 80), 255, dtype=np.uint8)).save(folder / "masks" / "0.png")
    assert run(BAD, MASKS).run.finished


def test_wrong_category_exits_with_two(tmp_path, program):
    words = ("data.category=bottel", "backbone=efficientnet_lite0", f"runs_dir={tmp_path}")
    code, said = program("run", *words)
    assert code == 2
    assert "bottle" in said.err


def test_a_crop_of_own_images_is_announced(run, folder, caplog):
    run()
    assert "centre crop" not in caplog.text
    run("transform.resize=40", "transform.crop=32")
    assert "64 % of an image of 40 x 40 pixels" in caplog.text
