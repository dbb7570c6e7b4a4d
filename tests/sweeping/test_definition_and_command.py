from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from src.errors import ConfigError
from src.sweeping.command import command_line
from src.sweeping.definition import flatten_parameters, load_definition


@pytest.fixture
def write(tmp_path):
    def build(config: dict) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return build


def base(**changes) -> dict:
    return {
        "program": "src/run.py",
        "method": "grid",
        "parameters": {"model.lr": {"values": [0.1, 0.01]}},
        "command": ["${env}", "${interpreter}", "-m", "src.run", "${args_no_hyphens}"],
        **changes,
    }


VALUES = {"lr": 1e-05, "name": "sgd", "amp": True, "off": False, "sizes": [1, 2], "a.b": 3}


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
        ["${env}", "${interpreter}", "${program}", "${args_no_equals}"],
        ["${interpreter}", "-m", "other", "${args_no_hyphens}", "fixed=1"],
        ["${program}", "${args_no_boolean_flags}"],
        ["${program}", "${args_append_hydra}", "${args_override_hydra}"],
        ["${program}", "${args_json}", "${unknown}"],
        ["${program}", "--root=${envvar:SOME_DIR}/x", "${envvar:NOT_SET_HERE}"],
    ],
)
def test_commands_are_word_for_word_those_of_the_wandb_agent(command, write, monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_DIR", "/data")
    parameters = {name: {"value": value} for name, value in VALUES.items() if name != "a.b"}
    parameters["a"] = {"parameters": {"b": {"value": 3}}}
    config = {"program": "src/run.py", "method": "grid", "parameters": parameters}
    if command:
        config["command"] = command
    path = write(config)
    path.write_text(path.read_text().replace("src/run.py", "train.py"))  # not ours: no Hydra rules
    ours = command_line(load_definition(path), VALUES, tmp_path / "args.json")
    given = {**{k: v for k, v in VALUES.items() if k != "a.b"}, "a": {"b": 3}}
    theirs = wandb_words(list(command) if command else None, given, monkeypatch, tmp_path)
    assert ours == [word.replace("src/run.py", "train.py") for word in theirs]


def test_arguments_in_a_file_are_written_where_the_command_says(write, tmp_path):
    path = write(base(program="train.py", command=["python", "${args_json_file}"]))
    words = command_line(load_definition(path), {"model.lr": 0.1}, tmp_path / "args.json")
    assert json.loads(Path(words[-1]).read_text()) == {"model.lr": 0.1}


def test_a_generated_command_line_is_read_by_hydra_as_meant(write, tmp_path):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    values = {"lr": 1e-05, "name": "adam", "on": True, "sizes": [1, 2], "n": 3}
    spec = {name: {"value": value} for name, value in values.items()}
    words = command_line(load_definition(write(base(parameters=spec))), values, tmp_path / "a")
    parsed = OverridesParser.create().parse_overrides(words[4:])
    assert {item.key_or_group: item.value() for item in parsed} == values


def test_a_generated_command_line_can_be_executed(write, tmp_path):
    program = tmp_path / "show.py"
    program.write_text("import sys, json; print(json.dumps(sys.argv[1:]))")
    path = write(base(program=str(program), command=["${env}", "python3", "${program}", "${args}"]))
    words = command_line(load_definition(path), {"model.lr": 0.1}, tmp_path / "a")
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["--model.lr=0.1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "bayse"}, "Did you mean 'bayes'"),
        ({"command": ["${program}", "${args}"]}, "args_no_hyphens"),
        ({"command": None}, "args_no_hyphens"),
        ({"parameters": {"a": {"parameters": {"b": {"values": [1]}}}}}, "'a.b:'"),
        ({"parameters": {"a": {"values": [None, 1]}}}, "null"),
        ({"parameters": {"a": {"min": 3, "max": 1}}}, "schema"),
        ({"parameters": {"a": {"distribution": "uniformm", "min": 0.0}}}, "schema"),
        ({"parameters": {"a": 3}}, "schema"),
        ({"method": "bayes"}, "metric"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 3}}, "metric"),
    ],
)
def test_a_file_that_would_fail_later_is_refused_at_once(write, change, message):
    config = {k: v for k, v in base(**change).items() if v is not None}
    with pytest.raises(ConfigError, match=message):
        load_definition(write(config))


def test_a_missing_file_is_answered_with_the_nearest_name(write):
    path = write(base())
    with pytest.raises(ConfigError, match=r"sweep\.yaml"):
        load_definition(path.with_name("sweeep.yaml"))


def test_nested_parameters_become_dotted_names():
    nested = {"a": {"parameters": {"b": {"parameters": {"c": {"value": 1}}}}}, "d": {"value": 2}}
    assert flatten_parameters(nested) == {"a.b.c": {"value": 1}, "d": {"value": 2}}
