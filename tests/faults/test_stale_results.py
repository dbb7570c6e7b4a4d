"""A result belongs to its images, masks and weights: other data never get it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from src import experiment
from src.commands.compare import compare_runs
from src.commands.evaluate import evaluate_run
from src.data.datamodule import AnomalyDataModule
from src.detector import fitted_samples
from src.errors import ConfigError, DataError, SavedModelError
from src.experiment import run_experiment
from src.identity import locate_run, newest_finished, require_current
from src.saved_run import SavedRun
from tests.conftest import compose_app

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "data=folder", "data.normal_dir=good", "data.abnormal_dir=bad", "data.mask_dir=masks",
    "transform.resize=32", "transform.crop=null", "model.target_dim=32", "evaluation.size=32",
    "evaluation.bootstrap=20", "evaluation.latency_images=2", "report.enabled=false",
    "backbone=efficientnet_lite0", "hardware=cpu", "hardware.num_workers=0",
)  # fmt: skip


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(90, 160, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def photos(root: Path, seed: int = 0, good: int = 10) -> Path:
    """Good parts, three bad ones and their masks, as BMP: each byte of the end is a pixel."""
    for i in range(good):
        picture(root / "good" / f"{i}.bmp", seed + i)
    for i in range(3):
        picture(root / "bad" / f"{i}.bmp", seed + 100 + i)
        mask = np.zeros((40, 40), np.uint8)
        mask[10:20, 10 : 20 + i] = 255
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(root / "masks" / f"{i}.bmp")
    return root


def flip_last_byte(path: Path) -> None:
    """Another content with the same size and time of modification."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 0xFF
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def config(root: Path, runs: Path, *overrides: str):
    return compose_app("run", *SMALL, f"data.root={root}", f"runs_dir={runs}", *overrides)


class FitsError(Exception):
    """Raised in place of a fit."""


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Path:
    """Photos whose good parts are a linked folder, and a finished run."""
    place = tmp_path_factory.mktemp("line")
    photos(place / "photos")
    (place / "photos" / "good").rename(place / "parts")
    (place / "photos" / "good").symlink_to("../parts", target_is_directory=True)
    run_experiment(config(place / "photos", place / "runs"))
    return place


@pytest.fixture
def here(line, tmp_path) -> Path:
    """The same, moved to a folder of its own."""
    return shutil.copytree(line, tmp_path / "here", symlinks=True)


@pytest.fixture
def no_fit(monkeypatch):
    def fit(*_, **__):
        raise FitsError

    monkeypatch.setattr(experiment, "fit", fit)


def runs_of(place: Path) -> list[Path]:
    return sorted(path.parent for path in (place / "runs").rglob("data.csv"))


def add(root: Path) -> None:
    picture(root / "good" / "new.bmp", 77)


def turn_link(root: Path) -> None:
    photos(root / "other", seed=500)
    (root / "good").unlink()
    (root / "good").symlink_to("other/good", target_is_directory=True)


