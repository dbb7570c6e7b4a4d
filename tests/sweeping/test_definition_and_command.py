from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from src.commands.sweep import load_sweep
from src.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def build(config: dict) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    return build


def base(**changes) -> dict:
    return {
        "program": "src/run.py",
        "method": "grid",
        "metric": {"name": "test/image_auroc"},
        "parameters": {"model.lr": {"values": [0.1, 0.01]}},
        "command": ["${env}", "${interpreter}", "-m", "src.run", "${args_no_hyphens}"],
        **changes,
    }


VALUES = {"lr": 1e-05, "name": "sgd", "amp": True, "off": False, "sizes": [1, 2]}


def wandb_words(command: list[str] | None, values: dict, monkeypatch, tmp_path) -> list[str]:
    """What the installed `wandb agent` hands to its process for these values."""
    from wandb import wandb_agent

    seen: list[list[str]] = []

    class Recorder:
        def __init__(self, command=None, **_options):
            seen.append(command)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb_agent, "AgentProcess", Recorder)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them; put them back
        monkeypatch.setenv(name, "")
    agent = wandb_agent.Agent.__new__(wandb_agent.Agent)
    agent._sweep_command, agent._function, agent._in_jupyter = command, None, False
    agent._run_processes, agent._forward_signals = {}, False
    nested = {name: {"value": value} for name, value in values.items()}
    agent._command_run({"run_id": "r1", "program": "src/run.py", "args": nested})
    return seen[0]


@pytest.mark.parametrize(
    "command",
    [
        None,
        ["${interpreter}", "-m", "other", "${args_no_hyphens}", "fixed=1"],
        ["${env}", "${program}", "--root=x", "${args}"],
    ],
)
def test_commands_are_word_for_word_those_of_the_wandb_agent(command, write, monkeypatch, tmp_path):
    spec = {name: {"value": value} for name, value in VALUES.items()}
    config = base(program="train.py", parameters=spec, command=command)
    ours = load_sweep(write({k: v for k, v in config.items() if v is not None})).words({})
    theirs = wandb_words(list(command) if command else None, VALUES, monkeypatch, tmp_path)
    assert ours == [word.replace("src/run.py", "train.py") for word in theirs]


def test_a_generated_command_line_is_read_by_hydra_as_meant(write):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    values = {"lr": 1e-05, "name": "adam", "on": True, "sizes": [1, 2], "n": 3}
    spec = {name: {"value": value} for name, value in values.items()}
    words = load_sweep(write(base(parameters=spec))).words({})
    parsed = OverridesParser.create().parse_overrides(words[4:])
    assert {item.key_or_group: item.value() for item in parsed} == values


def test_a_command_built_by_the_wandb_agent_can_be_executed(write, monkeypatch, tmp_path):
    program = tmp_path / "show.py"
    program.write_text("import sys, json; print(json.dumps(sys.argv[1:]))")
    command = ["${env}", "python3", str(program), "${args_no_hyphens}"]
    words = load_sweep(write(base(command=command))).words({"model.lr": 0.1})
    assert words == wandb_words(command, {"model.lr": 0.1}, monkeypatch, tmp_path)
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["model.lr=0.1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "bayse"}, "Did you mean 'bayes'"),
        ({"command": ["${program}", "${args}"]}, "args_no_hyphens"),
        ({"command": None}, "args_no_hyphens"),
        ({"command": ["${program}", "${args_json_file}"]}, "'.{args_json_file}' is not known"),
        ({"command": ["${program}", "${envvar:HOME}"]}, "'.{envvar:HOME}' is not known"),
        ({"parameters": {"a": {"parameters": {"b": {"values": [1]}}}}}, "'a.lr:'"),
        ({"parameters": {"a": 3}}, "nested"),
        ({"parameters": {"a": {"values": [None, 1]}}}, "null"),
        ({"parameters": {"a": {"value": None}}}, "null"),
        ({"parameters": {"a": {"min": 3, "max": 1}}}, "a cannot be drawn"),
        ({"parameters": {"a": {"min": 3}}}, "a cannot be drawn"),
        ({"parameters": {"a": {"distribution": "q_normal", "min": 0.0}}}, "'q_normal' is not"),
        ({"parameters": {"a": {"values": [1], "probabilities": [1]}}}, "'probabilities' is not"),
        ({"metric": None}, "metric is missing"),
        ({"metric": {"goal": "maximize"}}, "add metric.name"),
        ({"metric": {"name": "m", "goal": "maximise"}}, "Did you mean 'maximize'"),
        ({"early_terminate": {"type": "hyperband", "strict": True, "min_iter": 1}}, "'strict'"),
        ({"early_terminate": {"type": "envelope"}}, "hyperband"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 27, "s": 2}}, "'max_iter'"),
        ({"early_terminate": {"type": "hyperband"}}, "add metric.name, or min_iter"),
        ({"controller": {"type": "local"}}, "'controller' is not known"),
    ],
)
def test_a_file_that_would_fail_later_is_refused_at_once(write, change, message):
    config = {k: v for k, v in base(**change).items() if v is not None}
    with pytest.raises(ConfigError, match=message):
        load_sweep(write(config))


def test_a_missing_file_is_answered_with_the_nearest_name(write):
    path = write(base())
    with pytest.raises(ConfigError, match=r"sweep\.yaml"):
        load_sweep(path.with_name("sweeep.yaml"))


DISTRIBUTIONS = [
    ({"min": 2.0, "max": 4.0}, "FloatDistribution(high=4.0, log=False, low=2.0, step=None)"),
    ({"min": 1, "max": 4}, "IntDistribution(high=4, log=False, low=1, step=1)"),
    ({"distribution": "log_uniform_values", "min": 1e-5, "max": 0.1},
     "FloatDistribution(high=0.1, log=True, low=1e-05, step=None)"),
    ({"values": ["p", [1, 2]]}, "CategoricalDistribution(choices=('p', '[1, 2]'))"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "meant"), DISTRIBUTIONS)
def test_a_distribution_of_wandb_is_the_same_one_of_optuna(spec, meant, write):
    sweep = load_sweep(write(base(method="random", parameters={"a": spec})))
    assert repr(sweep.space["a"]) == meant


def test_a_grid_is_every_point_and_refuses_what_has_no_end(write):
    axes = {"a": {"values": [1, 2, 3]}, "b": {"values": ["x", "y"]}, "c": {"value": 7}}
    assert load_sweep(write(base(parameters=axes))).grid() == [
        {"a": a, "b": b} for a in (1, 2, 3) for b in "xy"
    ]
    with pytest.raises(ConfigError, match="a has no end in a grid"):
        load_sweep(write(base(parameters={"a": {"min": 0.0, "max": 1.0}}))).grid()


def test_hyperband_is_a_first_band_and_its_eta(write):
    stop = {"type": "hyperband", "min_iter": 5}
    assert load_sweep(write(base(early_terminate=stop))).halving == (5, 3)
    assert load_sweep(write(base(early_terminate={**stop, "eta": 2}))).halving == (5, 2)
    assert load_sweep(write(base())).halving[0] == 0
