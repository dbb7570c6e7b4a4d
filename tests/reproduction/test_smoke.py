"""The smoke paper as a user runs it: killed in the middle, and after Hydra's own multirun."""

from __future__ import annotations

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SMOKE = ("paper=smoke", "variants=[patchcore]", "engine.cpus=1")
pytestmark = pytest.mark.slow


def start(root: Path, program: str, *words: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ, "RUNS_DIR": str(root / "runs"), "DATA_DIR": str(root / "data")
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", f"src.{program}", *words],
        cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def reproduce(root: Path, *words: str) -> subprocess.Popen[str]:
    return start(root, "reproduce", *SMOKE, f"tables_dir={root / 'tables'}", *words)


def finished(root: Path) -> dict[Path, int]:
    """When each finished run ended, in ns."""
    return {path: path.stat().st_mtime_ns for path in root.glob("runs/**/metrics.json")}


def numbers(root: Path) -> list[dict[str, str]]:
    with (root / "tables" / "smoke.csv").open() as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


def test_kill_9_in_the_middle_then_the_same_command_gives_the_same_table(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert "REPRODUCED: 2 of 2" in reproduce(whole).communicate(timeout=590)[0]
    process = reproduce(broken)
    deadline = time.monotonic() + 500
    while not finished(broken):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(2)  # the killed jobs are gone too
    before = finished(broken)
    said = reproduce(broken).communicate(timeout=590)[0]
    assert f"3 runs: {len(before)} finished before, {3 - len(before)} to run." in said
    assert {path: when for path, when in finished(broken).items() if path in before} == before
    assert len(finished(broken)) == 3
    assert numbers(whole) == numbers(broken)


def test_runs_of_hydras_own_multirun_are_judged_without_ray(tmp_path):
    listed = reproduce(tmp_path, "dry_run=true", "seeds=[0]").communicate(timeout=300)[0]
    words = listed.splitlines()[-1].partition("python -m src.run ")[2]
    words = [word for word in shlex.split(words) if not word.startswith("seed=")]
    many = start(tmp_path, "run", "-m", *words, "seed=0,1,2", "hydra/launcher=joblib",
                 "hydra.launcher.n_jobs=2")  # fmt: skip
    said = many.communicate(timeout=590)[0]
    assert many.returncode == 0, said
    judged = reproduce(tmp_path, "tables_only=true").communicate(timeout=300)[0]
    assert "3 runs: 3 finished before, 0 to run." in judged
    assert "REPRODUCED: 2 of 2" in judged
