from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from src.reproduction.display import LiveTable
from src.reproduction.engine import Grid, Outcome, Workplace
from src.reproduction.jobs import Identity, Job
from src.reproduction.slots import Slot

FAKE = Path(__file__).with_name("fake_run.py")
MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    def make(name: str, **options: object) -> Job:
        folder = tmp_path / "runs" / name
        settings = {"name": name, "folder": folder, "diary": tmp_path / "diary", **options}
        overrides = tuple(f"{key}={value}" for key, value in settings.items())
        return Job(overrides, Identity(name, folder), "fake", "only", name, seed=0)

    return make


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path / "grid", (sys.executable, str(FAKE)), lease_s=30.0, retries=1)


@pytest.fixture
def work(place: Workplace) -> Callable[..., Outcome]:
    def run(jobs: list[Job], slots: int = 2) -> Outcome:
        with LiveTable(jobs, slots, place.ledger) as watcher:
            return Grid(jobs, place, [Slot(f"s{i}", {}) for i in range(slots)], watcher).run()

    return run


@pytest.fixture
def diary(tmp_path: Path) -> Callable[[str], list[str]]:
    """Names of the jobs that noted 'start' or 'end', in order."""

    def read(what: str) -> list[str]:
        path = tmp_path / "diary"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1] for line in lines if line.startswith(what)]

    return read
