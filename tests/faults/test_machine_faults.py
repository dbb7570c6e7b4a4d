"""Faults of disks, processes, clocks, networks and model files."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from src import mistakes, saved_run
from src.detector import Detector
from src.errors import SavedModelError, TrainingError
from src.experiment import run_experiment
from src.training import _StopOnNaN, last_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copied_run(finished_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    return copy


def refuses(run, *words):
    with pytest.raises(SavedModelError) as caught:
        Detector.load(run, "cpu")
    for word in words:
        assert word in str(caught.value)


# --- model files ---------------------------------------------------------------------------


def test_a_corrupt_memory_bank_is_noticed(copied_run):
    path = copied_run / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 0xFF
    path.write_bytes(content)
    refuses(copied_run, "damaged or was changed", "force=true")


def test_a_truncated_memory_bank_is_noticed(copied_run):
    path = copied_run / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    refuses(copied_run, "damaged or was changed")


def test_a_missing_model_file_is_named(copied_run):
    (copied_run / "model" / "model.safetensors").unlink()
    refuses(copied_run, "model.safetensors", "No such file")


def test_a_tampered_bank_with_a_matching_checksum_still_must_fit(copied_run):
    import hashlib

    path, card_path = (copied_run / "model" / name for name in ("model.safetensors", "model.json"))
    tensors = load_file(path)
    tensors["intruder"] = torch.zeros(1)
    save_file(tensors, path)
    card = json.loads(card_path.read_text())
    card["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    card_path.write_text(json.dumps(card))
    refuses(copied_run, "do not fit", "intruder")


def test_a_pickle_in_place_of_the_model_is_never_executed(copied_run, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    import hashlib

    content = pickle.dumps(Evil())
    (copied_run / "model" / "model.safetensors").write_bytes(content)
    card_path = copied_run / "model" / "model.json"
    card = json.loads(card_path.read_text())
    card_path.write_text(json.dumps(card | {"sha256": hashlib.sha256(content).hexdigest()}))
    refuses(copied_run, "not a readable safetensors file")
    assert not (tmp_path / "executed").exists()


def test_a_model_of_another_method_is_refused(copied_run):
    card_path = copied_run / "model" / "model.json"
    card = json.loads(card_path.read_text())
    card_path.write_text(json.dumps(card | {"method": "UFlow"}))
    refuses(copied_run, "another method")


def test_a_model_fitted_on_other_backbone_weights_is_refused(copied_run):
    card_path = copied_run / "model" / "model.json"
    card = json.loads(card_path.read_text())
    card_path.write_text(json.dumps(card | {"backbone": "tf_efficientnet_lite0[x]@0000"}))
    refuses(copied_run, "backbone is not the one")


def test_a_damaged_threshold_is_refused(copied_run):
    (copied_run / "model" / "threshold.json").write_text('{"image": 1.0')
    refuses(copied_run, "threshold.json")
    (copied_run / "model" / "threshold.json").write_text('{"image": 1.0}')
    refuses(copied_run, "threshold")


def test_a_damaged_config_is_refused(copied_run):
    (copied_run / "config.yaml").unlink()
    refuses(copied_run, "config.yaml")


def test_an_unfinished_run_is_no_detector(copied_run):
    (copied_run / "metrics.json").unlink()
    refuses(copied_run, "not a finished run")


# --- checkpoints and training ------------------------------------------------------------------


def test_a_corrupt_checkpoint_is_set_aside(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save({"state_dict": {"w": torch.zeros(100)}}, folder / "last.ckpt")
    assert last_checkpoint(tmp_path) == folder / "last.ckpt"
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:300])
    assert last_checkpoint(tmp_path) is None
    assert (folder / "last.broken").is_file()


def test_a_checkpoint_with_code_is_never_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": Evil()}, tmp_path / "checkpoints" / "last.ckpt")
    assert last_checkpoint(tmp_path) is None
    assert not (tmp_path / "executed").exists()


def test_a_loss_that_is_no_number_stops_training_with_advice():
    class Trainer:
        log_every_n_steps, global_step = 1, 7

    with pytest.raises(TrainingError, match="learning rate"):
        _StopOnNaN().on_train_batch_end(Trainer(), None, {"loss": torch.tensor(torch.nan)}, None, 0)
    _StopOnNaN().on_train_batch_end(Trainer(), None, {"loss": torch.tensor(1.0)}, None, 0)


# --- disk, memory, processes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "RUNS_DIR"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk is full"),
        (OSError(errno.EROFS, "Read-only file system"), "permissions"),
        (PermissionError(errno.EACCES, "Permission denied"), "permissions"),
        (MemoryError(), "data.batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory_budget_gb"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "data.batch_size"),
    ],
)
def test_trouble_of_the_machine_is_met_with_advice(error, hint, capsys):
    mistakes.explain(error, "run", [])
    said = capsys.readouterr().err
    assert hint in said
    assert "Traceback" not in said


def test_a_disk_that_fills_up_leaves_no_half_file(
    tmp_path, monkeypatch, finished_run, drawn_data, app_config, tiny
):
    monkeypatch.setenv("DATA_DIR", str(drawn_data))
    real = saved_run.SavedRun.write_rows

    def full(self, name, rows):
        if name == "scores.csv":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, name, rows)

    monkeypatch.setattr(saved_run.SavedRun, "write_rows", full)
    cfg = app_config("run", *tiny, f"runs_dir={tmp_path}")
    with pytest.raises(OSError, match="No space"):
        run_experiment(cfg)
    assert not list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob("metrics.json"))
    monkeypatch.setattr(saved_run.SavedRun, "write_rows", real)
    assert run_experiment(cfg).run.finished  # and nothing was lost: the fitted model is used


def test_a_file_in_place_of_the_runs_folder_is_explained(tmp_path, program):
    (tmp_path / "runs").write_text("I am a file")
    code, said = program("run", "experiment=demo", f"runs_dir={tmp_path / 'runs'}")
    assert code != 0
    assert "may not be read or written" in said.err
    assert "Traceback" not in said.err


def test_the_wall_clock_may_jump(tmp_path, monkeypatch):
    from src.deployment.inbox import watch

    shutil.copy(ROOT / "README.md", tmp_path / "a.png")
    jump = iter([1e9, -1e9] * 1000)
    monkeypatch.setattr(time, "time", lambda: next(jump))
    batches = list(watch(tmp_path, 0.01, 0.2))
    assert [path.name for batch in batches for path in batch] == ["a.png"]


def test_half_written_metrics_do_not_count_as_a_readable_run(copied_run):
    (copied_run / "metrics.json").write_text('{"test/image_auroc": 0.9')
    with pytest.raises(SavedModelError, match=r"metrics\.json"):
        saved_run.SavedRun(copied_run).metrics()


def test_losing_the_wandb_server_turns_logging_offline(tmp_path, monkeypatch, caplog):
    import wandb
    from omegaconf import OmegaConf

    from src import tracking

    class Unreachable:
        @property
        def experiment(self):
            raise wandb.errors.CommError("connection refused")

    built = []

    def build(*, mode, **_):
        built.append(mode)
        return Unreachable() if mode == "online" else type("Offline", (), {"experiment": None})()

    monkeypatch.setattr(tracking, "WandbLogger", build)
    wandb_options = dict.fromkeys(["project", "entity", "group"]) | {"mode": "online", "tags": []}
    cfg = OmegaConf.create({
        "logger": {"wandb": wandb_options}, "model": {"name": "m"}, "data": {"root": "d"},
        "seed": 0,
    })  # fmt: skip
    tracking._wandb(cfg, tmp_path)
    assert built == ["online", "offline"]
    assert "offline" in caplog.text
