"""Whole runs on tiny drawn parts: finished, repeated, interrupted, killed, twice at once."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from src.detector import Detector
from src.experiment import run_experiment
from src.models.crn.module import CRN
from tests.conftest import TINY, compose_app

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def environment(monkeypatch, data_dir, tmp_path):
    monkeypatch.setenv("DATA_DIR", str(data_dir))
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("WANDB_MODE", "offline")


def config(*overrides):
    return compose_app("run", *TINY, *overrides)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, data_dir):
    """A finished run, in a folder that tests must not change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(data_dir))
        return run_experiment(config(f"runs_dir={tmp_path_factory.mktemp('plain')}"))


def start(*overrides):
    return subprocess.Popen(
        [sys.executable, "-m", "src.run", *TINY, *overrides],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def results(metrics):
    """What a run computed, without how fast it was."""
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in metrics.items()
        if key.startswith("test/")
    }


def test_a_run_leaves_everything_design_promises(plain):
    run, metrics = plain
    for name in (
        "config.yaml", "manifest.json", "metrics.json", "scores.csv", "calibration.csv", "log.txt",
        "model/model.safetensors", "model/model.json", "model/threshold.json", "report.html",
        "figures/scores.png", "figures/roc.png", "figures/pro.png", "figures/contact_sheet.png",
    ):  # fmt: skip
        assert (run.directory / name).stat().st_size > 0, name
    assert not list(run.directory.rglob("*.partial"))
    assert len((run.directory / "scores.csv").read_text().splitlines()) == 1 + 10
    for key in ("test/image_auroc", "test/pixel_auroc", "test/aupro", "test/miou", "fit/seconds",
                "speed/latency_p50_ms", "test/image_auroc_ci_low"):  # fmt: skip
        assert math.isfinite(metrics[key]), key
    manifest = run.read_json("manifest.json")
    assert manifest["packages"]["torch"]
    assert manifest["weights"].startswith("tf_efficientnet_lite0[")


def test_same_seed_gives_same_numbers_and_a_finished_run_is_repeated_only_by_force(plain, capsys):
    run, metrics = run_experiment(config())
    assert results(metrics) == results(plain.metrics)
    scores = run.directory / "scores.csv"
    assert scores.read_text() == (plain.run.directory / "scores.csv").read_text()
    written = (run.directory / "metrics.json").stat().st_mtime_ns
    repeated = run_experiment(config())
    assert (run.directory / "metrics.json").stat().st_mtime_ns == written
    assert results(repeated.metrics) == results(metrics)
    assert "Already finished" in capsys.readouterr().out
    run_experiment(config("force=true"))
    assert (run.directory / "metrics.json").stat().st_mtime_ns > written


def test_test_labels_choose_neither_model_nor_threshold(plain, monkeypatch):
    from src.data import datamodule

    def learnt(run):
        model = (run.directory / "model" / "model.safetensors").read_bytes()
        return model, run.read_json("model/threshold.json")

    monkeypatch.setattr(
        datamodule.ImageDataset, "__getitems__", _with_flipped_labels(datamodule.ImageDataset)
    )
    flipped = run_experiment(config())
    assert learnt(flipped.run) == learnt(plain.run)
    assert flipped.metrics["test/image_auroc"] == pytest.approx(
        1 - plain.metrics["test/image_auroc"]
    )


def _with_flipped_labels(dataset):
    original = dataset.__getitems__

    def items(self, positions):
        found = dict(original(self, positions))
        found["label"] = 1 - found["label"]
        return found

    return items


def wait_for(process, name):
    """Until the run folder of the process has this file."""
    end = time.monotonic() + 200
    while not list(Path(os.environ["RUNS_DIR"]).rglob(name)):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "manifest.json"), (signal.SIGKILL, "fit.json")]
)
def test_a_killed_run_is_completed_by_the_next_start(plain, number, name):
    process = start()
    wait_for(process, name)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130, output
        assert "Run the same command again" in output
        assert "Traceback" not in output
    killed, metrics = run_experiment(config())
    assert results(metrics) == results(plain.metrics)
    assert not list(killed.directory.rglob("*.partial"))


TRAINED = (
    *(word for word in TINY if not word.startswith(("experiment", "model", "transform"))),
    "data=synthetic", "hardware=cpu", "model=crn", "model.num_units=2", "model.max_depth=5",
    "model.base_channels=4", "transform.resize=[32,32]", "data.batch_size=4",
    "trainer.max_steps=8", "trainer.checkpoint_every_n_epochs=1", "model.check_every=2",
    "model.must_reconstruct=false", "calibration.fraction=0.2",
)  # fmt: skip


def test_mixed_precision_changes_no_bank_and_no_score_of_a_detector(plain):
    mixed = "hardware.precision=bf16-mixed"
    banked = run_experiment(config(mixed)).run
    assert banked.scores()["score"].equals(plain.run.scores()["score"])
    run = run_experiment(compose_app("run", *TRAINED, mixed)).run
    detector, root = Detector.load(run.directory), Path(run.config().data.root)
    found = detector.detect([detector.read(root / path) for path in run.scores()["path"]])
    expected = [pytest.approx(score, rel=1e-5) for score in run.scores()["score"]]
    assert [one.score for one in found] == expected


def test_a_training_that_breaks_off_goes_on_where_it_was(monkeypatch):
    step, steps = CRN.training_step, []

    def breaks(self, batch, batch_idx):
        if self.global_step == 5 and len(steps) < 6:
            raise RuntimeError("the power is gone")
        steps.append(self.global_step)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(CRN, "training_step", breaks)
    with pytest.raises(RuntimeError, match="power"):
        run_experiment(compose_app("run", *TRAINED))
    assert steps == [0, 1, 2, 3, 4]
    (newest,) = Path(os.environ["RUNS_DIR"]).rglob("*.ckpt")
    begun = torch.load(newest, weights_only=True)["global_step"]
    assert newest.name == "last.ckpt" and begun == 4  # the last whole epoch of two minibatches
    steps += [-1]  # the power is back
    run_experiment(compose_app("run", *TRAINED))
    assert steps[6:] == [4, 5, 6, 7]


def test_another_seed_gives_another_bank_and_two_processes_share_one_run(plain, capsys):
    process = start("seed=1")
    wait_for(process, "manifest.json")
    run = run_experiment(config("seed=1")).run  # waits for the other, which has begun
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "Already finished" not in output
    assert "Already finished" in capsys.readouterr().out
    assert len(list(Path(os.environ["RUNS_DIR"]).rglob("metrics.json"))) == 1
    other = (run.directory / "scores.csv").read_text()
    assert other != (plain.run.directory / "scores.csv").read_text()


def test_tensorboard_and_wandb_get_metrics_and_pictures_offline_each_run_its_own():
    pytest.importorskip("tensorboard")
    for seed in (0, 1):
        words = ("logger=wandb", "logger.names=[csv,tensorboard,wandb]", f"seed={seed}")
        run = run_experiment(config(*words)).run.directory
        assert list(run.rglob("events.out*"))
        offline = list(run.glob("wandb/offline-run-*"))
        assert len(offline) == len(list(run.rglob("*.wandb"))) == 1, seed
        assert list(offline[0].rglob("*.png"))
        assert "test/image_auroc" in next(run.glob("log/*/metrics.csv")).read_text()
