from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from src.errors import ConfigError
from src.sweeping.local import run_sweep

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_trial.py")


@pytest.fixture
def make(tmp_path):
    def build(method="random", parameters=None, **more) -> Path:
        parameters = parameters or {n: {"min": 0.0, "max": 1.0} for n in "xy"}
        config = {
            "program": str(FAKE),
            "method": method,
            "metric": {"name": "score", "goal": "maximize"},
            "parameters": parameters,
            "command": ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"],
            **more,
        }
        path = tmp_path / "search.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return build


def settings(path: Path, tmp_path: Path, **changes):
    defaults = OmegaConf.load(REPOSITORY / "conf" / "sweep.yaml")
    whole = OmegaConf.to_container(defaults, resolve=False)
    plain = {k: v for k, v in whole.items() if k not in ("defaults", "hydra")}
    fixed = {"file": str(path), "runs_dir": str(tmp_path / "runs"), "slots": 2, "cores_per_job": 1}
    return OmegaConf.create({**plain, **fixed, **changes})


def memory(tmp_path: Path) -> list[dict]:
    return json.loads((tmp_path / "runs/sweeps/search/trials.json").read_text())["trials"]


def test_a_sweep_runs_its_trials_and_writes_table_and_figure(make, tmp_path, capsys):
    assert run_sweep(settings(make(), tmp_path, count=4)) == 0
    folder = tmp_path / "runs/sweeps/search"
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["state"] for row in rows] == ["finished"] * 4
    for row in rows:
        expected = 1 - (float(row["x"]) - 0.3) ** 2 - (float(row["y"]) - 0.7) ** 2
        assert float(row["metric"]) == pytest.approx(expected)
        assert (Path(row["run"]) / "metrics.json").exists()
    best = max(rows, key=lambda row: float(row["metric"]))
    assert f"Best: trial {best['trial']}" in capsys.readouterr().out
    assert (folder / "trials.md").read_text().splitlines()[4].startswith(f"| {best['trial']} |")
    assert (folder / "trials.png").read_bytes().startswith(b"\x89PNG")


def test_a_larger_count_continues_and_a_different_sweep_is_refused(make, tmp_path):
    path = make()
    run_sweep(settings(path, tmp_path, count=2))
    first = memory(tmp_path)
    run_sweep(settings(path, tmp_path, count=3))
    second = memory(tmp_path)
    assert second[:2] == first
    assert len(second) == 3
    with pytest.raises(ConfigError, match="another file"):
        run_sweep(settings(path, tmp_path, count=3, seed=1))


def test_a_grid_without_count_visits_every_point(make, tmp_path):
    parameters = {"x": {"values": [0.1, 0.3]}, "y": {"values": [0.7]}}
    run_sweep(settings(make("grid", parameters), tmp_path))
    assert sorted(trial["values"]["x"] for trial in memory(tmp_path)) == [0.1, 0.3]


def test_a_random_sweep_without_count_is_refused(make, tmp_path):
    with pytest.raises(ConfigError, match="count"):
        run_sweep(settings(make(), tmp_path))


def test_the_cap_of_the_file_is_its_count(make, tmp_path):
    run_sweep(settings(make(run_cap=2), tmp_path))
    assert len(memory(tmp_path)) == 2


def test_a_sweep_ends_when_the_target_of_its_file_is_reached(make, tmp_path):
    metric = {"name": "score", "goal": "maximize", "target": 0.5}
    parameters = {"x": {"values": [0.3, 0.3001, 0.3002, 0.3003]}, "y": {"value": 0.7}}
    run_sweep(settings(make("grid", parameters, metric=metric), tmp_path, slots=1))
    assert len(memory(tmp_path)) == 1


def test_a_wrong_metric_name_stops_after_the_first_trial_with_advice(make, tmp_path):
    path = make(metric={"name": "test/image_auroq", "goal": "maximize"})
    with pytest.raises(ConfigError, match="test/image_auroc"):
        run_sweep(settings(path, tmp_path, count=50, slots=1))
    assert len(memory(tmp_path)) <= 2


def test_a_command_that_never_works_stops_the_sweep_with_its_message(make, tmp_path):
    parameters = {"x": {"min": 0.0, "max": 1.0}, "fail": {"value": "yes"}}
    with pytest.raises(ConfigError, match="this cannot work"):
        run_sweep(settings(make(parameters=parameters), tmp_path, count=50, slots=1))
    assert [trial["state"] for trial in memory(tmp_path)].count("failed") == 3


def test_hyperband_ends_poor_trials_early(make, tmp_path, monkeypatch):
    monkeypatch.setattr("src.sweeping.driver.WATCH_S", 0.2)
    parameters = {
        "x": {"values": [0.3, 3.0]},  # far off the optimum: hopeless
        "y": {"value": 0.7},
        "steps": {"value": 30},
        "pause": {"value": 0.05},
    }
    stop = {"type": "hyperband", "min_iter": 5, "eta": 3}
    path = make("grid", parameters, early_terminate=stop)
    run_sweep(settings(path, tmp_path, slots=2))
    by_x = {trial["values"]["x"]: trial for trial in memory(tmp_path)}
    assert by_x[0.3]["state"] == "finished"
    assert by_x[3.0]["state"] == "stopped"
    assert 5 < len(by_x[3.0]["history"]) < 30


def test_extra_words_reach_every_command(make, tmp_path):
    run_sweep(settings(make(), tmp_path, count=1, extra=["steps=1"]))
    [config] = tmp_path.rglob("config.yaml")
    assert json.loads(config.read_text().removeprefix("words: "))[-1] == "steps=1"


def launch(path: Path, tmp_path: Path, count: int) -> subprocess.Popen:
    words = [sys.executable, "-m", "src.sweep", str(path), f"count={count}", "slots=2"]
    return subprocess.Popen(
        [*words, f"runs_dir={tmp_path / 'runs'}", "cores_per_job=1"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env={**os.environ},
    )  # fmt: skip


def test_after_kill_9_the_same_trials_are_finished_and_none_is_lost(make, tmp_path):
    parameters = {"x": {"min": 0.0, "max": 1.0}, "steps": {"value": 8}, "pause": {"value": 0.05}}
    path = make(parameters=parameters)
    first = launch(path, tmp_path, count=5)
    deadline = time.monotonic() + 30
    file = tmp_path / "runs/sweeps/search/trials.json"
    while not (file.exists() and '"finished"' in file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    known = memory(tmp_path)
    second = launch(path, tmp_path, count=5)
    assert "done" in second.communicate(timeout=60)[0]
    trials = memory(tmp_path)
    assert [trial["state"] for trial in trials] == ["finished"] * 5
    assert [trial["values"] for trial in trials[: len(known)]] == [t["values"] for t in known]
    kept = [trial for trial in known if trial["state"] == "finished"]
    assert all(trial in trials for trial in kept)  # not run again: same seconds


def test_two_processes_share_one_sweep_without_doubling_a_trial(make, tmp_path):
    path = make(parameters={"x": {"min": 0.0, "max": 1.0}, "steps": {"value": 1}})
    both = [launch(path, tmp_path, count=8) for _ in range(2)]
    said = [process.communicate(timeout=90)[0] for process in both]
    starts = [line.split()[2] for text in said for line in text.splitlines() if "start " in line]
    assert sorted(map(int, starts)) == list(range(8))
    assert [trial["state"] for trial in memory(tmp_path)] == ["finished"] * 8
