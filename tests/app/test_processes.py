"""Several processes give what one gives, end together and leave nothing behind."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from src import processes
from src.beginning import find_run
from src.errors import ConfigError, DataError
from src.experiment import run_experiment
from src.models.haloae.autoencoder import SharedBatchNorm
from src.saved_run import SavedRun

pytestmark = pytest.mark.xdist_group("processes")

COMMON = (
    "data=synthetic", "hardware=cpu", "hardware.num_workers=0", "backbone=efficientnet_lite0",
    "data.synthetic.size=64", "data.synthetic.train=16", "data.synthetic.test_normal=4",
    "data.synthetic.test_defective=5", "transform.crop=null", "data.batch_size=4",
    "evaluation.size=64", "evaluation.bootstrap=0", "evaluation.latency_images=1",
    "report.enabled=false", "report.max_images=1", "threshold=quantile",
)  # fmt: skip
PATCHCORE = (*COMMON, "experiment=demo", "model.target_dim=64", "transform.resize=64")
# 8 images to train on in batches of 3, shared as 2 + 1; the last batch has 2. 5 choose the epoch.
UFLOW = (
    *COMMON, "model=uflow", "model.flow_steps=1", "model.map_size=64", "transform.resize=64",
    "calibration.fraction=0.19", "validation.fraction=0.38",
    "trainer.max_epochs=2", "data.batch_size=3", "trainer.log_every_n_steps=1",
)  # fmt: skip
HALOAE = (
    *COMMON, "experiment=haloae_small", "model.classifier=linear", "model.head=16",
    "model.encoder=[[16,16,2,3],[16,16,2,3],[12,12,2,3]]",
    "model.decoder=[[12,12,2,3],[16,16,2,3],[128,null,2,1]]",
    "model.image_decoder.first_channels=16", "calibration.fraction=0.19", "trainer.max_epochs=1",
    "data.samples_per_epoch=9", "data.batch_size=3", "trainer.log_every_n_steps=1",
    "model.optimizer.lr=1e-5",
)  # fmt: skip
TWO = ("hardware.devices=2", "hardware.strategy=ddp")


@pytest.fixture
def compose(app_config, drawn_data, tmp_path, monkeypatch):
    """A config with its runs below `tmp_path`."""
    monkeypatch.setenv("DATA_DIR", str(drawn_data))
    return lambda *words: app_config("run", *words, f"runs_dir={tmp_path}")


def begin(*words: str, by: tuple[str, ...] = ("-m",)) -> subprocess.Popen[str]:
    """`python -m src.run words`, or the same under torchrun."""
    return subprocess.Popen(
        [sys.executable, *by, "src.run", *words], text=True, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == code, output
    return output


def expect_same(one: SavedRun, two: SavedRun, tolerance: float) -> None:
    """Every metric but times, every score, the threshold, and the logged losses."""
    before, after = one.metrics(), two.metrics()
    assert set(before) == set(after)
    for key, value in before.items():
        if not key.startswith(("speed/", "fit/")):
            assert after[key] == pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True), (
                key
            )
    scores = [read_numbers(run, "scores.csv", "score") for run in (one, two)]
    assert scores[1] == pytest.approx(scores[0], rel=tolerance)
    assert len(scores[0]) == 9
    paths = [read_column(run, "scores.csv", "path") for run in (one, two)]
    assert paths[0] == paths[1]
    image = [run.read_json("model/threshold.json")["image"] for run in (one, two)]
    assert image[1] == pytest.approx(image[0], rel=tolerance)
    assert two.read_json("manifest.json")["processes"] == 2


def read_column(run: SavedRun, name: str, column: str) -> list[str]:
    with (run.directory / name).open(newline="") as stream:
        return [row[column] for row in csv.DictReader(stream) if row[column]]


def read_numbers(run: SavedRun, name: str, column: str) -> list[float]:
    return [float(text) for text in read_column(run, name, column)]


def losses(run: SavedRun, column: str) -> list[float]:
    return read_numbers(run, "log/version_0/metrics.csv", column)


# --- the same numbers ---------------------------------------------------------------------------


def test_patchcore_of_two_processes_is_that_of_one(compose, tmp_path, monkeypatch, program, capfd):
    one = run_experiment(compose(*PATCHCORE)).run
    capfd.readouterr()
    code, said = program("run", *PATCHCORE, *TWO, f"runs_dir={tmp_path}")
    output = said.out + said.err
    assert code == 0, output
    two = find_run(compose(*PATCHCORE, *TWO))[0]
    expect_same(one, two, 1e-6)
    assert output.count("PatchCore plan") == output.count("Image AUROC") == 1
    assert "by 2 processes" in output
    assert not list(tmp_path.rglob("*.partial"))
    # Asked again, nothing is started.
    monkeypatch.setattr(processes, "start", None)
    assert run_experiment(compose(*PATCHCORE, *TWO)).metrics == two.metrics()
    assert "Already finished" in capfd.readouterr().out


def test_uflow_under_torchrun_is_that_of_one_process(compose, tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    command = begin(*UFLOW, *TWO, f"runs_dir={tmp_path}", by=torchrun)
    one = run_experiment(compose(*UFLOW)).run
    assert finish(command).count("Image AUROC") == 1
    two = find_run(compose(*UFLOW, *TWO))[0]
    expect_same(one, two, 1e-3)
    for column in ("train/nll", "val/nll"):
        assert losses(two, column) == pytest.approx(losses(one, column), rel=1e-4)
    assert len(losses(one, "train/nll")) == 6


def test_haloae_of_two_processes_is_that_of_one(compose, tmp_path):
    one = run_experiment(compose(*HALOAE)).run
    two = run_experiment(compose(*HALOAE, *TWO)).run
    before, after = losses(one, "train/loss"), losses(two, "train/loss")
    assert len(before) == 3
    # Adam turns the rounding of small gradients into steps of full length, hence short ones here.
    assert after[0] == pytest.approx(before[0], rel=1e-4)
    assert after == pytest.approx(before, rel=1e-2)
    expect_same(one, two, 3e-2)


# --- shares -------------------------------------------------------------------------------------


def test_shares_put_together_are_the_batch_and_an_error_of_one_ends_all(tmp_path):
    with pytest.raises(DataError, match="cannot be read") as caught:
        processes.start(_put_together, OmegaConf.create({"out": str(tmp_path)}), 2)
    assert [(tmp_path / name).read_text() for name in "01"] == ["right", "right"]
    assert "_put_together" in str(caught.value.__cause__)  # its stack trace, for debug=true
    assert not multiprocessing.active_children()


def _put_together(cfg) -> None:
    with processes.joined(2):
        for images in range(1, 6):
            rows = torch.arange(images * 2.0).view(images, 2)
            batch = {"of": torch.tensor(images)}
            mine = processes.own(rows)
            assert torch.equal(processes.whole(mine, batch), rows), images
            mean = processes.weight(batch) * mine.mean() / processes.count()
            torch.distributed.all_reduce(mean)
            assert mean == pytest.approx(float(rows.mean()))
        _normalise_together()
        assert processes.from_first(processes.rank()) == 0
        (Path(cfg.out) / str(processes.rank())).write_text("right")
        if processes.rank() == 1:
            raise DataError("An image cannot be read.", found="nothing", do="repair it")
        torch.distributed.barrier()


def _normalise_together() -> None:
    """Outputs, gradients and running statistics of shares of 4 and 3 images."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 4, 3, 5, generator=generator, dtype=torch.float64)
    ramp = torch.linspace(0, 1, x.numel(), dtype=torch.float64).view_as(x)
    plain, shared = torch.nn.BatchNorm2d(4).double(), SharedBatchNorm(4).double()
    given, mine = x.clone().requires_grad_(), processes.own(x).clone().requires_grad_()
    expected, out = plain(given), shared(mine)
    (expected * ramp).square().sum().backward()
    (out * processes.own(ramp)).square().sum().backward()
    assert given.grad is not None and mine.grad is not None
    torch.testing.assert_close(out, processes.own(expected))
    torch.testing.assert_close(mine.grad, processes.own(given.grad))
    torch.testing.assert_close(shared.running_mean, plain.running_mean)
    torch.testing.assert_close(shared.running_var, plain.running_var)


