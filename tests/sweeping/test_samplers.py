from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import yaml

from src.errors import ConfigError
from src.sweeping.definition import import_engine, load_definition
from src.sweeping.figure import importance, parameter_positions
from src.sweeping.samplers import build_sampler, trials_to_stop, wandb_run
from src.sweeping.summary import short_names
from src.sweeping.trials import FAILED, FINISHED, RUNNING, STOPPED, Trial


@pytest.fixture
def sweep(tmp_path):
    def build(method: str, parameters: dict, **more):
        metric = {"name": "score", "goal": "maximize"}
        config = {"program": "t.py", "method": method, "metric": metric, "parameters": parameters}
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump({**config, **more}))
        return load_definition(path)

    return build


def play(sampler, count: int, score) -> list[Trial]:
    trials: list[Trial] = []
    for number in range(count):
        trial = sampler.next(trials, number)
        if trial is None:
            break
        trial.state, trial.metric = FINISHED, score(trial.values)
        trials.append(trial)
    return trials


def test_a_grid_visits_every_point_once_and_then_ends_even_when_nested(sweep):
    parameters = {
        "a": {"values": [1, 2, 3]},
        "b": {"parameters": {"c": {"values": ["x", "y"]}, "d": {"value": 7}}},
    }
    definition = sweep("grid", parameters)
    trials = play(build_sampler(definition, "auto", 0), 20, lambda values: 0.0)
    points = [(trial.values["a"], trial.values["b.c"]) for trial in trials]
    assert sorted(points) == sorted(itertools.product([1, 2, 3], ["x", "y"]))
    assert all(trial.values["b.d"] == 7 for trial in trials)


DISTRIBUTIONS = {
    "uniform": ({"min": 2.0, "max": 4.0}, lambda v: 2 <= v <= 4),
    "log_uniform_values": (
        {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1},
        lambda v: 1e-5 <= v <= 1e-1,
    ),
    "q_uniform": (
        {"distribution": "q_uniform", "min": 0.0, "max": 10.0, "q": 0.5},
        lambda v: 0 <= v <= 10 and v % 0.5 == 0,
    ),
    "q_log_uniform_values": (
        {"distribution": "q_log_uniform_values", "min": 1.0, "max": 1000.0, "q": 1},
        lambda v: 1 <= v <= 1000 and v == round(v),
    ),
    "int_uniform": ({"min": 1, "max": 4}, lambda v: v in (1, 2, 3, 4) and isinstance(v, int)),
    "categorical": ({"values": ["p", "q"]}, lambda v: v in ("p", "q")),
    "weighted": ({"values": ["p", "q"], "probabilities": [1.0, 0.0]}, lambda v: v == "p"),
    "constant": ({"value": "fixed"}, lambda v: v == "fixed"),
    "normal": ({"distribution": "normal", "mu": 5.0, "sigma": 0.1}, lambda v: 4 < v < 6),
    "inv_log_uniform_values": (
        {"distribution": "inv_log_uniform_values", "min": 0.5, "max": 8.0},
        lambda v: 0.1 < v < 9,
    ),
}


