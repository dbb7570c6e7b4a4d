"""Which point to try next: W&B's engine, or Optuna's TPE.

Both are rebuilt from the trials each time, so a sweep can stop at any moment and go on later. A
draw depends on the sweep's seed, the number of the trial and the results so far, on nothing else.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from src.errors import ConfigError
from src.sweeping.definition import SweepDefinition, import_engine
from src.sweeping.trials import FAILED, FINISHED, RUNNING, STOPPED, Trial

ENGINES = ("auto", "wandb", "optuna")
_WANDB_STATE = {RUNNING: "running", FINISHED: "finished", FAILED: "failed", STOPPED: "killed"}


class Sampler(Protocol):
    """Proposes trials."""

    name: str

    def next(self, trials: Sequence[Trial], number: int) -> Trial | None:
        """The next trial, or None when a grid is exhausted."""


def build_sampler(definition: SweepDefinition, engine: str, seed: int) -> Sampler:
    """The sampler for a sweep.

    engine auto: W&B's, except for a Bayesian search over unordered choices. There W&B's Gaussian
    process treats 'sgd' and 'adam' as the numbers 0 and 1; Optuna's TPE treats them as names.
    """
    if engine not in ENGINES:
        raise ConfigError("Unknown engine.", found=engine, do=f"engine={'|'.join(ENGINES)}")
    unordered = any(_is_unordered(spec) for spec in definition.parameters.values())
    if engine == "optuna" or (engine == "auto" and definition.method == "bayes" and unordered):
        if definition.method != "bayes":
            raise ConfigError(
                "Optuna replaces the Bayesian search only.",
                found=f"method {definition.method}",
                do="use engine=wandb or method: bayes",
            )
        return OptunaSampler(definition, seed)
    return WandbSampler(definition, seed)


class WandbSampler:
    """Grid, random and Gaussian-process search as W&B's server does them (package `sweeps`)."""

    name = "wandb"

    def __init__(self, definition: SweepDefinition, seed: int) -> None:
        self.engine, self.config = import_engine(), definition.flat_config()
        self.metric, self.seed = definition.metric, seed

    def next(self, trials: Sequence[Trial], number: int) -> Trial | None:
        """The next trial, or None when a grid is exhausted."""
        runs = [wandb_run(self.engine, trial, self.metric) for trial in trials]
        with _seeded(self.seed, number):
            run = self.engine.next_run(self.config, runs)
        if run is None:
            return None
        return Trial(number, {name: _plain(item["value"]) for name, item in run.config.items()})


class OptunaSampler:
    """Optuna's TPE over the quantiles of W&B's distributions; choices are searched as names."""

    name = "optuna"
    startup = 5  # random trials before the model; ours: searches here have tens of trials

    def __init__(self, definition: SweepDefinition, seed: int) -> None:
        self.seed, self.maximise = seed, definition.maximise
        self.parameters = hyper_parameters(definition)

    def next(self, trials: Sequence[Trial], number: int) -> Trial:
        """The next trial."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            seed=_mix(self.seed, number), n_startup_trials=self.startup, multivariate=True,
            constant_liar=True,
        )  # fmt: skip
        study = optuna.create_study(
            direction="maximize" if self.maximise else "minimize", sampler=sampler
        )
        space = self._space(optuna)
        for trial in trials:
            frozen = self._frozen(optuna, trial, space)
            if frozen is not None:
                study.add_trial(frozen)
        asked = study.ask(space)
        quantiles = {name: float(asked.params[name]) for name in space}
        return Trial(number, self._values(quantiles), quantiles)

    def _space(self, optuna: Any) -> dict[str, Any]:
        space: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if parameter.type == parameter.CATEGORICAL:
                choices = list(range(len(parameter.config["values"])))
                space[name] = optuna.distributions.CategoricalDistribution(choices)
            elif parameter.type != parameter.CONSTANT:
                space[name] = optuna.distributions.FloatDistribution(0.0, 1.0)
        return space

    def _values(self, quantiles: dict[str, float]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if parameter.type == parameter.CONSTANT:
                values[name] = parameter.config["value"]
            elif parameter.type == parameter.CATEGORICAL:
                values[name] = parameter.config["values"][int(quantiles[name])]
            else:
                # the ends are infinite for normal distributions
                values[name] = parameter.ppf(min(max(quantiles[name], 1e-6), 1 - 1e-6))
        return {name: _plain(value) for name, value in values.items()}

    def _frozen(self, optuna: Any, trial: Trial, space: dict[str, Any]) -> Any:
        states = optuna.trial.TrialState
        params = {
            name: int(q) if self.parameters[name].type == "param_categorical" else q
            for name, q in trial.quantiles.items()
        }
        if trial.state == FINISHED and trial.metric is not None:
            return optuna.trial.create_trial(
                state=states.COMPLETE, params=params, distributions=space, value=trial.metric
            )
        if trial.state == STOPPED and trial.history:
            reports = dict(enumerate(trial.history))
            return optuna.trial.create_trial(
                state=states.PRUNED, params=params, distributions=space,
                intermediate_values=reports,
            )  # fmt: skip
        if trial.open:
            return optuna.trial.create_trial(
                state=states.RUNNING, params=params, distributions=space
            )
        return None  # a failed trial says nothing about the metric


def trials_to_stop(definition: SweepDefinition, trials: Sequence[Trial]) -> set[int]:
    """Numbers of running trials that the file's hyperband rule ends now (W&B's engine)."""
    if "early_terminate" not in definition.config:
        return set()
    engine = import_engine()
    runs = [wandb_run(engine, trial, definition.metric) for trial in trials]
    stopped = engine.stop_runs(definition.flat_config(), runs)
    return {int(run.name) for run in stopped}


def wandb_run(engine: Any, trial: Trial, metric: str | None) -> Any:
    """A trial in the engine's own type.

    History and summary go by their aliases: under pydantic 2 the engine silently drops them when
    they are given by field name (found 2025-11 by a search that never learnt).
    """
    return engine.SweepRun(
        name=str(trial.number),
        state=_WANDB_STATE[trial.state],
        config={name: {"value": value} for name, value in trial.values.items()},
        sampledHistory=[{metric: value} for value in trial.history],
        summaryMetrics={} if trial.metric is None else {metric: trial.metric},
    )


def hyper_parameters(definition: SweepDefinition) -> dict[str, Any]:
    """The engine's distribution of every parameter, by flat name."""
    import_engine()
    from sweeps.params import HyperParameter

    return {name: HyperParameter(name, spec) for name, spec in definition.parameters.items()}


def _is_unordered(spec: dict[str, Any]) -> bool:
    values = spec.get("values", [])
    return len(values) > 1 and not all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )


@contextlib.contextmanager
def _seeded(seed: int, number: int) -> Iterator[None]:
    """Seed the global generators the engine draws from, and put them back."""
    before = random.getstate(), np.random.get_state()
    random.seed(_mix(seed, number))
    np.random.seed(_mix(seed, number))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _mix(seed: int, number: int) -> int:
    """Independent 32-bit seeds for (sweep seed, trial number)."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _plain(value: Any) -> Any:
    """NumPy scalars as Python numbers: 'np.float64(0.1)' is no override."""
    return value.item() if isinstance(value, np.generic) else value
