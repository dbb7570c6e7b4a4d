"""A W&B sweep file searched by Optuna: ask for trials, run them on Ray, tell what they came to.

No account and no network, unlike W&B's own agent. Supported is what Optuna can search of what W&B
documents; every other key, distribution or macro is refused by its name before a trial starts.
"""

import csv
import hashlib
import itertools
import math
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import yaml
from matplotlib import pyplot
from omegaconf import DictConfig
from optuna import distributions, samplers
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState
from optuna.visualization import matplotlib as pictures

from src.errors import ConfigError, did_you_mean, only
from src.files import atomic
from src.identity import require_current
from src.reproduction.running import Engine, Task, last_lines
from src.saved_run import SavedRun

MEANING = ("program", "method", "metric", "parameters", "command", "early_terminate")
KEYS = (*MEANING, "run_cap", "name", "description", "project", "entity")
#: `${env} ${interpreter} ${program} ${args}`: what W&B's agent runs when a file has no command.
COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
DISTRIBUTIONS = ("constant", "categorical", "uniform", "int_uniform", "log_uniform_values")


class Sweep(NamedTuple):
    """A checked sweep file."""

    path: Path
    plain: Mapping[str, Any]  # the file itself
    space: Mapping[str, distributions.BaseDistribution]  # what is searched
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
        axes = []
        for name, kind in self.space.items():
            if not isinstance(kind, distributions.CategoricalDistribution):
                raise _refusal(self.path, f"{name} has no end in a grid", kind, "list values:")
            axes.append(kind.choices)
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


def _distribution(path: Path, name: str, spec: Any) -> distributions.BaseDistribution | None:
    """What W&B means, in Optuna's words; None: a constant."""
    if not isinstance(spec, dict) or "parameters" in spec:
        do = f"write one dotted name for each parameter, such as '{name}.lr:'"
        raise _refusal(path, f"{name} is nested, which Hydra cannot read", spec, do)
    only(f"{path}, {name}", spec, ("value", "values", "min", "max", "distribution"))
    only(f"{path}, {name}", [spec.get("distribution", "constant")], DISTRIBUTIONS)
    ends: tuple[Any, Any] = (spec.get("min"), spec.get("max"))
    try:
        if None in spec.get("values", [spec.get("value", 0)]):
            raise ValueError("null reaches Hydra as None, write 'null'")
        if "value" in spec:
            return None
        if "values" in spec:  # lists as the text that the agent passes
            return distributions.CategoricalDistribution(
                [v if isinstance(v, bool | int | float | str) else str(v) for v in spec["values"]]
            )
        whole = all(isinstance(end, int) for end in ends)
        if whole and spec.get("distribution", "int_uniform") == "int_uniform":
            return distributions.IntDistribution(*ends)
        log = spec.get("distribution") == "log_uniform_values"
        return distributions.FloatDistribution(*ends, log=log)
    except (TypeError, ValueError) as error:
        raise _refusal(path, f"{name} cannot be drawn", f"{spec}: {error}", "repair it") from error


def _refusal(path: Path, what: str, found: object, do: str) -> ConfigError:
    return ConfigError(f"{path}: {what}.", found=str(found), do=do)


RANKED = 4  # finished trials; ours: with fewer, any ranking of parameters is noise
SHOWN = 10  # trials on the screen; trials.csv holds all
MAX_FAILURES = 3  # ours: from the start; then the command is wrong, not the parameters


def run_sweep(cfg: DictConfig) -> int:
    """Run or continue the sweep of `cfg.file`; exit code 1 when no trial finished."""
    sweep = load_sweep(Path(cfg.file))
    folder = Path(cfg.sweeps_dir).expanduser().absolute() / (cfg.name or sweep.path.stem)
    require_current(folder, "give the new sweep a name of its own (name=...)")
    search = Search(sweep, folder, cfg)
    told = sum(trial.state.is_finished() for trial in search.trials())
    print(f"{sweep.path}: {sweep.plain['method']}, {search.count} trials, {told} of them done")
    if told < search.count and not search.reached():
        with Engine(cfg.engine, cfg.retries, search.count, told) as engine:
            search.run(engine)
    print(*search.write_trials(), sep="\n")
    return 0 if search.trials(TrialState.COMPLETE) else 1


