from __future__ import annotations

import math
import multiprocessing
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.errors import SavedModelError
from src.files import atomic
from src.identity import config_hash, run_folder
from src.saved_run import SavedRun


def config(**changes):
    base = {
        "seed": 0,
        "runs_dir": "runs",
        "force": False,
        "debug": False,
        "replay": None,
        "logger": {"names": ["csv"]},
        "hardware": {"num_workers": 0, "precision": "32-true"},
        "data": {"name": "mvtec", "category": "bottle", "root": "/a"},
        "model": {"name": "patchcore", "coreset": {"ratio": 0.01}},
    }
    cfg = OmegaConf.create(base)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg


@pytest.mark.parametrize(
    "change",
    [
        {"runs_dir": "elsewhere"},
        {"force": True},
        {"data__root": "/b"},
        {"hardware__num_workers": 4},
        {"logger__names": ["csv", "wandb"]},
    ],
)
def test_where_and_how_fast_does_not_change_the_identity(change):
    assert config_hash(config()) == config_hash(config(**change))


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"model__coreset__ratio": 0.1}, {"hardware__precision": "bf16-mixed"}],
)
def test_what_is_computed_changes_the_identity(change):
    assert config_hash(config()) != config_hash(config(**change))


def test_the_place_of_an_own_folder_names_its_run_but_is_no_part_of_its_identity():
    own = {"data__name": "folder", "data__category": None}
    here, there = (config(**own, data__root=root) for root in ("/a", "/photos/my bolts"))
    assert config_hash(here) == config_hash(there)
    assert run_folder(there, "d", "w").parts[3] == "my_bolts"
    assert run_folder(there, "d", "w").name == run_folder(here, "d", "w").name


def test_directory_names_model_data_category_seed_config_and_content():
    parts = run_folder(config(seed=3), "data", "weights").parts
    assert parts[:4] == ("runs", "patchcore", "mvtec", "bottle")
    seed, of_config, content = parts[4].split("-")
    assert (seed, of_config, len(content)) == ("seed3", config_hash(config(seed=3)), 10)
    others = {
        run_folder(config(seed=3), *facts).name for facts in (("data", "w"), ("d", "weights"))
    }
    assert parts[4] not in others and len(others) == 2


def test_metrics_are_written_last_and_survive_a_round_trip(tmp_path):
    run = SavedRun(tmp_path / "r")
    run.start(config(), {"command": []}, force=False)
    assert not run.finished
    run.finish({"test/image_auroc": 0.5, "test/aupro": math.nan})
    assert run.finished
    assert run.metrics()["test/image_auroc"] == 0.5
    assert math.isnan(run.metrics()["test/aupro"])
    assert run.config() == config()


def test_force_empties_the_folder(tmp_path):
    run = SavedRun(tmp_path / "r")
    run.start(config(), {}, force=False)
    run.finish({})
    run.start(config(), {}, force=True)
    assert not run.finished


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half():
        with atomic(target) as partial:
            partial.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_is_no_run_is_explained(tmp_path):
    with pytest.raises(SavedModelError, match="not the folder of a usable run"):
        SavedRun(tmp_path).metrics()
    (tmp_path / "metrics.json").write_text('{"test/image_auroc": 0.')
    with pytest.raises(SavedModelError, match=r"metrics\.json"):
        SavedRun(tmp_path).metrics()


def _append_slowly(folder: Path) -> None:
    run = SavedRun(folder)
    with run.lock():
        log = folder / "log"
        before = log.read_text() if log.exists() else ""
        time.sleep(0.3)
        log.write_text(before + "x")


def test_two_processes_work_one_after_the_other(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_slowly, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert (tmp_path / "log").read_text() == "xxx"


def hold(folder: Path, seconds: float, errors: str, order) -> None:
    """Hold a run's lock in a process whose file system has no flock."""
    import errno
    import fcntl

    def refuse(*_args):
        raise OSError(getattr(errno, errors), errors)

    fcntl.flock = refuse
    with SavedRun(folder).lock():
        order.put(("in", time.time()))
        time.sleep(seconds)
        order.put(("out", time.time()))


@pytest.mark.parametrize("errors", ["ENOSYS", "ENOLCK"])
def test_without_flock_a_file_is_the_lock_and_one_line_says_so(errors, tmp_path, capfd):
    spawn = multiprocessing.get_context("spawn")
    order = spawn.Queue()
    both = [spawn.Process(target=hold, args=(tmp_path, 0.5, errors, order)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    events = sorted((order.get(timeout=5) for _ in range(4)), key=lambda event: event[1])
    assert [what for what, _ in events] == ["in", "out", "in", "out"]  # never both inside
    said = capfd.readouterr().out.splitlines()
    assert sum("No flock on this file system" in line for line in said) == 2  # once a process
    assert not (tmp_path / ".lock-held").exists()
