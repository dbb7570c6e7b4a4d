"""Runs the trials of a sweep in local processes; several drivers may share one sweep."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.errors import ConfigError, did_you_mean
from src.reproduction.claims import Claim, ClaimBoard, Heartbeat
from src.reproduction.processes import GuardedProcess, last_lines
from src.reproduction.slots import Slot
from src.sweeping.command import command_line
from src.sweeping.definition import SweepDefinition
from src.sweeping.results import final_metrics, metric_history, run_folder
from src.sweeping.samplers import Sampler, trials_to_stop
from src.sweeping.trials import FAILED, FINISHED, STOPPED, Trial, TrialFile, best_trial

POLL_S = 0.1
WATCH_S = 2.0  # ours: how often running trials are read, for early termination
MAX_FAILURES = 3  # ours: in a row from the start; the command is wrong, not the parameters
LEASE_S = 300.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How a sweep is run."""

    definition: SweepDefinition
    sampler: Sampler
    folder: Path  # of this sweep: trials.json, logs, one folder of runs per trial
    count: int | None  # trials in all; None: until a grid is exhausted
    extra: tuple[str, ...]  # words appended to every command


@dataclass
class _Running:
    trial: Trial
    claim: Claim
    slot: Slot
    process: GuardedProcess
    stopping: bool = False


class Driver:
    """Asks for trials, runs them, tells the results."""

    def __init__(self, plan: Plan, file: TrialFile, slots: Sequence[Slot], say: Say) -> None:
        self.plan, self.file, self.say = plan, file, say
        self.free = list(slots)
        self.running: list[_Running] = []
        self.board = ClaimBoard(plan.folder / "claims", LEASE_S)
        self._next_watch = 0.0

    def run(self) -> list[Trial]:
        """Work until the sweep is complete; the trials. Ctrl-C leaves them for the next call."""
        self.heartbeat = Heartbeat(self.board)
        try:
            while self._fill() or self.running:
                time.sleep(POLL_S)
                self._collect()
                self._watch()
        finally:
            for item in self.running:
                item.process.stop()
                self.heartbeat.drop(item.claim)
            self.heartbeat.stop()
            self.board.close()
        return self.file.read()

    def _fill(self) -> bool:
        """Start trials in free slots; False when there is nothing left to start."""
        while self.free:
            picked = self._pick()
            if picked is None:
                return False
            self._start(*picked)
        return True

    def _pick(self) -> tuple[Trial, Claim] | None:
        """An interrupted trial if there is one, else a new one."""
        with self.file.editing() as trials:
            for trial in trials:
                if trial.open and (claim := self.board.take(str(trial.number))):
                    return trial, claim
            if self._complete(trials):
                return None
            fresh = self.plan.sampler.next(trials, len(trials))
            if fresh is None:
                return None
            claim = self.board.take(str(fresh.number))
            if claim is None:  # left by a sweep whose trials.json was deleted
                return None
            trials.append(fresh)
            return fresh, claim

    def _complete(self, trials: Sequence[Trial]) -> bool:
        """Enough trials, or one that reached the file's `metric.target`."""
        definition, count = self.plan.definition, self.plan.count
        if count is not None and len(trials) >= count:
            return True
        target = (definition.config.get("metric") or {}).get("target")
        best = best_trial(list(trials), maximise=definition.maximise)
        if target is None or best is None or best.metric is None:
            return False
        return best.metric >= target if definition.maximise else best.metric <= target

    def _start(self, trial: Trial, claim: Claim) -> None:
        self.heartbeat.hold(claim)
        slot = self.free.pop(0)
        words = command_line(
            self.plan.definition, trial.values, self._folder(trial) / "arguments.json"
        )
        process = GuardedProcess(
            [*words, *self.plan.extra], {**slot.environment, **self._environment(trial)},
            self.plan.folder / "logs" / f"trial{trial.number:04d}.log",
        )  # fmt: skip
        self.board.watch(claim, [process.pid])
        self.running.append(_Running(trial, claim, slot, process))
        values = " ".join(f"{name}={_short(value)}" for name, value in trial.values.items())
        self.say(f"start  trial {trial.number}  {values}")

    def _environment(self, trial: Trial) -> dict[str, str]:
        """Each trial writes below its own RUNS_DIR; `python` means this interpreter."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        mode = os.environ.get("WANDB_MODE", "offline")
        return {"RUNS_DIR": str(self._folder(trial)), "PATH": path, "WANDB_MODE": mode}

    def _folder(self, trial: Trial) -> Path:
        return (self.plan.folder / f"trial{trial.number:04d}").resolve()

    def _collect(self) -> None:
        for item in list(self.running):
            code = item.process.poll()
            if code is None:
                continue
            self._read(item)
            self._conclude(item, code)
            with self.file.editing() as trials:
                trials[item.trial.number] = item.trial
            self._vacate(item)
            self._check_progress(item)

    def _conclude(self, item: _Running, code: int) -> None:
        """Give the trial its final state."""
        trial, metric = item.trial, self.plan.definition.metric
        folder = run_folder(self._folder(trial))
        trial.seconds = round(trial.seconds + item.process.seconds, 2)
        trial.run = None if folder is None else str(folder)
        values = final_metrics(folder) if folder else {}
        if values or (folder is None and code == 0):
            trial.state = FINISHED
            trial.metric = values.get(metric, trial.metric) if metric else None
        else:
            trial.state = STOPPED if item.stopping else FAILED
        result = "" if trial.metric is None else f"{metric} {trial.metric:.4f}  "
        self.say(f"{trial.state:8} trial {trial.number}  {result}{trial.seconds:.1f} s")

    def _check_progress(self, item: _Running) -> None:
        """Stop a sweep that cannot work before it burns the night."""
        trial, metric = item.trial, self.plan.definition.metric
        if trial.state == FAILED:
            self.say(f"         {last_lines(item.process.log)}")
            states = [old.state for old in self.file.read() if not old.open]
            if len(states) >= MAX_FAILURES and set(states) == {FAILED}:
                raise ConfigError(
                    f"The first {len(states)} trials all failed.",
                    found=f"{item.process.log}: {last_lines(item.process.log, 1)}",
                    do="run the command in that log by hand",
                )
        if trial.state == FINISHED and metric and trial.metric is None:
            known = list(final_metrics(Path(trial.run))) if trial.run else []
            raise ConfigError(
                f"Trials do not report the metric {metric!r}.",
                found=f"{len(known)} other metrics in {trial.run or 'no run folder'}",
                do=did_you_mean(metric, known),
            )

    def _watch(self) -> None:
        """Read running trials and end those that the hyperband rule gives up."""
        if time.monotonic() < self._next_watch or not self.running:
            return
        self._next_watch = time.monotonic() + WATCH_S
        if "early_terminate" not in self.plan.definition.config:
            return
        for item in self.running:
            self._read(item)
        with self.file.editing() as trials:
            for item in self.running:
                trials[item.trial.number] = item.trial
            doomed = trials_to_stop(self.plan.definition, trials)
        for item in self.running:
            if item.trial.number in doomed and not item.stopping:
                item.stopping = True
                self.say(f"stop   trial {item.trial.number}: outside the best by hyperband")
                item.process.stop()

    def _read(self, item: _Running) -> None:
        metric, folder = self.plan.definition.metric, run_folder(self._folder(item.trial))
        if metric and folder and (history := metric_history(folder, metric)):
            item.trial.history, item.trial.metric = history, history[-1]

    def _vacate(self, item: _Running) -> None:
        item.process.close()
        self.running.remove(item)
        self.free.append(item.slot)
        self.heartbeat.drop(item.claim)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