def trial_count(sweep: Sweep, asked: int | None) -> int:
    """Trials in all, over all calls: `count=`, else run_cap, else every point of a grid."""
    points = len(sweep.grid()) if sweep.plain["method"] == "grid" else 0
    wanted = asked or sweep.plain.get("run_cap") or points
    if not wanted or wanted < 1:
        found = f"neither count= nor run_cap in {sweep.path}"
        raise ConfigError("The search never ends by itself.", found=found, do="add count=20")
    return min(wanted, points or wanted)


def open_study(sweep: Sweep, seed: int, folder: Path) -> optuna.Study:
    """The sweep's study; a journal file bears kill -9, several processes and NFS alike."""
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "trials.log")))
    name = f"{sweep.identity}-seed{seed}"
    for other in set(optuna.get_all_study_names(storage)) - {name}:
        found, do = f"{folder} is of {other}, not {name}", f"choose name=..., or move {folder}"
        raise ConfigError("This sweep was started with another file or seed.", found=found, do=do)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if sweep.halving[0]:
        pruner = optuna.pruners.SuccessiveHalvingPruner(*sweep.halving)
    return optuna.create_study(
        storage=storage, pruner=pruner, study_name=name, load_if_exists=True,
        direction="maximize" if sweep.maximise else "minimize",
    )  # fmt: skip


