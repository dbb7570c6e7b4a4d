"""Stands in for a training run: logs a metric step by step, then writes metrics.json."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from filelock import FileLock

words = [word.lstrip("-+") for word in sys.argv[1:]]
options = dict(word.split("=", 1) for word in words if "=" in word)
folder = Path(os.environ["RUNS_DIR"]) / "m" / "d" / "c" / "seed0-abc"
(folder / "log").mkdir(parents=True, exist_ok=True)
with FileLock(folder / ".lock"):  # as src.run: a second process waits, then finds it finished
    if (folder / "metrics.json").exists():
        sys.exit(0)
    (folder / "config.yaml").write_text("words: " + json.dumps(sys.argv[1:]) + "\n")
    with (folder / "starts").open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    if options.get("fail") == "yes":
        print("this cannot work", file=sys.stderr)
        sys.exit(int(options.get("code", 1)))
    x, y = float(options.get("x", 0)), float(options.get("y", 0))
    score = 1.0 - (x - 0.3) ** 2 - (y - 0.7) ** 2
    steps = int(options.get("steps", 3))
    with (folder / "log" / "metrics.csv").open("w") as stream:
        stream.write("step,score\n")
        for step in range(steps):
            stream.write(f"{step},{score * (step + 1) / steps}\n")
            stream.flush()
            time.sleep(float(options.get("pause", 0)))
    (folder / "metrics.json").write_text(json.dumps({"score": score, "test/image_auroc": 0.5}))
