"""src.evaluate: other thresholds for finished runs of every method, on any device."""

from __future__ import annotations

import csv
import json
import math
import shutil
import struct
import zipfile

import pytest
import torch

from src.commands.evaluate import evaluate_run
from src.detector import Detector
from src.errors import ConfigError
from src.experiment import run_experiment
from src.training import last_checkpoint
from tests.conftest import TINY, compose_app

WITHOUT_MODEL = [word for word in TINY if not word.startswith(("model.", "experiment="))]
HALOAE = (
    "transform.resize=[112,112]", "model.stages=[1,2,3]", "model.head=32",
    "model.encoder=[[32,32,2,3],[24,24,2,3],[16,16,2,3]]",
    "model.decoder=[[16,16,2,3],[24,24,2,3],[32,32,2,3],[176,null,2,1]]",
    "model.output_activation=none", "model.image_decoder.first_channels=16",
    "model.image_decoder.layers=2", "trainer.max_epochs=1", "data.samples_per_epoch=8",
    "model.optimizer.lr=1e-3",
)  # fmt: skip
METHODS = {
    "uflow": ("backbone=efficientnet_lite0", "transform.resize=[64,64]", "trainer.max_epochs=1"),
    "haloae": ("backbone=efficientnet_lite0", *HALOAE),
    "crn": (
        "model.num_units=2", "model.max_depth=5", "model.base_channels=8",
        "transform.resize=[32,32]", "data.batch_size=4", "trainer.max_steps=4",
        "model.check_every=2", "model.must_reconstruct=false",
    ),
}  # fmt: skip


def overrides(method, runs):
    return [
        "data=synthetic", f"model={method}", "hardware=cpu", *WITHOUT_MODEL, *METHODS[method],
        "calibration.fraction=0.5", f"runs_dir={runs}", "report.enabled=false",
    ]  # fmt: skip


@pytest.fixture(scope="module", params=list(METHODS))
def trained_run(request, tmp_path_factory, drawn_data, finished_run):
    """A tiny finished run of a trained method; four of eight normals calibrate."""
    runs = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(drawn_data))
        return run_experiment(compose_app("run", *overrides(request.param, runs))).run.directory


