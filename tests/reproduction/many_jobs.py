"""Jobs in a process of its own, to be killed: root, how many, seconds each, address of a Ray."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import OmegaConf

from src.commands.reproduce import run_jobs
from src.reproduction.planning import Job

FAKE = str(Path(__file__).with_name("fake_run.py"))


def job(root: Path, name: str, **options: object) -> Job:
    folder = root / "runs" / name
    settings = {"name": name, "folder": folder, "diary": root / "diary", **options}
    words = tuple(f"{key}={value}" for key, value in settings.items())
    return Job(words, name, "fake", "only", name, 0, locate=lambda: folder)


def run(root: Path, jobs: list[Job], address: str | None, **engine: object) -> None:
    share = {"address": address, "cpus": 1, "gpus": 0, **engine}
    cfg = OmegaConf.create({"runs_dir": str(root), "retries": 1, "engine": share})
    left = [job for job in jobs if job.folder is None]
    if left:
        run_jobs(left, cfg, len(jobs) - len(left), program=(sys.executable, FAKE))


if __name__ == "__main__":
    root, count, sleep = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    address = sys.argv[4] if len(sys.argv) > 4 else None
    run(root, [job(root, f"job{i}", sleep=sleep) for i in range(count)], address)
