"""What people see while a grid works: a live table on a terminal, plain lines in a log."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from src.reproduction.engine import Outcome, Running
from src.reproduction.jobs import Job
from src.reproduction.ledger import Attempt, Ledger
from src.reproduction.processes import last_lines
from src.reproduction.slots import Slot

SHOWN = 16  # running jobs listed; more do not fit a terminal


class Forecast:
    """Seconds still to go, from the wall times of finished jobs of the same kind."""

    def __init__(self, jobs: Sequence[Job], ledger: Ledger) -> None:
        self._seconds: dict[tuple[str, str], list[float]] = {}
        for job in jobs:
            if job.is_finished() and (seconds := ledger.seconds(job.key)) is not None:
                self.learn(job, seconds)

    def learn(self, job: Job, seconds: float) -> None:
        """Remember how long `job` took."""
        self._seconds.setdefault((job.table, job.variant), []).append(seconds)

    def expected(self, job: Job) -> float | None:
        """Seconds `job` will take: median of its kind, else of all; None: nothing known yet."""
        known = self._seconds.get((job.table, job.variant))
        known = known or [s for times in self._seconds.values() for s in times]
        return statistics.median(known) if known else None

    def remaining(
        self, waiting: Sequence[Job], running: Sequence[Running], slots: int
    ) -> float | None:
        """Seconds until all are done with `slots` processes at a time; None: unknown."""
        left: list[float] = []
        for job in waiting:
            if (expected := self.expected(job)) is None:
                return None
            left.append(expected)
        for item in running:
            if (expected := self.expected(item.job)) is None:
                return None
            left.append(max(0.0, expected - item.process.seconds))
        return max(sum(left) / max(1, slots), max(left, default=0.0))


class LiveTable:
    """Shows the grid; use as a context manager around `Grid.run`."""

    def __init__(self, jobs: Sequence[Job], slots: int, ledger: Ledger) -> None:
        self.console = Console(file=sys.stdout, highlight=False)
        self.total, self.slots = len(jobs), slots
        self.forecast = Forecast(jobs, ledger)
        self.began = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, job: Job, slot: Slot) -> None:
        """A process began."""
        if self._live is None:
            self.console.print(f"start  {job.name}  [{slot.name}]", markup=False, soft_wrap=True)

    def ended(self, job: Job, attempt: Attempt, *, will_retry: bool) -> None:
        """A process ended; failures show the end of their log."""
        took = duration(attempt.seconds)
        if attempt.succeeded:
            self.forecast.learn(job, attempt.seconds)
            self._say(f"done   {job.name}  {took}")
            return
        verb = "retry " if will_retry else "FAILED"
        self._say(f"{verb} {job.name}  exit code {attempt.exit_code} after {took}, {attempt.log}")
        with_indent = last_lines(Path(attempt.log)).replace("\n", "\n       ")
        self._say(f"       {with_indent}")

    def tick(self, waiting: Sequence[Job], running: Sequence[Running], outcome: Outcome) -> None:
        """Redraw."""
        if self._live is not None:
            self._live.update(self._picture(waiting, running, outcome))

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def _picture(
        self, waiting: Sequence[Job], running: Sequence[Running], outcome: Outcome
    ) -> Group:
        table = Table("job", "slot", "time", "expected", box=None, padding=(0, 2))
        for item in running[:SHOWN]:
            expected = self.forecast.expected(item.job)
            table.add_row(
                item.job.name, item.slot.name, duration(item.process.seconds),
                "?" if expected is None else duration(expected),
            )  # fmt: skip
        left = self.forecast.remaining(waiting, running, self.slots)
        eta = "no estimate yet" if left is None else f"about {duration(left)} to go"
        line = (
            f"{len(outcome.finished())} of {self.total} finished, {len(running)} running, "
            f"{len(waiting)} waiting, {len(outcome.failed)} failed; "
            f"{duration(time.monotonic() - self.began)} so far, {eta}"
        )
        return Group(table, line)


def duration(seconds: float) -> str:
    """'7.2 s', '3:20 min', '2 h 05 min', '3 d 04 h'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"
