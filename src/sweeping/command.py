"""The command line of a trial, word for word what `wandb agent` would run.

Written from W&B's documentation of sweep commands and checked against the agent itself in tests.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.sweeping.definition import SweepDefinition

ENVIRONMENT_MACRO = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")


def agent_arguments(definition: SweepDefinition, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the names W&B passes: nested parameters go into dictionaries again."""
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in definition.nested:
            arguments[name] = value
            continue
        *parents, last = name.split(".")
        branch = arguments
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
    return arguments


def command_line(
    definition: SweepDefinition, values: Mapping[str, Any], json_file: Path
) -> list[str]:
    """The words of a trial's command.

    Args:
        definition: the sweep.
        values: value by flat parameter name.
        json_file: where `${args_json_file}` points to; written when the command uses it.
    """
    arguments = agent_arguments(definition, values)
    macros = _macros(definition, arguments, json_file)
    words: list[str] = []
    for template in definition.command:
        word = ENVIRONMENT_MACRO.sub(lambda hit: os.environ.get(hit[1], hit[1]), template)
        if word.startswith("${") and word.endswith("}"):
            words += macros.get(word[2:-1], [])  # the agent drops unknown macros too
        else:
            words.append(word)
    if "${args_json_file}" in definition.command:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(arguments))
    return words


def _macros(
    definition: SweepDefinition, arguments: Mapping[str, Any], json_file: Path
) -> dict[str, list[str]]:
    pairs = [f"{name}={value}" for name, value in arguments.items()]
    return {
        "env": ["/usr/bin/env"] if os.name == "posix" else [],
        "interpreter": ["python"],
        "program": [str(definition.config.get("program"))],
        "args": [f"--{pair}" for pair in pairs],
        "args_no_equals": [w for n, v in arguments.items() for w in (f"--{n}", str(v))],
        "args_no_hyphens": pairs,
        "args_no_boolean_flags": [flag for n, v in arguments.items() for flag in _switch(n, v)],
        "args_append_hydra": [f"+{pair}" for pair in pairs],
        "args_override_hydra": [f"++{pair}" for pair in pairs],
        "args_json": [json.dumps(arguments)],
        "args_json_file": [str(json_file)],
    }


def _switch(name: str, value: object) -> list[str]:
    """`--name` for true, nothing for false, `--name=value` for the rest."""
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    return [f"--{name}={value}"]
