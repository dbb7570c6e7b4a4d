"""Works through jobs on this machine, together with any other process on the same folder.

A job is taken by claiming it, looked at again (another node may just have finished it), run in its
own process, and written to the ledger. Finished runs are never repeated; failures are retried and
then left, without stopping the rest; an interrupted job is simply run again, and resumes from its
own checkpoint.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from src.reproduction.claims import Claim, ClaimBoard, Heartbeat
from src.reproduction.jobs import Job
from src.reproduction.ledger import Attempt, Ledger
from src.reproduction.processes import GuardedProcess
from src.reproduction.slots import Slot

POLL_S = 0.1  # ours: unnoticeable beside a run, and no load
SCAN_S = 2.0  # ours: how often jobs of other nodes are looked at
USER_MISTAKE = 2  # exit code of a run whose config or data the user must repair


@dataclass(frozen=True)
class Running:
    """A job in a slot."""

    job: Job
    claim: Claim
    slot: Slot
    process: GuardedProcess


@dataclass
class Outcome:
    """What became of the jobs."""

    before: list[Job] = field(default_factory=list)  # finished when we came
    done: list[Job] = field(default_factory=list)  # finished by this process
    elsewhere: list[Job] = field(default_factory=list)  # finished meanwhile by another process
    failed: list[tuple[Job, Attempt]] = field(default_factory=list)
    interrupted: bool = False

    def finished(self) -> list[Job]:
        """Every job with a result."""
        return [*self.before, *self.done, *self.elsewhere]


class Watcher(Protocol):
    """Is told what happens; draws the live table or prints lines."""

    def started(self, job: Job, slot: Slot) -> None:
        """A process began."""

    def ended(self, job: Job, attempt: Attempt, *, will_retry: bool) -> None:
        """A process ended, well or not."""

    def tick(self, waiting: Sequence[Job], running: Sequence[Running], outcome: Outcome) -> None:
        """Called several times a second."""


@dataclass(frozen=True)
class Workplace:
    """The shared folder of a grid and how its jobs are started."""

    folder: Path  # claims, ledger and logs
    command: tuple[str, ...]  # program; a job's overrides are appended
    lease_s: float
    retries: int  # of a failed job, per call of the grid

    @property
    def ledger(self) -> Ledger:
        """Attempts of all jobs."""
        return Ledger(self.folder / "attempts")


class Grid:
    """The jobs of one call, the slots of this machine, and the loop between them."""

    def __init__(
        self, jobs: Sequence[Job], place: Workplace, slots: Sequence[Slot], watcher: Watcher
    ) -> None:
        self.place, self.watcher = place, watcher
        self.ledger = place.ledger
        self.board = ClaimBoard(place.folder / "claims", place.lease_s)
        self.outcome = Outcome(before=[job for job in jobs if job.is_finished()])
        known = {job.key for job in self.outcome.before}
        self.waiting = [job for job in jobs if job.key not in known]
        self.free = list(slots)
        self.running: list[Running] = []
        self._began = self.board.now()
        self._next_scan = 0.0

    def run(self) -> Outcome:
        """Work until no job is left that anybody could finish; Ctrl-C ends it cleanly."""
        self.heartbeat = Heartbeat(self.board)
        try:
            with _terminate_like_interrupt():
                while self.waiting or self.running:
                    self._step()
                    time.sleep(POLL_S)
        except KeyboardInterrupt:
            self.outcome.interrupted = True
        finally:
            for item in self.running:
                item.process.stop()
                self.heartbeat.drop(item.claim)
            self.heartbeat.stop()
            self.board.close()
        return self.outcome

    def _step(self) -> None:
        for item in list(self.running):
            if self.heartbeat.has_lost(item.claim):
                self._abandon(item)
            elif (code := item.process.poll()) is not None:
                self._finish(item, code)
        if self.free and time.monotonic() >= self._next_scan:
            self._fill()
        self.watcher.tick(self.waiting, self.running, self.outcome)

    def _fill(self) -> None:
        """Start waiting jobs in free slots; settle those that others finished or gave up."""
        for job in list(self.waiting):
            if not self.free:
                return
            if job.is_finished():
                self._settle(job, self.outcome.elsewhere)
            elif self._has_failed(job):
                self._give_up(job)
            elif claim := self.board.take(job.key):
                self._start(job, claim)
        self._next_scan = time.monotonic() + SCAN_S

    def _start(self, job: Job, claim: Claim) -> None:
        if job.is_finished():  # finished between the look and the claim
            self.board.release(claim)
            self._settle(job, self.outcome.elsewhere)
            return
        self.heartbeat.hold(claim)
        slot = self.free.pop(0)
        log = self.place.folder / "logs" / f"{job.key}.log"
        process = GuardedProcess([*self.place.command, *job.overrides], slot.environment, log)
        self.board.watch(claim, [process.pid])
        self.waiting.remove(job)
        self.running.append(Running(job, claim, slot, process))
        self.watcher.started(job, slot)

    def _finish(self, item: Running, code: int) -> None:
        finished = item.job.is_finished()
        attempt = Attempt(
            ended=self.board.now(),
            seconds=round(item.process.seconds, 2),
            exit_code=0 if finished else code or 1,  # a run without metrics.json is not finished
            host=socket.gethostname(),
            log=str(item.process.log),
        )
        self.ledger.add(item.job.key, attempt)
        self._vacate(item)
        if finished:
            self.outcome.done.append(item.job)
        else:
            self.waiting.append(item.job)  # `_fill` retries it or gives it up
            self._next_scan = 0.0
        again = not finished and not self._has_failed(item.job)
        self.watcher.ended(item.job, attempt, will_retry=again)

    def _abandon(self, item: Running) -> None:
        """Our lease ran out and somebody else has the job: get out of the way."""
        item.process.stop()
        self._vacate(item)
        self.waiting.append(item.job)

    def _vacate(self, item: Running) -> None:
        item.process.close()
        self.running.remove(item)
        self.free.append(item.slot)
        self.heartbeat.drop(item.claim)

    def _has_failed(self, job: Job) -> bool:
        failures = self.ledger.failures(job.key, since=self._began)
        hopeless = any(attempt.exit_code == USER_MISTAKE for attempt in failures)
        return hopeless or len(failures) > self.place.retries

    def _give_up(self, job: Job) -> None:
        self.waiting.remove(job)
        last = self.ledger.failures(job.key, since=self._began)[-1]
        self.outcome.failed.append((job, last))

    def _settle(self, job: Job, where: list[Job]) -> None:
        self.waiting.remove(job)
        where.append(job)


@contextlib.contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """Let SIGTERM, as sent by schedulers, end the grid as cleanly as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread; a Ray worker ends its own processes
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