CHANGES = {
    "one byte of an image": (lambda root: flip_last_byte(root / "good/3.bmp"), "1 image changed"),
    "one byte of a mask": (lambda root: flip_last_byte(root / "masks/1.bmp"), "1 mask changed"),
    "an image more": (add, "1 image added"),
    "an image less": (lambda root: (root / "bad/2.bmp").unlink(), "1 image removed"),
    "a mask less": (lambda root: (root / "masks/2.bmp").unlink(), "1 mask changed"),
    "another target of a link": (turn_link, "10 images changed"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_are_said_and_fitted_again(here, no_fit, capsys, change):
    alter, words = CHANGES[change]
    alter(here / "photos")
    [before] = runs_of(here)
    with pytest.raises(FitsError):
        run_experiment(config(here / "photos", here / "runs"))
    said = capsys.readouterr().out
    assert f"Changed since {before}: " in said
    assert words in said
    after = set(runs_of(here)) - {before}
    assert len(after) == 1
    assert f"Fitting again in {after.pop()}" in said
    assert SavedRun(before).finished


def test_moved_and_renamed_data_keep_their_run_which_learns_where_they_are(here, no_fit, capsys):
    moved = here / "elsewhere" / "bolts of 2024"
    moved.parent.mkdir()
    (here / "photos").rename(moved)
    (here / "parts").rename(here / "elsewhere" / "parts")
    [run] = runs_of(here)
    assert run_experiment(config(moved, here / "runs")).run.directory == run
    assert "Already finished" in capsys.readouterr().out
    assert SavedRun(run).config().data.root == str(moved)
    assert len(fitted_samples(SavedRun(run), AnomalyDataModule(SavedRun(run).config()))) == 8


def command(*words: str, cwd: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "src.run", *SMALL, *words], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_one_relative_root_in_two_folders_is_two_runs(here, tmp_path, monkeypatch, program):
    words = (*SMALL, "data.root=photos", f"runs_dir={here / 'runs'}")
    photos(tmp_path / "line b" / "photos", seed=900)
    monkeypatch.chdir(here)
    assert "Already finished" in "".join(program("run", *words)[1])
    monkeypatch.chdir(tmp_path / "line b")
    said = "".join(program("run", *words)[1])
    assert "Already finished" not in said
    assert "13 images changed" in said
    old, new = sorted(runs_of(here), key=lambda run: (run / "metrics.json").stat().st_mtime)
    assert SavedRun(new).config().data.root == str(tmp_path / "line b" / "photos")
    assert SavedRun(old).config().data.root == str(here / "photos")


def test_images_added_after_a_kill_make_another_run_and_are_not_tested_with(tmp_path):
    root = photos(tmp_path / "photos", good=12)
    killed = command(f"data.root={root}", f"runs_dir={tmp_path / 'runs'}", cwd=tmp_path)
    while not (fitted := list(tmp_path.rglob("fit.json"))) and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert fitted, killed.stdout.read()
    for i in range(6):
        picture(root / "good" / f"0{i}.bmp", 700 + i)
    result = run_experiment(config(root, tmp_path / "runs"))
    assert result.run.directory != fitted[0].parent
    for folder in (fitted[0].parent, result.run.directory):
        run = SavedRun(folder)
        entries = run.record().entries
        assert run.read_json("manifest.json")["data_fingerprint"] == run.record().fingerprint
        used = {use: {e.image for e in entries if e.used == use} for use in ("train", "test")}
        assert used["train"] and not used["train"] & used["test"]
    table = (result.run.directory / "scores.csv").read_text()
    assert not any(entry.image in table for entry in result.run.record().fitted)


def test_data_that_change_during_a_fit_give_no_result(tmp_path, monkeypatch):
    root = photos(tmp_path / "photos")
    train = experiment.train

    def disturbed(*arguments):
        train(*arguments)
        flip_last_byte(root / "good" / "3.bmp")

    monkeypatch.setattr(experiment, "train", disturbed)
    with pytest.raises(DataError, match="1 image changed"):
        run_experiment(config(root, tmp_path / "runs"))
    assert not list(tmp_path.rglob("fit.json"))
    assert not list(tmp_path.rglob("metrics.json"))


@pytest.mark.parametrize("protocol", ["honest", "paper"])
def test_a_copy_of_a_training_image_is_not_tested_with(tmp_path, caplog, protocol):
    root = photos(tmp_path / "photos")
    shutil.copy(root / "good" / "0.bmp", root / "bad" / "copy.bmp")
    words = ("data.test_fraction=0.1", f"protocol={protocol}", "data.normal_test_dir=spare")
    picture(root / "spare" / "a.bmp", 44)
    data = AnomalyDataModule(config(root, tmp_path, *words))
    data.setup()
    tested = {sample.image_path.name for sample in data.test_samples}
    assert ("copy.bmp" in tested) == (protocol == "paper")
    assert {"0.bmp", "1.bmp", "2.bmp", "a.bmp"} <= tested
    assert "1 of 5 test images are the very images that were fitted on" in caplog.text
    assert "bad/copy.bmp" in caplog.text


def evaluating(run: Path, root: Path, out: Path, *words: str):
    return compose_app(
        "evaluate", "data=folder", f"run={run}", f"data.root={root}", f"out={out}", "device=cpu",
        "data.normal_dir=any", "data.normal_test_dir=good", "report.enabled=false", *words,
    )  # fmt: skip


def test_an_evaluation_leaves_out_what_the_run_was_fitted_on(here, tmp_path, caplog):
    [run] = runs_of(here)
    trained = SavedRun(run).record().fitted
    root = photos(tmp_path / "new", seed=300, good=3)
    picture(root / "any" / "x.bmp", 1)
    for i, entry in enumerate(trained[:2]):
        shutil.copy(here / "photos" / entry.path, root / "good" / f"known{i}.bmp")
    evaluate_run(evaluating(run, root, tmp_path / "out", "data.abnormal_dir=bad"))
    table = (tmp_path / "out" / "scores.csv").read_text()
    assert len(table.splitlines()) == 1 + 3 + 3
    assert "known" not in table
    assert re.search(r"2 of 8 test images .* left out of the test: .*good/known0.bmp", caplog.text)
    shutil.rmtree(root / "good")
    (root / "good").mkdir()
    for entry in trained:
        shutil.copy(here / "photos" / entry.path, root / "good")
    with pytest.raises(DataError, match="nothing to test with"):
        evaluate_run(evaluating(run, root, tmp_path / "none"))


def test_runs_on_different_data_are_compared_on_equal_images_or_not_at_all(here, tmp_path, capsys):
    [run] = runs_of(here)
    other = photos(tmp_path / "other", seed=600, good=3)
    picture(other / "any" / "x.bmp", 1)
    bad = "data.abnormal_dir=bad"
    evaluate_run(evaluating(run, other, tmp_path / "strangers", bad))
    both = ("pictures=0", "resamples=20", f"out={tmp_path / 'c'}", f"run_a={run}")
    strangers = compose_app("compare", *both, f"run_b={tmp_path / 'strangers'}")
    with pytest.raises(DataError, match=r"no test image in common[\s\S]*4 have the same names"):
        compare_runs(strangers)
    for name in ("0.bmp", "2.bmp"):
        shutil.copy(here / "photos/bad" / name, other / "bad" / f"copied{name}")
    evaluate_run(evaluating(run, other, tmp_path / "mixed", bad))
    capsys.readouterr()
    compare_runs(compose_app("compare", *both, f"run_b={tmp_path / 'mixed'}"))
    said = capsys.readouterr().out
    assert "compared on the 2 test images that both have, of 5 in A and 8 in B" in said
    assert "2 with another mask, left out of pixel metrics" in said


def test_other_weights_are_another_run(here, tmp_path, no_fit, capsys, monkeypatch):
    monkeypatch.setenv("WEIGHTS_DIR", str(tmp_path / "weights"))
    (tmp_path / "weights").mkdir()
    [run] = runs_of(here)
    assert run_experiment(config(here / "photos", here / "runs")).run.directory == run
    untrained = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save(untrained, tmp_path / "weights" / "tf_efficientnet_lite0.pth")
    with pytest.raises(FitsError):
        run_experiment(config(here / "photos", here / "runs"))
    assert "the weights it starts from are others" in capsys.readouterr().out


def test_runs_of_an_earlier_version_are_named_and_refused(here, no_fit, capsys):
    [run] = runs_of(here)
    old = run.rename(run.with_name("seed0-0123456789-abcdef0123"))
    card = json.loads((old / "model" / "model.json").read_text())
    (old / "model" / "model.json").write_text(json.dumps(card | {"format": 1}))
    with pytest.raises(FitsError):
        run_experiment(config(here / "photos", here / "runs"))
    assert "runs of an earlier version (seed0-0123456789-abcdef0123)" in capsys.readouterr().out
    with pytest.raises(SavedModelError, match="format 1; an earlier version of this program"):
        evaluate_run(compose_app("evaluate", f"run={old}", "device=cpu"))
    (old / "model" / "model.json").write_text(json.dumps(card))
    (old / "data.csv").unlink()
    with pytest.raises(SavedModelError, match="does not say which images"):
        evaluate_run(compose_app("evaluate", f"run={old}", "device=cpu"))


def test_a_planned_job_on_other_data_is_not_finished(here):
    [run] = runs_of(here)
    cfg = config(here / "photos", here / "runs")
    assert newest_finished(locate_run(cfg)) == run_experiment(cfg).run.directory == run
    require_current(here / "runs", "another name")
    flip_last_byte(here / "photos" / "bad" / "0.bmp")
    assert not (newest_finished(locate_run(cfg)) / "metrics.json").exists()
    with pytest.raises(ConfigError, match="changed since these runs"):
        require_current(here / "runs", "another name")
    (here / "photos").rename(here / "gone")
    assert newest_finished(locate_run(cfg)) == run  # nothing here says otherwise


def test_fitted_images_are_found_by_content_or_missed_by_name(here):
    run = SavedRun(runs_of(here)[0])
    first = run.record().fitted[0]
    path = here / "photos" / first.path
    path.rename(path.with_name("zzz.bmp"))
    cfg = config(here / "photos", here / "runs")
    samples = fitted_samples(run, AnomalyDataModule(cfg))
    assert samples[0].image_path.name == "zzz.bmp"
    assert len(samples) == 8
    flip_last_byte(here / "photos" / "good" / "zzz.bmp")
    with pytest.raises(DataError, match=rf"1 of 8, first {first.path}"):
        fitted_samples(run, AnomalyDataModule(cfg))
