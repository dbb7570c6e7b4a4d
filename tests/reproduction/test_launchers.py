"""The smoke grid through each of Hydra's launchers, and killed and doubled, with real runs."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHERS = {
    "joblib": ("hydra_joblib_launcher", "hydra.launcher.n_jobs=2"),
    "submitit_local": ("hydra_submitit_launcher", "hydra.launcher.timeout_min=20"),
    "ray": ("hydra_ray_launcher", "+hydra.launcher.ray.init.num_cpus=2"),
}
pytestmark = pytest.mark.slow


def installed(plugin: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{plugin}") is not None
    except ModuleNotFoundError:
        return False


FOUR = ("variants=[patchcore,crn]", "seeds=[0,1]")  # runs


def start(tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "RUNS_DIR": str(tmp_path / "runs"),
        "DATA_DIR": str(tmp_path / "data"),
        "RAY_AUTH_MODE": "disabled",  # a local cluster; no token file in the home folder
    }
    command = [sys.executable, "-m", "src.reproduce", "paper=smoke"]
    return subprocess.Popen(
        [*command, f"tables_dir={tmp_path / 'tables'}", *words],
        cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def attempts(tmp_path: Path) -> int:
    """Runs that were started and ended, over all jobs."""
    files = (tmp_path / "runs" / ".grid" / "attempts").glob("*.json")
    return sum(path.read_text().count('"exit_code"') for path in files)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_runs_every_job_once(name, tmp_path):
    plugin, option = LAUNCHERS[name]
    if not installed(plugin):
        pytest.skip(f"{plugin} is not installed: pip install -e '.[launchers]'")
    process = start(tmp_path, "variants=[patchcore]", f"hydra/launcher={name}", "workers=2", option)
    said = process.communicate(timeout=500)[0]
    assert process.returncode == 0, said
    assert "0 runs were finished before, 3 ran now." in said
    assert "REPRODUCED: 2 of 2" in said
    assert attempts(tmp_path) == 3


def test_kill_9_in_the_middle_then_the_same_command_gives_the_same_table(tmp_path):
    whole = tmp_path / "whole"
    start(whole, *FOUR, "slots=2").communicate(timeout=500)
    broken = tmp_path / "broken"
    process = start(broken, *FOUR, "slots=2")
    deadline = time.monotonic() + 300
    while len(list(broken.glob("runs/*/*/*/*/metrics.json"))) < 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(broken.glob("runs/*/*/*/*/metrics.json")))
    said = start(broken, *FOUR, "slots=2").communicate(timeout=500)[0]
    assert f"4 runs: {done} finished before, {4 - done} to run." in said
    assert f"{done} runs were finished before, {4 - done} ran now." in said
    tables = [without_times(root / "tables" / "smoke.csv") for root in (whole, broken)]
    assert tables[0] == tables[1]


def test_two_grids_on_one_folder_share_the_real_runs(tmp_path):
    both = [start(tmp_path, *FOUR, "slots=1") for _ in range(2)]
    said = [process.communicate(timeout=500)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    starts = [line for text in said for line in text.splitlines() if line.startswith("start ")]
    assert len(starts) == 4
    assert attempts(tmp_path) == 4


def without_times(table: Path) -> list[list[str]]:
    header, *rows = [line.split(",") for line in table.read_text().splitlines()]
    column = header.index("seconds")
    return [[cell for i, cell in enumerate(row) if i != column] for row in rows]
