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
from optuna.trial import TrialState

from src.commands import sweep as searching
from src.commands.sweep import Search, load_sweep, run_sweep
from src.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_trial.py")
COMMAND = ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]


@pytest.fixture
def make(tmp_path):
    def build(method="random", parameters=None, **more) -> Path:
        path = tmp_path / "search.yaml"
        config = {
            "program": str(FAKE),
            "method": method,
            "metric": {"name": "score", "goal": "maximize"},
            "parameters": parameters or {name: {"min": 0.0, "max": 1.0} for name in "xy"},
            "command": COMMAND,
        }
        path.write_text(yaml.safe_dump({**config, **more}, sort_keys=False))
        return path

    return build


@pytest.fixture
def sweep(tmp_path, ray_address):
    """Run a sweep file with settings of conf/sweep.yaml on the shared Ray."""
    whole = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "conf/sweep.yaml"), resolve=False)
    plain = {k: v for k, v in whole.items() if k not in ("defaults", "hydra")}
    fixed = {"runs_dir": str(tmp_path / "runs"), "retries": 0}

    def run(path: Path, cpus: int = 1, **changes) -> int:
        fixed["engine"] = {"address": ray_address, "cpus": cpus, "gpus": 0}
        return run_sweep(OmegaConf.create({**plain, **fixed, "file": str(path), **changes}))

    return run


def trials(tmp_path: Path, path: Path | None = None, seed: int = 0) -> list:
    path = path or tmp_path / "search.yaml"
    study = searching.open_study(load_sweep(path), seed, tmp_path / "runs/sweeps/search")
    return study.trials


def states(tmp_path: Path) -> list[str]:
    return [trial.state.name for trial in trials(tmp_path)]


def starts(tmp_path: Path) -> list[int]:
    return [len(p.read_text().splitlines()) for p in sorted(tmp_path.rglob("starts"))]


