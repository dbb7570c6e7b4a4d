"""Stands in for `python -m src.run`: locks its folder, sleeps, may fail, writes metrics.json."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from filelock import FileLock

options = dict(word.split("=", 1) for word in sys.argv[1:])
folder = Path(options["folder"])
folder.mkdir(parents=True, exist_ok=True)


def note(what: str) -> None:
    line = f"{what} {options['name']} {os.getpid()} {os.getppid()}\n"
    handle = os.open(options["diary"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line.encode())
    os.close(handle)


with FileLock(folder / ".lock"):
    if (folder / "metrics.json").exists():
        note("found")
        sys.exit(0)
    note("start")
    (folder / "environment.json").write_text(json.dumps(dict(os.environ)))
    tries = len(list(folder.glob("try-*")))
    (folder / f"try-{tries}").touch()
    if tries < int(options.get("fails", 0)):
        print("it broke here", file=sys.stderr)
        sys.exit(int(options.get("code", 1)))
    time.sleep(float(options.get("sleep", 0.0)))
    partial = folder / "metrics.json.partial"
    partial.write_text(json.dumps({"test/image_auroc": 0.5}))
    partial.replace(folder / "metrics.json")
    note("end")