@pytest.mark.parametrize("engine", ["wandb", "optuna"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_draws_follow_the_distribution_and_are_plain_python(sweep, engine, name):
    spec, allowed = DISTRIBUTIONS[name]
    method = "random" if engine == "wandb" else "bayes"
    definition = sweep(method, {"p": spec, "other": {"min": 0.0, "max": 1.0}})
    trials = play(build_sampler(definition, engine, 3), 12, lambda values: values["other"])
    for trial in trials:
        assert allowed(trial.values["p"]), trial.values
        assert type(trial.values["p"]).__module__ == "builtins"
    if name not in ("constant", "weighted"):
        assert len({trial.values["p"] for trial in trials}) > 1


def test_log_uniform_spends_a_quarter_of_its_draws_in_each_decade(sweep):
    spec = {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1}
    sampler = build_sampler(sweep("random", {"p": spec}), "wandb", 0)
    decades = [math.floor(math.log10(sampler.next([], n).values["p"])) for n in range(400)]
    counts = [decades.count(decade) for decade in (-5, -4, -3, -2)]
    assert sum(counts) == 400
    assert min(counts) > 65  # 4 standard deviations below 100


@pytest.mark.parametrize("engine", ["wandb", "optuna"])
def test_draws_depend_on_seed_and_number_only_and_leave_global_chance_alone(sweep, engine):
    parameters = {"p": {"min": 0.0, "max": 1.0}, "c": {"values": ["u", "v", "w"]}}
    definition = sweep("bayes", parameters)
    history = play(build_sampler(definition, engine, 5), 4, lambda values: values["p"])
    before = random.getstate(), np.random.get_state()[1].copy()
    first = build_sampler(definition, engine, 5).next(history, 4)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert build_sampler(definition, engine, 5).next(history, 4).values == first.values
    assert build_sampler(definition, engine, 6).next(history, 4).values != first.values


def test_results_reach_the_wandb_engine():
    trial = Trial(4, {"p": 0.5}, state=FINISHED, metric=0.75, history=[0.25, 0.75])
    run = wandb_run(import_engine(), trial, "score")
    assert run.metric_history("score") == [0.25, 0.75]
    assert run.summary_metric("score") == 0.75


@pytest.mark.parametrize("engine", ["wandb", "optuna"])
def test_bayes_comes_closer_to_the_optimum_than_random_search(sweep, engine):
    parameters = {name: {"min": 0.0, "max": 1.0} for name in "xy"}

    def score(values):
        return -((values["x"] - 0.3) ** 2) - (values["y"] - 0.7) ** 2

    def regret(method: str, engine: str) -> float:
        definition = sweep(method, parameters)
        return float(
            np.mean(
                [
                    -max(t.metric for t in play(build_sampler(definition, engine, s), 22, score))
                    for s in range(3)
                ]
            )
        )

    assert regret("bayes", engine) < regret("random", "wandb")


def test_unordered_choices_go_to_optuna_unless_told_otherwise(sweep):
    named = sweep("bayes", {"optimizer": {"values": ["adam", "sgd"]}})
    assert build_sampler(named, "auto", 0).name == "optuna"
    assert build_sampler(named, "wandb", 0).name == "wandb"
    numbers = sweep("bayes", {"lr": {"values": [0.1, 0.01]}})
    assert build_sampler(numbers, "auto", 0).name == "wandb"
    with pytest.raises(ConfigError, match="Bayesian"):
        build_sampler(sweep("random", {"lr": {"values": [1, 2]}}), "optuna", 0)
    with pytest.raises(ConfigError, match="engine"):
        build_sampler(numbers, "optune", 0)


@pytest.mark.parametrize("engine", ["wandb", "optuna"])
def test_running_failed_and_stopped_trials_do_not_disturb_the_search(sweep, engine):
    definition = sweep("bayes", {"p": {"min": 0.0, "max": 1.0}, "c": {"values": ["u", "v"]}})
    sampler = build_sampler(definition, engine, 1)
    trials = play(sampler, 3, lambda values: values["p"])
    for state, history in ((RUNNING, []), (FAILED, []), (STOPPED, [0.1, 0.2])):
        trial = sampler.next(trials, len(trials))
        trial.state, trial.history = state, history
        trials.append(trial)
    assert 0 <= sampler.next(trials, len(trials)).values["p"] <= 1


def test_hyperband_stops_the_running_trial_outside_the_best(sweep):
    stop = {"type": "hyperband", "min_iter": 2, "eta": 2}
    definition = sweep("random", {"p": {"min": 0.0, "max": 1.0}}, early_terminate=stop)
    trials = [
        Trial(0, {"p": 0.1}, state=FINISHED, history=[0.1, 0.5, 0.9, 0.95]),
        Trial(1, {"p": 0.2}, state=RUNNING, history=[0.1, 0.4, 0.85, 0.9]),
        Trial(2, {"p": 0.3}, state=RUNNING, history=[0.1, 0.2, 0.3]),
        Trial(3, {"p": 0.4}, state=RUNNING, history=[0.1]),  # before the first band
        Trial(4, {"p": 0.5}, state=FINISHED, history=[0.1, 0.2, 0.4]),
    ]
    assert trials_to_stop(definition, trials) == {2}
    assert trials_to_stop(sweep("random", {"p": {"min": 0.0, "max": 1.0}}), trials) == set()


def test_importance_finds_the_parameter_that_matters():
    rng = np.random.default_rng(0)
    positions = rng.random((60, 3))
    positions[:, 1] = (positions[:, 1] * 3).astype(int) / 2  # a choice of three
    shares = importance(positions, positions[:, 0] + 0.05 * rng.random(60))
    assert shares[0] > 0.8
    assert max(shares[1:]) < 0.2
    shares = importance(positions, (positions[:, 1] == 0.5) + 0.05 * rng.random(60))
    assert np.argmax(shares) == 1
    assert importance(positions[:3], np.array([1.0, 2.0, 3.0])) is None


def test_importance_of_a_useless_parameter_is_near_zero_on_average():
    rng = np.random.default_rng(1)
    shares = [importance(rng.random((12, 1)), rng.random(12))[0] for _ in range(200)]
    assert np.mean(shares) < 0.12


def test_axis_positions_follow_the_distribution(sweep):
    log = {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0}
    definition = sweep("random", {"lr": log, "c": {"values": ["u", "v", "w"]}})
    trials = [Trial(0, {"lr": 1e-4, "c": "u"}), Trial(1, {"lr": 1e-2, "c": "v"})]
    found = parameter_positions(definition, trials, ["lr", "c"])
    np.testing.assert_allclose(found, [[0.0, 0.0], [0.5, 0.5]], atol=1e-9)


def test_headings_are_the_shortest_ends_that_tell_parameters_apart():
    assert short_names(["model.lr", "data.batch_size"]) == ["lr", "batch_size"]
    names = ["model.optimizer.name", "model.scheduler.name", "model.lr"]
    assert short_names(names) == ["optimizer.name", "scheduler.name", "model.lr"]
    assert short_names([]) == []
