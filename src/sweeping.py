"""A W&B sweep file, read and checked: what it searches, for what, by which command.

Supported is what Optuna can search of what W&B documents; every other key, distribution or macro
is refused by its name, before a single trial starts.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from src.errors import ConfigError, did_you_mean, only

MEANING = ("program", "method", "metric", "parameters", "command", "early_terminate")
KEYS = (*MEANING, "run_cap", "name", "description", "project", "entity")
#: `${env} ${interpreter} ${program} ${args}`: what W&B's agent runs when a file has no command.
COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
DISTRIBUTIONS = ("constant", "categorical", "uniform", "int_uniform", "log_uniform_values")


@dataclass(frozen=True)
class Sweep:
    """A checked sweep file."""

    path: Path
    plain: Mapping[str, Any]  # the file itself
    space: Mapping[str, BaseDistribution]  # what is searched
    metric: str  # what trials are compared by
    maximise: bool  # W&B's default is to minimise
    halving: tuple[int, int]  # logged values before hyperband's first band (0: none), and its eta
    identity: str  # hash of all that trials depend on

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """The command of a trial, word for word what `wandb agent` runs."""
        parameters = self.plain["parameters"].items()
        pairs = [f"{name}={values.get(name, spec.get('value'))}" for name, spec in parameters]
        macros = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": ["python"],
            "${program}": [str(self.plain.get("program"))],
            "${args}": [f"--{pair}" for pair in pairs],
            "${args_no_hyphens}": pairs,
        }
        command = self.plain.get("command") or COMMAND
        return [word for part in command for word in macros.get(part, [str(part)])]

    def grid(self) -> list[dict[str, Any]]:
        """Every point of the space; ConfigError when it has no end."""
        for name, kind in self.space.items():
            if not isinstance(kind, CategoricalDistribution):
                raise _refusal(self.path, f"{name} has no end in a grid", kind, "list values:")
        axes = [kind.choices for kind in self.space.values()]  # type: ignore[attr-defined]
        return [dict(zip(self.space, point, strict=True)) for point in itertools.product(*axes)]


def load_sweep(path: Path) -> Sweep:
    """Read and check a sweep file; ConfigError says what is wrong or not supported."""
    near = [str(other) for other in path.parent.glob("*.y*ml")] or ["sweeps/X.yaml"]
    try:
        plain = dict(yaml.safe_load(path.read_text()))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise _refusal(path, "not a sweep file", error, did_you_mean(str(path), near)) from error
    if absent := [key for key in ("method", "parameters", "metric") if not plain.get(key)]:
        raise _refusal(path, f"{absent[0]} is missing", list(plain), f"add {absent[0]}:")
    metric = plain["metric"]
    stopping = plain.get("early_terminate") or {"type": "hyperband", "min_iter": 0}
    command, program = plain.get("command") or COMMAND, str(plain.get("program"))
    for where, found, known in (
        ("the file", plain, KEYS),
        ("method", [plain["method"]], ("grid", "random", "bayes")),
        ("metric", metric, ("name", "goal", "target")),
        ("metric.goal", [metric.get("goal", "minimize")], ("minimize", "maximize")),
        ("early_terminate", stopping, ("type", "min_iter", "eta")),
        ("early_terminate.type", [stopping.get("type")], ("hyperband",)),
        ("command", (w for w in command if "${" in str(w)), (*COMMAND, "${args_no_hyphens}")),
    ):
        only(f"{path}, {where}", found, known)
    if "name" not in metric or "min_iter" not in stopping:
        raise _refusal(path, "incomplete", [metric, stopping], "add metric.name, or min_iter: 3")
    if ("src.run" in command or program.endswith("src/run.py")) and "${args}" in command:
        what = "Hydra wants key=value, the command passes --key=value"
        raise _refusal(path, what, "${args}", "use ${args_no_hyphens}")
    space = {name: _distribution(path, name, spec) for name, spec in plain["parameters"].items()}
    meaning = yaml.safe_dump({k: plain[k] for k in MEANING if k in plain}, sort_keys=False)
    return Sweep(
        path=path,
        plain=plain,
        space={name: kind for name, kind in space.items() if kind is not None},
        metric=str(metric["name"]),
        maximise=metric.get("goal") == "maximize",
        halving=(int(stopping["min_iter"]), int(stopping.get("eta", 3))),
        identity=hashlib.sha256(meaning.encode()).hexdigest()[:10],
    )


def _distribution(path: Path, name: str, spec: Any) -> BaseDistribution | None:
    """What W&B means, in Optuna's words; None: a constant."""
    if not isinstance(spec, dict) or "parameters" in spec:
        do = f"write one dotted name for each parameter, such as '{name}.lr:'"
        raise _refusal(path, f"{name} is nested, which Hydra cannot read", spec, do)
    only(f"{path}, {name}", spec, ("value", "values", "min", "max", "distribution"))
    only(f"{path}, {name}", [spec.get("distribution", "constant")], DISTRIBUTIONS)
    low: Any = spec.get("min")
    high: Any = spec.get("max")
    whole = isinstance(low, int) and isinstance(high, int)
    try:
        if None in spec.get("values", [spec.get("value", 0)]):
            raise ValueError("null reaches Hydra as None, write 'null'")
        if "value" in spec:
            return None
        if "values" in spec:  # lists as the text that the agent passes
            return CategoricalDistribution(
                [v if isinstance(v, bool | int | float | str) else str(v) for v in spec["values"]]
            )
        if whole and spec.get("distribution", "int_uniform") == "int_uniform":
            return IntDistribution(low, high)
        return FloatDistribution(low, high, log=spec.get("distribution") == "log_uniform_values")
    except (TypeError, ValueError) as error:
        found = f"{spec}: {error}"
        raise _refusal(path, f"{name} cannot be drawn", found, "repair it") from error


def _refusal(path: Path, what: str, found: object, do: str) -> ConfigError:
    return ConfigError(f"{path}: {what}.", found=str(found), do=do)