def table(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def check_decisions(run, out, order):
    """They follow the order statistic of calibration.csv that a rule promises."""
    normal = sorted(float(row["score"]) for row in table(run / "calibration.csv"))
    limit = normal[order(len(normal)) - 1]
    rows = table(out / "scores.csv")
    expected = [int(float(row["score"]) > limit) for row in rows]
    assert [int(row["decision"]) for row in rows] == expected


def conformal_half(n):
    return math.ceil((n + 1) * 0.5)


def test_every_threshold_can_be_chosen_after_the_run(finished_run, tmp_path):
    run, out = shutil.copytree(finished_run, tmp_path / "run"), tmp_path / "out"
    path = run / "calibration.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[-3:]]) + "\n")  # three scores: the only truth
    rules = {
        ("threshold=quantile", "threshold.q=0.5"): lambda n: math.ceil(0.5 * n),
        ("threshold=conformal", "threshold.alpha=0.5"): conformal_half,
        ("threshold=conformal", "threshold.alpha=0.01"): lambda n: n,
    }
    for words, order in rules.items():
        evaluate_run(compose_app(
            "evaluate", f"run={run}", f"out={out}", "report.enabled=false", *words
        ))  # fmt: skip
        check_decisions(run, out, order)


def test_a_run_without_normal_scores_says_what_is_possible(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "calibration.csv").unlink()  # as of U-Flow with threshold=nfa and no hold-out
    cfg = compose_app("evaluate", f"run={run}", f"out={tmp_path / 'out'}", "threshold=conformal")
    with pytest.raises(ConfigError, match="kept no scores of normal images") as caught:
        evaluate_run(cfg)
    assert "calibration.fraction" in caught.value.do
    assert not (tmp_path / "out" / "metrics.json").exists()
    cfg = compose_app("evaluate", f"run={run}", f"out={tmp_path / 'out'}", "threshold=f1_oracle")
    assert evaluate_run(cfg)["test/image_f1_max"] >= 0


# --- trained on a GPU, used on the CPU ---------------------------------------------------------


def as_saved_on_a_gpu(path):
    """Rewrite a file of torch.save so that all its tensors claim to lie on cuda:0."""
    cpu, cuda = (b"X" + struct.pack("<I", len(name)) + name for name in (b"cpu", b"cuda:0"))
    with zipfile.ZipFile(path) as archive:
        content = {item.filename: archive.read(item) for item in archive.infolist()}
    changed = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            if name.endswith("data.pkl"):
                changed = data.count(cpu)
                data = data.replace(cpu, cuda)
            archive.writestr(name, data)
    assert changed


def test_a_run_made_on_gpus_is_evaluated_on_a_cpu_by_another_threshold(trained_run, tmp_path):
    run = shutil.copytree(trained_run, tmp_path / trained_run.name)
    words = (f"run={run}", f"out={tmp_path / 'out'}", "report.enabled=false", "device=cpu")
    cfg = ("evaluate", *words, "checkpoints=all", "threshold=conformal", "threshold.alpha=0.5")
    before = evaluate_run(compose_app(*cfg))
    check_decisions(run, tmp_path / "out", conformal_half)
    rows = table(tmp_path / "out" / "checkpoints.csv")
    found = list((run / "checkpoints").glob("*.ckpt"))
    assert found
    for path in found:
        as_saved_on_a_gpu(path)
        if not torch.cuda.is_available():
            with pytest.raises(RuntimeError, match="CUDA"):
                torch.load(path, weights_only=True)
    config = (run / "config.yaml").read_text().replace("accelerator: cpu", "accelerator: gpu")
    config = config.replace("devices: 1", "devices: 4").replace("strategy: auto", "strategy: ddp")
    (run / "config.yaml").write_text(config)
    after = evaluate_run(compose_app(*cfg))
    timeless = [key for key in before if key.startswith("test/")]
    assert [before[key] for key in timeless] == pytest.approx(
        [after[key] for key in timeless], nan_ok=True
    )
    again = table(tmp_path / "out" / "checkpoints.csv")
    for old, new in zip(rows, again, strict=True):
        assert {k: v for k, v in old.items() if k.startswith("test/")} == {
            k: v for k, v in new.items() if k.startswith("test/")
        }
    assert last_checkpoint(run) in found
    assert not list((run / "checkpoints").glob("*.broken"))


def test_an_interrupted_training_on_a_gpu_is_continued_on_a_cpu(
    trained_run, drawn_data, tmp_path, monkeypatch
):
    monkeypatch.setenv("DATA_DIR", str(drawn_data))
    runs = shutil.copytree(trained_run.parents[3], tmp_path / "runs")
    run = runs / trained_run.relative_to(trained_run.parents[3])
    method = trained_run.parents[2].name
    for path in (run / "checkpoints").glob("*.ckpt"):
        as_saved_on_a_gpu(path)
    old = json.loads((run / "metrics.json").read_text())
    for name in ("metrics.json", "fit.json"):
        (run / name).unlink()
    result = run_experiment(compose_app("run", *overrides(method, runs)))
    assert result.run.directory == run
    assert "starting without it" not in (run / "log.txt").read_text()
    assert result.metrics["test/image_auroc"] == pytest.approx(old["test/image_auroc"])


def test_saved_models_name_no_device(trained_run):
    with (trained_run / "model" / "model.safetensors").open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    assert all(set(facts) == {"dtype", "shape", "data_offsets"} for facts in header.values())
    detector = Detector.load(trained_run, "cpu")
    assert {value.device.type for value in detector.model.parameters()} == {"cpu"}


def test_weight_files_saved_on_a_gpu_are_read_on_a_cpu(tmp_path):
    from src.backbones.weights import read_tensors
    from src.models.uflow.published import read_published

    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {"module.a": torch.arange(3.0)}}, path)
    as_saved_on_a_gpu(path)
    assert read_tensors(path)["a"].tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(Exception, match="CUDA") as direct:
        torch.load(path, weights_only=True)
    assert isinstance(direct.value, RuntimeError)
    with pytest.raises(Exception, match=r"^(?!.*CUDA)"):
        read_published(path)  # not a U-Flow checkpoint, but it could be read
