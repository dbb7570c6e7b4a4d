"""Who works on which job: leases on a shared folder, so that no job runs twice.

A claim is a small JSON file. It is taken and changed under a file lock, kept alive by touching it,
and free again when its owner released it, died on this machine, or let the lease run out. All times
are modification times of files in that folder, so nodes whose clocks disagree agree here.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, SoftFileLock

LOCK_TIMEOUT_S = 60.0  # ours: the lock is held for milliseconds; longer means a broken file system


@dataclass(frozen=True)
class Claim:
    """A job this process holds; `token` tells it from any later claim on the same job."""

    key: str
    token: str


class ClaimBoard:
    """Claims on the jobs of one shared folder.

    Args:
        folder: where claims live; created when missing.
        lease_s: seconds after the last `renew` when a claim counts as abandoned. On network file
            systems keep it well above the attribute cache (60 s on NFS).
    """

    def __init__(self, folder: Path, lease_s: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.lease_s = folder, lease_s
        self._lock = _file_lock(folder / "claims.lock")
        self._probe = folder / f"clock-{socket.gethostname()}-{os.getpid()}"

    def take(self, key: str) -> Claim | None:
        """Claim `key`, or None when another live process holds it."""
        with self._lock:
            if self._is_held(key):
                return None
            claim = Claim(key, uuid.uuid4().hex)
            self._write(claim, [os.getpid()])
            return claim

    def watch(self, claim: Claim, pids: list[int]) -> None:
        """Also count the processes `pids` of this machine as owners: held while any one lives."""
        with self._lock:
            if self._is_mine(claim):
                self._write(claim, [os.getpid(), *pids])

    def renew(self, claim: Claim) -> bool:
        """Extend the lease; False: it expired and another process took the job."""
        with self._lock:
            if not self._is_mine(claim):
                return False
            os.utime(self._path(claim.key))
            return True

    def release(self, claim: Claim) -> None:
        """Give the job back; harmless when it is no longer ours."""
        with self._lock:
            if self._is_mine(claim):
                self._path(claim.key).unlink()

    def is_held(self, key: str) -> bool:
        """Whether some live process works on `key`."""
        with self._lock:
            return self._is_held(key)

    def now(self) -> float:
        """Seconds since 1970 on the clock of the file server."""
        self._probe.touch()
        return self._probe.stat().st_mtime

    def close(self) -> None:
        """Remove this process's clock file."""
        self._probe.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _write(self, claim: Claim, pids: list[int]) -> None:
        path = self._path(claim.key)
        partial = path.with_suffix(".partial")
        processes = [[pid, _start_ticks(pid)] for pid in pids]
        card = {
            "token": claim.token,
            "host": socket.gethostname(),
            "kernel": _kernel_identity(),
            "processes": processes,
        }
        partial.write_text(json.dumps(card) + "\n")
        partial.replace(path)

    def _read(self, key: str) -> dict[str, object] | None:
        try:
            card = json.loads(self._path(key).read_text())
        except (OSError, ValueError):  # absent, or torn by a full disk: nobody can own it
            return None
        return card if isinstance(card, dict) else None

    def _is_mine(self, claim: Claim) -> bool:
        card = self._read(claim.key)
        return card is not None and card.get("token") == claim.token

    def _is_held(self, key: str) -> bool:
        card = self._read(key)
        if card is None:
            return False
        if card.get("kernel") == _kernel_identity() and not _any_alive(card.get("processes")):
            return False
        return self.now() - self._path(key).stat().st_mtime < self.lease_s


class Heartbeat:
    """A thread that renews claims, and remembers the ones that were lost."""

    def __init__(self, board: ClaimBoard) -> None:
        self.board = board
        self._held: dict[str, Claim] = {}
        self._lost: set[str] = set()
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="claim-heartbeat")
        self._thread.start()

    def hold(self, claim: Claim) -> None:
        """Keep `claim` alive until `drop`."""
        with self._guard:
            self._held[claim.token] = claim

    def drop(self, claim: Claim) -> None:
        """Stop renewing and release the claim."""
        with self._guard:
            self._held.pop(claim.token, None)
            self._lost.discard(claim.token)
        self.board.release(claim)

    def has_lost(self, claim: Claim) -> bool:
        """True when another process may own the job now: stop working on it."""
        return claim.token in self._lost

    def stop(self) -> None:
        """End the thread; claims still held expire by themselves."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _beat(self) -> None:
        while not self._stop.wait(self.board.lease_s / 4):  # ours: three beats may fail
            with self._guard:
                held = list(self._held.values())
            for claim in held:
                self._renew(claim)

    def _renew(self, claim: Claim) -> None:
        try:
            kept = self.board.renew(claim)
        except (OSError, TimeoutError):  # file server away: try again at the next beat
            return
        with self._guard:
            if not kept and claim.token in self._held:
                self._lost.add(claim.token)


def _file_lock(path: Path) -> FileLock | SoftFileLock:
    """An OS lock, or a lock by exclusive creation where the file system has none."""
    lock = FileLock(path, timeout=LOCK_TIMEOUT_S)
    try:
        with lock:
            return lock
    except NotImplementedError:
        return SoftFileLock(path.with_suffix(".softlock"), timeout=LOCK_TIMEOUT_S)


def _kernel_identity() -> str:
    """Equal for two processes exactly when they see each other's process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode()}"


def _start_ticks(pid: int) -> str | None:
    """When a process started, in kernel ticks; None: unknown or gone. Tells reused ids apart."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]  # a zombie holds nothing


def _any_alive(processes: object) -> bool:
    if not isinstance(processes, list):
        return False
    return any(_is_alive(int(pid), ticks) for pid, ticks in processes)


def _is_alive(pid: int, ticks: str | None) -> bool:
    if Path("/proc/self/stat").exists():
        return ticks is not None and _start_ticks(pid) == ticks
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
