"""Whole runs on tiny drawn parts: finished, repeated, interrupted, killed, twice at once."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.experiment import run_experiment
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


def test_a_run_leaves_everything_design_promises():
    run, metrics = run_experiment(config())
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


def test_same_seed_gives_same_numbers_and_another_seed_another_bank(tmp_path):
    first = run_experiment(config(f"runs_dir={tmp_path / 'a'}"))
    again = run_experiment(config(f"runs_dir={tmp_path / 'b'}"))
    other = run_experiment(config(f"runs_dir={tmp_path / 'a'}", "seed=1"))
    assert results(first.metrics) == results(again.metrics)
    scores = [(one.run.directory / "scores.csv").read_text() for one in (first, again, other)]
    assert scores[0] == scores[1]
    assert scores[0] != scores[2]


def test_a_finished_run_is_not_repeated_unless_forced(capsys):
    run, metrics = run_experiment(config())
    written = (run.directory / "metrics.json").stat().st_mtime_ns
    repeated = run_experiment(config())
    assert (run.directory / "metrics.json").stat().st_mtime_ns == written
    assert results(repeated.metrics) == results(metrics)
    assert "Already finished" in capsys.readouterr().out
    run_experiment(config("force=true"))
    assert (run.directory / "metrics.json").stat().st_mtime_ns > written


def test_test_labels_choose_neither_model_nor_threshold(monkeypatch):
    from src.data import datamodule

    def learnt(run):
        model = (run.directory / "model" / "model.safetensors").read_bytes()
        return model, run.read_json("model/threshold.json")

    honest = run_experiment(config())
    before = learnt(honest.run)
    monkeypatch.setattr(
        datamodule.ImageDataset, "__getitems__", _with_flipped_labels(datamodule.ImageDataset)
    )
    flipped = run_experiment(config("force=true"))
    assert learnt(flipped.run) == before
    assert flipped.metrics["test/image_auroc"] == pytest.approx(
        1 - honest.metrics["test/image_auroc"]
    )


def _with_flipped_labels(dataset):
    original = dataset.__getitems__

    def items(self, positions):
        found = dict(original(self, positions))
        found["label"] = 1 - found["label"]
        return found

    return items


@pytest.mark.parametrize("delay", [2.5, 5.0])
def test_a_killed_run_is_completed_by_the_next_start(tmp_path, delay):
    process = start()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    killed, metrics = run_experiment(config())
    clean = run_experiment(config(f"runs_dir={tmp_path / 'clean'}"))
    assert results(metrics) == results(clean.metrics)
    assert not list(killed.directory.rglob("*.partial"))


def test_ctrl_c_exits_with_130_and_the_run_can_be_continued():
    process = start("data.synthetic.seed=7")  # new images: the drawing takes a moment
    time.sleep(4.0)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("this machine finished the run before Ctrl-C came")
    assert process.returncode == 130, output
    assert "Run the same command again" in output
    assert "Traceback" not in output
    assert run_experiment(config("data.synthetic.seed=7")).run.finished


def test_two_processes_starting_the_same_run_share_one_result(tmp_path):
    pair = [start(), start()]
    outputs = [process.communicate(timeout=120)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    found = list((tmp_path / "runs").rglob("metrics.json"))
    assert len(found) == 1
    assert json.loads(found[0].read_text())["test/image_auroc"] is not None
    assert sum("Already finished" in output for output in outputs) == 1


def test_tensorboard_and_wandb_get_metrics_and_pictures_offline():
    pytest.importorskip("tensorboard")
    run, _ = run_experiment(config("logger=wandb", "logger.names=[csv,tensorboard,wandb]"))
    assert list(run.directory.rglob("events.out*"))
    offline = list(run.directory.glob("wandb/offline-run-*"))
    assert len(offline) == 1
    assert list(offline[0].rglob("*.png"))
    assert "test/image_auroc" in next(run.directory.glob("log/*/metrics.csv")).read_text()


def test_two_runs_of_one_process_are_two_runs_of_wandb():
    for seed in (0, 1):
        run = run_experiment(config("logger=wandb", f"seed={seed}")).run.directory
        assert len(list(run.rglob("*.wandb"))) == 1, seed
