from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from src.reproduction.claims import ClaimBoard
from src.reproduction.display import LiveTable
from src.reproduction.engine import Grid, Workplace
from src.reproduction.slots import Slot

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("grid_process.py")


def start_grid(root: Path, jobs: int, sleep: float, slots: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(root), str(jobs), str(sleep), str(slots)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_every_job_runs_once_and_a_second_call_runs_none(make_job, work, diary):
    jobs = [make_job(f"job{i}") for i in range(3)]
    first = work(jobs)
    assert {job.key for job in first.done} == {job.key for job in jobs}
    second = work(jobs)
    assert len(second.before) == 3
    assert second.done == []
    assert Counter(diary("start")) == {"job0": 1, "job1": 1, "job2": 1}


def test_a_failing_job_is_retried_once_and_does_not_stop_the_rest(make_job, work, diary):
    jobs = [make_job("broken", fails=9), make_job("flaky", fails=1), make_job("good")]
    outcome = work(jobs, slots=1)
    assert Counter(diary("start")) == {"broken": 2, "flaky": 2, "good": 1}
    assert {job.key for job in outcome.done} == {"flaky", "good"}
    [(job, attempt)] = outcome.failed
    assert (job.key, attempt.exit_code) == ("broken", 1)
    assert "it broke here" in Path(attempt.log).read_text()


def test_a_mistake_of_the_user_is_not_retried(make_job, work, diary):
    outcome = work([make_job("misspelt", fails=9, code=2)])
    assert diary("start") == ["misspelt"]
    assert outcome.failed[0][1].exit_code == 2


def test_a_real_run_with_a_wrong_config_is_not_retried(tmp_path, make_job):
    job = make_job("wrong")
    place = Workplace(tmp_path / "grid", (sys.executable, "-m", "src.run"), 30.0, retries=1)
    with LiveTable([job], 1, place.ledger) as watcher:
        outcome = Grid([job], place, [Slot("s0", {})], watcher).run()
    [(failed, attempt)] = outcome.failed
    assert attempt.exit_code == 2  # no key named 'name'
    assert len(place.ledger.attempts(failed.key)) == 1


def test_a_failed_job_gets_a_new_chance_in_the_next_call(make_job, work):
    job = make_job("repaired", fails=2)
    assert len(work([job]).failed) == 1
    assert [done.key for done in work([job]).done] == ["repaired"]


def test_exit_code_zero_without_metrics_counts_as_failure(make_job, work, diary):
    outcome = work([make_job("empty", fails=9, code=0)])
    assert outcome.failed[0][1].exit_code == 1


def test_two_grids_on_one_folder_run_no_job_twice(tmp_path, diary):
    grids = [start_grid(tmp_path, jobs=12, sleep=0.05, slots=2) for _ in range(2)]
    said = [grid.communicate(timeout=60)[0].splitlines()[-1].split() for grid in grids]
    assert Counter(diary("start")) == {f"job{i}": 1 for i in range(12)}
    assert sum(int(words[3]) for words in said) == 12  # done here, over both
    assert all(int(words[1]) + int(words[3]) + int(words[5]) == 12 for words in said)


def test_after_kill_9_the_next_call_runs_only_what_is_unfinished(tmp_path, diary):
    grid = start_grid(tmp_path, jobs=6, sleep=0.4, slots=2)
    wait_for(lambda: len(diary("end")) >= 2)
    grid.send_signal(signal.SIGKILL)
    grid.wait()
    finished = set(diary("end"))
    before = Counter(diary("start"))
    last = start_grid(tmp_path, jobs=6, sleep=0.05, slots=2).communicate(timeout=60)[0]
    again = Counter(diary("start")) - before
    complete = {path.parent.name for path in tmp_path.glob("runs/*/metrics.json")}
    assert complete == {f"job{i}" for i in range(6)}
    assert not finished & set(again)
    assert set(again.values()) == {1}
    assert last.splitlines()[-1] == f"before {6 - len(again)} done {len(again)} elsewhere 0"


def test_killing_the_grid_ends_its_running_jobs(tmp_path, diary):
    grid = start_grid(tmp_path, jobs=1, sleep=60, slots=1)
    wait_for(lambda: diary("start"))
    pid = int((tmp_path / "diary").read_text().split()[2])
    grid.send_signal(signal.SIGKILL)
    grid.wait()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), seconds=15)


def test_ctrl_c_stops_jobs_and_frees_their_claims(tmp_path, diary):
    grid = start_grid(tmp_path, jobs=1, sleep=60, slots=1)
    wait_for(lambda: diary("start"))
    grid.send_signal(signal.SIGTERM)
    grid.communicate(timeout=20)
    assert not ClaimBoard(tmp_path / "grid" / "claims", lease_s=30.0).is_held("job0")
    assert not list((tmp_path / "grid" / "claims").glob("job*.json"))


def test_a_job_lost_to_another_owner_is_stopped(make_job, place, diary):
    quick = Workplace(place.folder, place.command, lease_s=0.8, retries=1)
    job = make_job("stolen", sleep=1.2)

    class Thief:
        stolen = False

        def started(self, job, slot):
            if not Thief.stolen:  # what a steal after an expired lease leaves behind
                Thief.stolen = True
                path = quick.folder / "claims" / "stolen.json"
                path.write_text('{"token": "other", "kernel": "another machine"}\n')

        def ended(self, job, attempt, *, will_retry):
            pass

        def tick(self, waiting, running, outcome):
            pass

    outcome = Grid([job], quick, [Slot("s0", {})], Thief()).run()
    assert diary("start") == ["stolen", "stolen"]  # the second after the thief expired
    assert diary("end") == ["stolen"]
    assert [done.key for done in outcome.done] == ["stolen"]
