"""A whole grid in a process of its own, to be killed or doubled: folder, jobs, sleep, slots."""

from __future__ import annotations

import sys
from pathlib import Path

from src.reproduction.display import LiveTable
from src.reproduction.engine import Grid, Workplace
from src.reproduction.jobs import Identity, Job
from src.reproduction.slots import Slot

root, count, sleep, slots = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
command = (sys.executable, str(Path(__file__).with_name("fake_run.py")))
place = Workplace(root / "grid", command, lease_s=30.0, retries=1)
jobs = []
for index in range(count):
    folder = root / "runs" / f"job{index}"
    words = {"name": f"job{index}", "folder": folder, "diary": root / "diary", "sleep": sleep}
    overrides = tuple(f"{key}={value}" for key, value in words.items())
    jobs.append(Job(overrides, Identity(f"job{index}", folder), "fake", "only", "c", index))
with LiveTable(jobs, slots, place.ledger) as watcher:
    outcome = Grid(jobs, place, [Slot(f"s{i}", {}) for i in range(slots)], watcher).run()
print(f"before {len(outcome.before)} done {len(outcome.done)} elsewhere {len(outcome.elsewhere)}")