# --- trouble ------------------------------------------------------------------------------------


def test_crn_is_not_fitted_by_several_processes(compose):
    with pytest.raises(ConfigError, match="one device"):
        run_experiment(compose(*COMMON, "model=crn", "backbone=none", *TWO))


def test_a_mistake_is_told_once_and_ends_all_processes(tmp_path, drawn_data, monkeypatch, program):
    monkeypatch.setenv("DATA_DIR", str(drawn_data))
    words = (*UFLOW, *TWO, "data.batch_size=1", f"runs_dir={tmp_path}")
    code, said = program("run", *words)
    output = said.out + said.err
    assert code == 2, output
    assert output.count("A batch has fewer images") == 1
    assert "Traceback" not in output


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_no_process_is_left_when_the_one_that_started_them_is_ended(
    tmp_path, drawn_data, monkeypatch, number
):
    monkeypatch.setenv("DATA_DIR", str(drawn_data))
    process = begin(*UFLOW, *TWO, f"runs_dir={tmp_path}", "trainer.max_epochs=100000")
    try:
        wait_until(lambda: list(tmp_path.rglob("last.ckpt")))
        members = children_of(process.pid)
        assert len(members) >= 2
        process.send_signal(number)
        output = finish(process, code=130 if number == signal.SIGINT else -number)
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in members))
    finally:
        process.kill()
    if number == signal.SIGINT:
        assert output.count("Run the same command again") == 1
        assert "Traceback" not in output


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 200
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
