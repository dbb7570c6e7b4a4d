from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.cluster import Cluster
from src.errors import ConfigError
from src.reproduction.running import Engine, Task, duration

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("many_jobs.py")
spec = importlib.util.spec_from_file_location("many_jobs", PROGRAM)
many_jobs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(many_jobs)
job, run = many_jobs.job, many_jobs.run


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *map(str, words)],
        cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_jobs_run_once_failures_are_retried_and_mistakes_are_not(
    tmp_path, ray_address, diary, capsys
):
    jobs = [
        job(tmp_path, "good"),
        job(tmp_path, "flaky", fails=1),
        job(tmp_path, "broken", fails=9),
        job(tmp_path, "misspelt", fails=9, code=2),
        job(tmp_path, "empty", fails=9, code=0),  # exit code 0 without metrics is a failure
    ]
    run(tmp_path, jobs, ray_address)
    assert Counter(diary("start")) == {
        "good": 1,
        "flaky": 2,
        "broken": 2,
        "misspelt": 1,
        "empty": 2,
    }
    assert [job.key for job in jobs if job.folder] == ["good", "flaky"]
    said = capsys.readouterr().out
    log = tmp_path / ".jobs" / "broken.log"
    assert "FAILED fake/only broken seed 0  exit code 1 after" in said
    assert f"{log}\n       it broke here" in said
    assert log.read_text().count("it broke here") == 2
    assert [line.split()[0] for line in said.splitlines() if "good" in line] == ["start", "done"]

    before = diary("start")
    run(tmp_path, [job for job in jobs if job.folder], ray_address)
    assert diary("start") == before  # finished jobs are not even started


def test_a_job_gets_its_share_and_the_folders_of_the_caller(tmp_path, ray_address, monkeypatch):
    monkeypatch.setenv("WEIGHTS_DIR", "/somewhere")
    shared = [job(tmp_path, f"half{i}", sleep=1) for i in range(2)]
    run(tmp_path, shared, ray_address, gpus=0.5)
    for one in shared:
        environment = json.loads((one.folder / "environment.json").read_text())
        assert environment["CUDA_VISIBLE_DEVICES"] == "0"  # both on the one GPU
        assert environment["OMP_NUM_THREADS"] == "1"
        assert environment["WEIGHTS_DIR"] == "/somewhere"


def test_places_are_what_cores_and_gpus_allow(ray_address):
    def places(**share: object) -> int:
        with Cluster(OmegaConf.create({"address": ray_address, **share})) as cluster:
            return cluster.places()

    assert places(cpus=1, gpus=0) == 2
    assert places(cpus=64, gpus=0) == 1  # a job that wants more cores gets the whole node
    assert places(cpus=1, gpus=None) == 1  # one GPU, one job
    assert places(cpus=0.25, gpus=0.25) == 4
    with pytest.raises(ConfigError, match="No node has room"):
        places(cpus=1, gpus=2)


def test_a_killed_worker_takes_its_job_along_and_ray_starts_it_again(tmp_path, ray_address, diary):
    process = start(tmp_path, 1, 3, ray_address)
    wait_for(lambda: diary("start"))
    [first], [worker] = diary("start", 2), diary("start", 3)
    os.kill(int(worker), signal.SIGKILL)
    said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert not Path(f"/proc/{first}").exists()
    assert diary("start") == ["job0", "job0"]
    assert diary("end") == ["job0"]


def test_a_cancelled_task_ends_at_once(tmp_path, ray_address, diary):
    cfg = OmegaConf.create({"address": ray_address, "cpus": 1, "gpus": 0})
    long = job(tmp_path, "long", sleep=600)
    words = (sys.executable, many_jobs.FAKE, *long.overrides)
    task = Task("long", "long", words, tmp_path / "log", long.is_finished)
    with Engine(cfg, 0, 1) as engine:
        engine.submit(task)
        while not diary("start"):
            assert not list(engine.ended(0.1))
        engine.cancel(task, "is too long")
        assert not engine.running
        [pid] = diary("start", 2)
        wait_for(lambda: not Path(f"/proc/{pid}").exists())


def test_without_ray_the_advice_is_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[many\]'"):
        run(tmp_path, [job(tmp_path, "any")], None)


def test_times_are_short():
    seconds = [7.24, 200, 7500, 280_000]
    assert [duration(s) for s in seconds] == ["7.2 s", "3:20 min", "2 h 05 min", "3 d 05 h"]


@pytest.mark.slow  # Ray of its own: seconds to start, minutes on a busy machine
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_after_a_kill_the_same_call_runs_only_what_is_unfinished(by, tmp_path, diary):
    first = start(tmp_path, 5, 2)
    wait_for(lambda: len(diary("end")) >= 2)
    first.send_signal(by)
    first.communicate(timeout=60)
    running = [pid for pid in diary("start", 2) if pid not in diary("end", 2)]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in running))
    finished, before = set(diary("end")), Counter(diary("start"))
    second = start(tmp_path, 5, 0)
    said = second.communicate(timeout=120)
    assert second.returncode == 0, said
    again = Counter(diary("start")) - before
    assert sorted(diary("end")) == [f"job{i}" for i in range(5)]
    assert not finished & set(again)


@pytest.mark.slow
def test_a_node_killed_in_the_middle_costs_nothing_but_time(tmp_path, diary):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        second = cluster.add_node(num_cpus=2)
        process = start(tmp_path, 8, 6, cluster.address)
        wait_for(lambda: len(diary("end")) >= 3)
        raylets = {raylet_of(worker) for worker in diary("start", 3)} - {"gone"}
        assert len(raylets) == 2  # jobs on both nodes
        cluster.remove_node(second, allow_graceful=False)
        said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert sorted(diary("end")) == sorted(f"job{i}" for i in range(8))  # every one, none twice
        assert set(diary("start", 2)) > set(diary("end", 2))  # some were in the middle
    finally:
        cluster.shutdown()


def raylet_of(worker: str) -> str:
    """The process id of the node's raylet, parent of a worker; the worker may be gone already."""
    try:
        return Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]
    except FileNotFoundError:
        return "gone"
