from __future__ import annotations

import pytest

from src.errors import ConfigError
from src.reproduction import slots
from src.reproduction.display import Forecast, duration
from src.reproduction.ledger import Attempt, Ledger


def test_one_slot_per_visible_gpu_confines_each_process_to_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    found = slots.find_slots(None, cores_per_job=4, jobs_per_gpu=1)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in found] == ["2", "5"]
    shared = slots.find_slots(3, cores_per_job=4, jobs_per_gpu=2)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in shared] == ["2", "5", "2"]


def test_without_gpus_cores_are_divided_among_processes(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(slots, "usable_cores", lambda: 12)
    found = slots.find_slots(None, cores_per_job=4, jobs_per_gpu=1)
    assert [slot.environment["OMP_NUM_THREADS"] for slot in found] == ["4", "4", "4"]
    many = slots.find_slots(6, cores_per_job=4, jobs_per_gpu=1)
    assert [slot.environment["OMP_NUM_THREADS"] for slot in many] == ["2"] * 6


def test_zero_slots_are_refused_with_advice():
    with pytest.raises(ConfigError, match="at least 1"):
        slots.find_slots(0, cores_per_job=1, jobs_per_gpu=1)


def test_forecast_uses_the_median_of_jobs_of_the_same_kind(tmp_path, make_job):
    jobs = [make_job(f"j{i}") for i in range(4)]
    forecast = Forecast(jobs, Ledger(tmp_path / "ledger"))
    assert forecast.remaining(jobs, [], slots=2) is None
    for job, seconds in zip(jobs, (10.0, 12.0, 400.0), strict=False):
        forecast.learn(job, seconds)
    assert forecast.expected(jobs[3]) == 12.0
    assert forecast.remaining(jobs, [], slots=2) == 24.0
    assert forecast.remaining(jobs[:1], [], slots=2) == 12.0  # one job cannot be split


def test_ledger_counts_only_failures_of_this_call(tmp_path):
    ledger = Ledger(tmp_path)
    for ended, code in ((10.0, 1), (20.0, 1), (30.0, 0)):
        ledger.add("a", Attempt(ended=ended, seconds=ended, exit_code=code, host="h", log="l"))
    assert [attempt.ended for attempt in ledger.failures("a", since=15.0)] == [20.0]
    assert ledger.seconds("a") == 30.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.24, "7.2 s"), (200, "3:20 min"), (7500, "2 h 05 min"), (273600, "3 d 04 h")],
)
def test_durations_read_like_clocks(seconds, text):
    assert duration(seconds) == text
