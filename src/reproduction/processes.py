"""Starting, watching and ending the process of one job."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from src.files import ESCAPE

STOP_TIMEOUT_S = 20.0  # ours: longer than the guard's own grace period


class GuardedProcess:
    """A command under `src.reproduction.guard`; its output goes to a log file.

    Args:
        command: program and arguments.
        environment: variables added to this process's own.
        log: file that receives standard output and error, appended.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.started = log, time.monotonic()
        guard = [sys.executable, "-m", "src.reproduction.guard", "--", *command]
        with log.open("ab") as stream:
            stream.write(f"$ {' '.join(command)}\n".encode(errors=ESCAPE))
            stream.flush()
            self._process = subprocess.Popen(
                guard,
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_importable(), **environment},
                start_new_session=True,  # a signal to the grid's group must not reach the guard
            )

    @property
    def pid(self) -> int:
        """Process id of the guard, which lives as long as the command."""
        return self._process.pid

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        return self._process.poll()

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.monotonic() - self.started

    def stop(self) -> int:
        """End the command and everything it started; returns the exit code."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self.close()

    def close(self) -> None:
        """Close the pipe that the guard watches."""
        if self._process.stdin is not None:
            self._process.stdin.close()


def last_lines(log: Path, count: int = 3) -> str:
    """The end of a log, for messages."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4096))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join([line for line in lines if line.strip()][-count:])


def _importable() -> dict[str, str]:
    """PYTHONPATH under which `src` is found from any working directory."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