class Search:
    """The trials of a sweep, and those of them that run now."""

    def __init__(self, sweep: Sweep, folder: Path, cfg: DictConfig) -> None:
        self.sweep, self.folder, self.cfg = sweep, folder, cfg
        self.count = trial_count(sweep, cfg.count)
        self.study = open_study(sweep, cfg.seed, folder)
        self.running: dict[Task, Trial] = {}

    def trials(self, *states: TrialState) -> list[optuna.trial.FrozenTrial]:
        """The trials up to `count`, of some states or all; those beyond are of other calls."""
        known = self.study.get_trials(deepcopy=False, states=states or None)
        return [trial for trial in known if trial.number < self.count]

    def reached(self) -> bool:
        """Whether a trial reached the file's `metric.target`."""
        target, sign = self.sweep.plain["metric"].get("target"), 1 if self.sweep.maximise else -1
        values = [trial.value or 0.0 for trial in self.trials(TrialState.COMPLETE)]
        return target is not None and any(sign * value >= sign * target for value in values)

    def run(self, engine: Engine) -> None:
        """Work until every trial is told; Ctrl-C leaves them for the next call."""
        while True:
            while len(self.running) < engine.places() and (trial := self.next()) is not None:
                engine.submit(task := self.task(trial))
                self.running[task] = trial
            if not self.running:
                return
            for task in engine.ended():
                self.conclude(task)
            if self.sweep.halving[0]:
                self.prune(engine)

    def next(self) -> Trial | None:
        """A new trial, else one that an interrupted call left behind; None: all are started."""
        if self.reached():
            return None
        if len(self.trials()) < self.count:
            trial = self.study.ask()
            if trial.number < self.count:
                return trial
            self.study.tell(trial, state=TrialState.FAIL)  # another process was quicker
        mine = {trial.number for trial in self.running.values()}
        for left in self.trials(TrialState.RUNNING):
            if left.number not in mine:
                return Trial(self.study, left._trial_id)  # Optuna has no public way back to it
        return None

    def task(self, trial: Trial) -> Task:
        """The command of a trial, whose values depend on seed, number and earlier results only."""
        values = self.draw(trial)
        place = self.folder / f"trial{trial.number:04d}"
        mode = os.environ.get("WANDB_MODE", "offline")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return Task(
            key=str(trial.number),
            name=" ".join([f"trial {trial.number}", *(f"{k}={v}" for k, v in values.items())]),
            words=(*self.sweep.words(values), *self.cfg.extra),
            log=self.folder / "logs" / f"{place.name}.log",
            finished=lambda: bool(final_metrics(place)),
            environment={"WANDB_MODE": mode, "RUNS_DIR": str(place), "PATH": path},
        )

    def draw(self, trial: Trial) -> dict[str, Any]:
        """The values of a trial, as Optuna suggests them."""
        seed, method = self.cfg.seed * 1_000_003 + trial.number, self.sweep.plain["method"]
        # ours: 5 random trials before TPE's model; searches here have tens of trials
        tpe = samplers.TPESampler(seed=seed, n_startup_trials=5, constant_liar=True)
        self.study.sampler = tpe if method == "bayes" else samplers.RandomSampler(seed)
        if method == "grid":
            point = self.sweep.grid()[trial.number]
            self.study.sampler = samplers.PartialFixedSampler(point, self.study.sampler)
        values: dict[str, Any] = {}
        for name, kind in self.sweep.space.items():
            match kind:
                case distributions.CategoricalDistribution():
                    values[name] = trial.suggest_categorical(name, kind.choices)
                case distributions.IntDistribution():
                    values[name] = trial.suggest_int(name, kind.low, kind.high)
                case distributions.FloatDistribution():
                    values[name] = trial.suggest_float(name, kind.low, kind.high, log=kind.log)
        return values

    def conclude(self, task: Task) -> None:
        """Tell the study what a trial came to; ConfigError when no trial can ever work."""
        number, place = self.running.pop(task).number, Path(task.environment["RUNS_DIR"])
        metrics = final_metrics(place)
        state = None if self.sweep.metric in metrics else TrialState.FAIL
        value = metrics.get(self.sweep.metric)
        self.study.tell(number, value, state=state, skip_if_finished=True)
        if value is not None:
            print(f"       trial {number}: {self.sweep.metric} {value:.4f}")
            return
        states = [trial.state for trial in self.trials() if trial.state.is_finished()]
        if metrics or (set(states) == {TrialState.FAIL} and len(states) >= MAX_FAILURES):
            found = f"{len(metrics)} others in {place}; {task.log}: {last_lines(task.log, 1)}"
            do = did_you_mean(self.sweep.metric, metrics) if metrics else "run it by hand"
            what = f"Trials do not report the metric {self.sweep.metric!r}."
            raise ConfigError(what, found=found, do=do)

    def prune(self, engine: Engine) -> None:
        """End running trials that successive halving gives up."""
        for task, trial in list(self.running.items()):
            values = logged_values(Path(task.environment["RUNS_DIR"]), self.sweep.metric)
            told = self.study.get_trials(deepcopy=False)[trial.number].last_step or 0
            for step, value in enumerate(values[told:], start=told + 1):
                trial.report(value, step)
            if trial.should_prune():
                engine.cancel(task, "is not among the best")
                self.study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)
                del self.running[task]

    def write_trials(self) -> list[Path]:
        """Print the best trials; write trials.csv and, where they can be, pictures of them."""
        study, sweep, paths = self.study, self.sweep, [self.folder / "trials.csv"]
        frame = study.trials_dataframe(("number", "state", "value", "params", "duration"))
        frame = frame[: self.count]
        with atomic(paths[0]) as partial:
            frame.to_csv(partial, index=False)
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not done:
            return paths
        ranked = frame.sort_values("value", ascending=not sweep.maximise, na_position="last")
        print(ranked[:SHOWN].to_string(index=False))
        best = study.best_trial
        words = " ".join(f"{name}={value}" for name, value in best.params.items())
        print(f"Best: trial {best.number}, {sweep.metric} {best.value:.4f} with {words}")
        varied = [n for n in sweep.space if len({str(trial.params[n]) for trial in done}) > 1]
        drawings: dict[str, Any] = {"parallel.png": pictures.plot_parallel_coordinate}
        if len(done) >= RANKED and len({trial.value for trial in done}) > 1:
            drawings["importances.png"] = pictures.plot_param_importances
        for name, draw in drawings.items() if varied else ():
            pyplot.sca(draw(study, params=varied))
            paths.append(self.folder / name)
            with atomic(paths[-1]) as partial:
                pyplot.savefig(partial, format="png", dpi=120, bbox_inches="tight")
            pyplot.close()
        return paths


def final_metrics(place: Path) -> dict[str, float]:
    """The finite metrics of the finished run below a trial's RUNS_DIR; empty: none finished."""
    for path in place.rglob("metrics.json"):
        metrics = SavedRun(path.parent).metrics()
        return {name: value for name, value in metrics.items() if math.isfinite(value)}
    return {}


def logged_values(place: Path, metric: str) -> list[float]:
    """Every value of a metric that a run logged so far; its last line may be half written."""
    for path in place.rglob("log/metrics.csv"):
        with path.open(newline="") as stream:
            return [float(row[metric]) for row in [*csv.DictReader(stream)][:-1] if row.get(metric)]
    return []