def test_a_sweep_leaves_table_pictures_and_its_best_and_goes_on_with_a_larger_count(
    make, sweep, tmp_path, capsys
):
    path, folder = make(), tmp_path / "runs/sweeps/search"
    assert sweep(path, count=3, extra=["steps=2"]) == 0
    first = [trial.params for trial in trials(tmp_path)]
    assert sweep(path, count=5, extra=["steps=2"]) == 0
    assert [trial.params for trial in trials(tmp_path)][:3] == first
    assert starts(tmp_path) == [1] * 5
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["state"] for row in rows] == ["COMPLETE"] * 5
    for row in rows:
        expected = 1 - (float(row["params_x"]) - 0.3) ** 2 - (float(row["params_y"]) - 0.7) ** 2
        assert float(row["value"]) == pytest.approx(expected)
    best = max(rows, key=lambda row: float(row["value"]))
    assert (
        f"Best: trial {best['number']}, score {float(best['value']):.4f}" in capsys.readouterr().out
    )
    for name in ("parallel.png", "importances.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    config = next(tmp_path.rglob("config.yaml")).read_text()
    assert json.loads(config.removeprefix("words: "))[-1] == "steps=2"

    assert sweep(path, count=5) == 0  # nothing left: not even a Ray is started
    with pytest.raises(ConfigError, match="another file or seed"):
        sweep(path, count=5, seed=1)


def test_a_grid_visits_every_point_once(make, sweep, tmp_path):
    path = make("grid", {"x": {"values": [0.1, 0.3]}, "y": {"values": [0.7, 0.9]}})
    sweep(path)
    points = {(trial.params["x"], trial.params["y"]) for trial in trials(tmp_path)}
    assert points == {(0.1, 0.7), (0.1, 0.9), (0.3, 0.7), (0.3, 0.9)}
    assert starts(tmp_path) == [1] * 4


def test_a_sweep_ends_at_the_target_of_its_file(make, sweep, tmp_path):
    metric = {"name": "score", "goal": "maximize", "target": 0.5}
    parameters = {"x": {"values": [0.3, 0.31, 0.32, 0.33]}, "y": {"value": 0.7}}
    sweep(make("grid", parameters, metric=metric), cpus=2)
    assert states(tmp_path) == ["COMPLETE"]


def test_a_random_sweep_without_count_is_refused_and_a_cap_is_a_count(make):
    with pytest.raises(ConfigError, match="count"):
        searching.trial_count(load_sweep(make()), None)
    assert searching.trial_count(load_sweep(make(run_cap=2)), None) == 2
    assert searching.trial_count(load_sweep(make(run_cap=2)), 7) == 7


def test_a_wrong_metric_stops_the_sweep_with_the_nearest_name(make, sweep):
    with pytest.raises(ConfigError, match="test/image_auroc"):
        sweep(make(metric={"name": "test/image_auroq"}), count=50)


def test_a_command_that_never_works_stops_the_sweep_with_its_message(make, sweep, tmp_path):
    parameters = {"x": {"min": 0.0, "max": 1.0}, "fail": {"value": "yes"}}
    with pytest.raises(ConfigError, match="this cannot work"):
        sweep(make(parameters=parameters), count=50, retries=1)
    assert states(tmp_path).count("FAIL") == 3
    assert starts(tmp_path).count(2) >= 3  # each was retried


def test_hyperband_ends_the_poor_trial_early(make, sweep, tmp_path):
    parameters = {
        "x": {"values": [0.3, 3.0]},  # the second is hopeless
        "y": {"value": 0.7},
        "steps": {"value": 40},
        "pause": {"value": 0.1},
    }
    stop = {"type": "hyperband", "min_iter": 5, "eta": 3}
    sweep(make("grid", parameters, early_terminate=stop), cpus=2)  # one after the other
    good, poor = trials(tmp_path)
    assert (good.state, poor.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert 5 <= len(poor.intermediate_values) < 40


def draw(search: Search, score) -> dict:
    """Take and tell one trial without running it."""
    trial = search.next()
    search.task(trial)
    params = search.study.trials[trial.number].params
    search.study.tell(trial, score(params))
    return params


def search(path: Path, folder: Path, seed: int = 0) -> Search:
    cfg = OmegaConf.create({"count": 100, "seed": seed, "extra": []})
    return Search(load_sweep(path), folder, cfg)


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_draws_depend_on_seed_number_and_results_only(method, make, tmp_path):
    path = make(method, {"x": {"min": 0.0, "max": 1.0}, "c": {"values": ["u", "v", "w"]}})

    def score(params):
        return params["x"]

    whole = search(path, tmp_path / "a")
    once = [draw(whole, score) for _ in range(8)]
    twice = [draw(search(path, tmp_path / "b"), score) for _ in range(8)]  # 8 interrupted calls
    assert once == twice
    assert len({point["x"] for point in once}) == 8
    assert draw(search(path, tmp_path / "c", seed=1), score) != once[0]


def test_bayes_comes_closer_to_the_optimum_than_random_search(make, tmp_path):
    def score(params):
        return -((params["x"] - 0.3) ** 2) - (params["y"] - 0.7) ** 2

    def regret(method: str) -> float:
        path, best = make(method), []
        for seed in range(3):
            one = search(path, tmp_path / f"{method}{seed}", seed)
            best.append(max(score(draw(one, score)) for _ in range(25)))
        return -sum(best)

    assert regret("bayes") < regret("random")


def launch(path: Path, tmp_path: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "src.sweep", str(path), f"runs_dir={tmp_path / 'runs'}"]
    return subprocess.Popen(
        [*command, "engine.cpus=1", "engine.gpus=0", *words],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env={**os.environ},
    )  # fmt: skip


def test_two_processes_share_one_sweep_without_doubling_a_trial(make, tmp_path, ray_address):
    path = make(parameters={"x": {"min": 0.0, "max": 1.0}, "steps": {"value": 1}})
    words = ["count=8", f"engine.address={ray_address}"]
    both = [launch(path, tmp_path, *words) for _ in range(2)]
    said = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert states(tmp_path)[:8] == ["COMPLETE"] * 8
    assert starts(tmp_path) == [1] * 8
    assert len({trial.params["x"] for trial in trials(tmp_path)[:8]}) == 8


@pytest.mark.slow  # Rays of its own
@pytest.mark.parametrize("path", [None, REPOSITORY / "sweeps" / "crn_demo.yaml"])
def test_after_kill_9_the_second_call_ends_with_eight_trials(path, make, tmp_path, monkeypatch):
    parameters = {"x": {"min": 0.0, "max": 1.0}, "steps": {"value": 5}, "pause": {"value": 0.2}}
    words = ["count=8", "name=search"]
    if path is not None:
        monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
        words += ['extra=["trainer.max_steps=4","model.check_every=2"]']
    path = path or make(parameters=parameters)
    first = launch(path, tmp_path, *words)
    deadline = time.monotonic() + 500
    while len(list(tmp_path.rglob("metrics.json"))) < 3:
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    known = trials(tmp_path, path)
    finished = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("metrics.json")}
    second = launch(path, tmp_path, *words)
    said = second.communicate(timeout=550)[0]
    assert second.returncode == 0, said
    after = trials(tmp_path, path)
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 8
    assert [trial.params for trial in after[: len(known)]] == [trial.params for trial in known]
    assert len(list(tmp_path.rglob("metrics.json"))) == 8
    assert {p: p.stat().st_mtime_ns for p in finished} == finished  # none was run again
