"""A W&B sweep file: read, checked against W&B's own schema, made flat.

The schema check and the meaning of each distribution come from W&B's open engine, the package
`sweeps` 0.2.0, so a file that passes here is one that `wandb sweep` accepts. Checks of our own
catch what W&B accepts and Hydra then refuses in every single trial.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from src.errors import ConfigError, did_you_mean

#: `${env} ${interpreter} ${program} ${args}`, what W&B's agent runs when a file has no command.
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
HYDRA_MACROS = ("${args_no_hyphens}", "${args_append_hydra}", "${args_override_hydra}")
METHODS = ("grid", "random", "bayes")
NEWER_KEYS = ("run_cap",)  # W&B's server knows them, the schema of `sweeps` 0.2.0 does not


@dataclass(frozen=True)
class SweepDefinition:
    """A checked sweep file.

    `parameters` is flat: nested parameters `a: {parameters: {b: ...}}` are named 'a.b'.
    """

    path: Path
    config: dict[str, Any]
    parameters: dict[str, dict[str, Any]]
    nested: frozenset[str]  # flat names that W&B passes inside a dictionary

    @property
    def method(self) -> str:
        """grid, random or bayes."""
        return str(self.config["method"])

    @property
    def command(self) -> tuple[str, ...]:
        """The command template with its macros."""
        return tuple(str(word) for word in self.config.get("command") or DEFAULT_COMMAND)

    @property
    def metric(self) -> str | None:
        """Name of the metric to optimise; a grid or random sweep may have none."""
        metric = self.config.get("metric") or {}
        return metric.get("name")

    @property
    def maximise(self) -> bool:
        """Direction; W&B's default is to minimise."""
        return (self.config.get("metric") or {}).get("goal", "minimize") == "maximize"

    def flat_config(self) -> dict[str, Any]:
        """The file as the engine `sweeps` wants it: nested names made flat.

        The engine of version 0.2.0 loses nested parameters: a grid repeats its first point for
        ever and the Gaussian process sees zeros (found 2025-11 by running it).
        """
        return {**copy.deepcopy(self.config), "parameters": copy.deepcopy(self.parameters)}


def load_definition(path: Path) -> SweepDefinition:
    """Read and check a sweep file; ConfigError lists everything that is wrong."""
    config = _read(path)
    _check_schema(path, config)
    flat = flatten_parameters(config["parameters"])
    nested = frozenset(flat) - frozenset(config["parameters"])
    definition = SweepDefinition(path, config, flat, nested)
    _check_hydra(definition)
    _check_metric(definition)
    return definition


def flatten_parameters(
    parameters: Mapping[str, Mapping[str, Any]], prefix: str = ""
) -> dict[str, dict[str, Any]]:
    """Nested parameters under dotted names."""
    flat: dict[str, dict[str, Any]] = {}
    for name, spec in parameters.items():
        if "parameters" in spec:
            flat |= flatten_parameters(spec["parameters"], f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = dict(spec)
    return flat


def import_engine() -> Any:
    """The package `sweeps`, with the advice to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it was written for pydantic 1
            import sweeps
    except ImportError as error:
        raise ConfigError(
            "Local sweeps need W&B's open sweep engine.",
            found=str(error),
            do="pip install -e '.[sweeps]'",
        ) from error
    return sweeps


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        options = [str(near) for near in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError(
            "There is no such sweep file.",
            found=f"nothing at {path}",
            do=did_you_mean(str(path), options) if options else "give the path of a W&B YAML file",
        )
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML.", found=str(error), do="repair the file") from error
    if not isinstance(config, dict):
        raise ConfigError(
            f"{path} is not a sweep.",
            found=type(config).__name__,
            do="write method, parameters and command as W&B documents them",
        )
    return config


def _check_schema(path: Path, config: dict[str, Any]) -> None:
    engine = import_engine()
    for key in ("method", "parameters"):
        if key not in config:
            raise ConfigError(f"{path} has no {key}.", found=", ".join(config), do=f"add {key}:")
    if config["method"] not in METHODS:
        raise ConfigError(
            f"{path}: unknown method.",
            found=repr(config["method"]),
            do=did_you_mean(str(config["method"]), METHODS),
        )
    known = {key: copy.deepcopy(value) for key, value in config.items() if key not in NEWER_KEYS}
    try:
        problems = engine.schema_violations_from_proposed_config(known)
    except Exception as error:  # the engine raises assorted types for malformed parameters
        problems = [str(error)]
    if problems:
        raise ConfigError(
            f"{path} does not follow W&B's sweep schema.",
            found="; ".join(problems),
            do="see docs.wandb.ai, sweep configuration structure",
        )


def _check_hydra(definition: SweepDefinition) -> None:
    """What W&B passes and Hydra cannot read; only for programs of this project."""
    program = f"{definition.config.get('program', '')} {' '.join(definition.command)}"
    if "src.run" not in program and "src/run.py" not in program:
        return
    if not any(macro in definition.command for macro in HYDRA_MACROS):
        raise ConfigError(
            f"{definition.path}: the command passes --key=value, Hydra wants key=value.",
            found=" ".join(definition.command),
            do="use ${args_no_hyphens} in place of ${args}",
        )
    if definition.nested:
        name = min(definition.nested)
        raise ConfigError(
            f"{definition.path}: W&B passes nested parameters as a Python dictionary, which "
            "Hydra cannot read.",
            found=f"{name} is nested",
            do=f"write it as one dotted name, '{name}:'",
        )
    for name, spec in definition.parameters.items():
        if any(value is None for value in [*spec.get("values", []), spec.get("value", 0)]):
            raise ConfigError(
                f"{definition.path}: null reaches Hydra as the text 'None'.",
                found=f"a null among the values of {name}",
                do="write the string 'null' instead",
            )


def _check_metric(definition: SweepDefinition) -> None:
    needs = definition.method == "bayes" or "early_terminate" in definition.config
    if needs and not definition.metric:
        raise ConfigError(
            f"{definition.path}: nothing to optimise.",
            found=f"method {definition.method} without metric.name",
            do="add metric: {name: test/image_auroc, goal: maximize}",
        )
