"""Runs one command and ends it when the process that asked for it is gone.

`python -m src.reproduction.guard -- command ...`: stdin is a pipe whose other end the grid holds.
When the grid is killed, even with SIGKILL, the pipe closes and the command is ended with all its
children, so that a job never runs on as an orphan beside its own repetition.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import FrameType

GRACE_S = 10.0  # ours: time for a run to end by itself before SIGKILL


def main(arguments: list[str]) -> int:
    """Run the command after `--`; its exit code, or 128 + signal number."""
    command = arguments[arguments.index("--") + 1 :]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, on_signal)
    threading.Thread(target=_watch_parent, args=(stop,), daemon=True).start()
    while child.poll() is None:
        if stop.wait(timeout=0.1):
            end_group(child)
    code = child.returncode
    _kill(child.pid)  # loader workers that outlived the command
    return code if code >= 0 else 128 - code


def _watch_parent(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()


def end_group(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the command's process group, SIGKILL after a grace period."""
    try:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(timeout=GRACE_S)
    except ProcessLookupError:
        child.wait()
    except subprocess.TimeoutExpired:
        _kill(child.pid)
        child.wait()


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
