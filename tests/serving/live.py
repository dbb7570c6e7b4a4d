"""`python -m src.serve` as a process of its own, for tests and the benchmark."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def served(run: Path, *overrides: str, code: Path | None = None) -> Iterator[str]:
    """Address of the live page of `run` while the block runs; by the program in folder `code`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "src.serve", f"run={run}", f"port={port}", *overrides]
    here = None if code is None else os.environ | {"PYTHONPATH": str(code)}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, cwd=code, env=here)
    address = f"http://127.0.0.1:{port}/"
    try:
        _wait(process, address)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def _wait(process: subprocess.Popen, address: str) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}api/detector"):
            return
        time.sleep(0.1)
    raise RuntimeError("the server did not answer within a minute")
