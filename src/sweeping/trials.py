"""The memory of a sweep: every trial in one JSON file, shared by the processes that work on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from src.errors import ConfigError
from src.files import write_text

RUNNING, FINISHED, FAILED, STOPPED = "running", "finished", "failed", "stopped"


@dataclass
class Trial:
    """One point of the search space and what came of it."""

    number: int
    values: dict[str, Any]  # by flat parameter name
    quantiles: dict[str, float] = field(default_factory=dict)  # of an Optuna suggestion
    state: str = RUNNING
    metric: float | None = None  # last reported value
    history: list[float] = field(default_factory=list)  # the metric over time
    seconds: float = 0.0
    run: str | None = None  # run folder

    @property
    def open(self) -> bool:
        """Not at its end yet."""
        return self.state == RUNNING


class TrialFile:
    """All trials of a sweep in `folder`/trials.json, replaced atomically under a lock."""

    def __init__(self, folder: Path, identity: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.identity = folder / "trials.json", identity
        self._lock = FileLock(folder / "trials.lock", timeout=600)

    @contextmanager
    def editing(self) -> Iterator[list[Trial]]:
        """The trials, to be read and changed; written back when the block succeeds."""
        with self._lock:
            trials = self._read()
            yield trials
            card = {"sweep": self.identity, "trials": [asdict(trial) for trial in trials]}
            write_text(self.path, json.dumps(card, indent=1) + "\n")

    def read(self) -> list[Trial]:
        """The trials as they are now."""
        with self._lock:
            return self._read()

    def _read(self) -> list[Trial]:
        if not self.path.exists():
            return []
        card = json.loads(self.path.read_text())
        if card.get("sweep") != self.identity:
            raise ConfigError(
                "This sweep was started with another file, seed or engine.",
                found=f"{self.path} belongs to {card.get('sweep')}, now {self.identity}",
                do=f"give the new sweep a name of its own (name=...), or move {self.path.parent}",
            )
        names = {item.name for item in fields(Trial)}
        return [Trial(**{k: v for k, v in row.items() if k in names}) for row in card["trials"]]


def best_trial(trials: list[Trial], *, maximise: bool) -> Trial | None:
    """The finished trial with the best final metric; ties go to the earlier one."""
    done = [trial for trial in trials if trial.state == FINISHED and trial.metric is not None]
    if not done:
        return None
    sign = -1 if maximise else 1
    return min(done, key=lambda trial: (sign * (trial.metric or 0.0), trial.number))
