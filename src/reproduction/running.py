"""Jobs on Ray: each is one command in a process of its own, wherever Ray finds a place for it.

Code, environment and `runs_dir` lie at the same paths on every node. After a dead worker or node
Ray starts the task again, and the run goes on from its own checkpoint, or waits for its lock.
"""

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from omegaconf import DictConfig
from rich import progress
from rich.console import Console

from src.cluster import Cluster
from src.files import ESCAPE

ROOT = Path(__file__).resolve().parents[2]
CARRIED = ("DATA_DIR", "RUNS_DIR", "WEIGHTS_DIR", "FEATURE_CACHE_DIR")  # and WANDB_*, to every node
USER_MISTAKE = 2  # exit code of a command that the user must repair
DAY = 86_400.0  # seconds of jobs that the time left is estimated from
LOST = 137  # exit code of a command whose workers died more often than Ray retries


@dataclass(frozen=True, eq=False)
class Task:
    """A command to run; `key` tells it from all others of an engine."""

    key: str
    name: str  # for people
    words: tuple[str, ...]
    log: Path  # receives standard output and error, appended
    finished: Callable[[], bool]  # looked at when the command ended, whatever its exit code
    environment: Mapping[str, str] = field(default_factory=dict)  # added to the node's own


class Engine:
    """Tasks on the cluster of conf/engine, under a bar; mistakes of the user are not retried."""

    def __init__(self, cfg: DictConfig, retries: int, total: int, finished: int = 0) -> None:
        self.retries, self.cluster = retries, Cluster(cfg)
        self.ray, self.places = self.cluster.ray, self.cluster.places
        self.running: dict[Any, Task] = {}
        self._failures: Counter[str] = Counter()
        console = Console(file=sys.stdout, highlight=False)
        self._bar = progress.Progress(
            progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeElapsedColumn(),
            progress.TextColumn("left"), progress.TimeRemainingColumn(), console=console,
            transient=True, disable=not console.is_terminal, speed_estimate_period=DAY,
        )  # fmt: skip
        self._all = self._bar.add_task("all", total=total, completed=finished)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the cluster; tasks that still run end."""
        self._bar.stop()
        self.ray.shutdown()

    def _say(self, text: str, *, finished: bool = False) -> None:
        """One line above the bar; `finished`: a task is at its end."""
        self._bar.console.print(text, markup=False, soft_wrap=True)
        self._bar.advance(self._all, int(finished))

    def submit(self, task: Task) -> None:
        """Queue a task; Ray runs it again when its worker or node dies."""
        share = self.cluster.share
        environment = {
            "OMP_NUM_THREADS": str(max(1, int(share["CPU"]))),
            **{k: v for k, v in os.environ.items() if k in CARRIED or k.startswith("WANDB_")},
            **task.environment,
        }
        remote = self.ray.remote(num_returns="streaming", scheduling_strategy="SPREAD")(_perform)
        place = remote.options(name=task.name, num_cpus=share["CPU"], num_gpus=share["GPU"])
        self.running[place.remote(task.words, str(task.log), environment, str(Path.cwd()))] = task

    def cancel(self, task: Task, said: str) -> None:
        """End a running task at once."""
        for handle in [handle for handle, known in self.running.items() if known == task]:
            self.ray.cancel(handle, force=True)
            del self.running[handle]
        self._say(f"stop   {task.name}  {said}", finished=True)

    def ended(self, seconds: float = 0.5) -> Iterator[Task]:
        """Tasks that came to their end, finished or not, in up to `seconds`; others are retried."""
        wanted = {"num_returns": len(self.running), "timeout": seconds, "fetch_local": False}
        for handle in self.ray.wait(list(self.running), **wanted)[0]:
            try:
                event = self.ray.get(next(handle))
            except self.ray.exceptions.RayError:
                event = LOST, 0.0
            if isinstance(event, str):
                self._say(f"start  {self.running[handle].name}  [{event}]")
            elif self._conclude(task := self.running.pop(handle), *event):
                yield task

    def _conclude(self, task: Task, code: int, seconds: float) -> bool:
        """Whether a task whose command ended is at its own end; if not, start it again."""
        took = duration(seconds)
        if task.finished():
            self._say(f"done   {task.name}  {took}", finished=True)
            return True
        self._failures[task.key] += 1
        if again := self._failures[task.key] <= self.retries and code != USER_MISTAKE:
            self.submit(task)
        what, end = "retry " if again else "FAILED", last_lines(task.log).replace("\n", "\n       ")
        said = f"{what} {task.name}  exit code {code} after {took}, {task.log}\n       {end}"
        self._say(said, finished=not again)
        return not again


def _perform(
    words: tuple[str, ...], log: str, environment: dict[str, str], folder: str
) -> Iterator[str | tuple[int, float]]:
    """The Ray task, on any node: yields the node's name, then exit code and seconds."""
    yield os.uname().nodename
    began = time.monotonic()
    # setpriv (util-linux) lets the kernel end the command with this worker, however that dies
    tied = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with Path(log).open("ab") as stream:
        stream.write(f"$ {' '.join(words)}\n".encode(errors=ESCAPE))
        stream.flush()
        done = subprocess.run(
            [*tied, *words], cwd=folder, env={**os.environ, "PYTHONPATH": path, **environment},
            stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    yield done.returncode, time.monotonic() - began


def last_lines(log: Path, count: int = 3) -> str:
    """The end of a log, for messages."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return "\n".join([line for line in lines if line.strip()][-count:])


def duration(seconds: float) -> str:
    """'7.2 s', '3:20 min', '2 h 05 min', '3 d 04 h'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min" if seconds >= 60 else f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24:02d} h"
