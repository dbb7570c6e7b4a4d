"""Everything a run computes, it computes on the trainer's device, and says which that is."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy

from src import experiment
from src.detector import Detector
from src.models.patchcore.module import PatchCore

#: A device that is not the plain `cpu` to which Lightning moves a model after each fit and predict.
OTHER = torch.device("cpu", 0)


@pytest.fixture
def seen(monkeypatch) -> list[tuple[str, torch.device]]:
    """Notes where the model is when it is used outside the trainer, which works on OTHER."""
    notes: list[tuple[str, torch.device]] = []

    def watch(owner, name, model_of):
        original = getattr(owner, name)

        def watched(*arguments, **options):
            notes.append((name, model_of(*arguments).device))
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(PatchCore, "after_fit", lambda model, _loader: model)
    watch(experiment, "measure_latency", lambda replay, *_: replay.model)
    watch(Detector, "detect", lambda detector, _images: detector.model)
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", property(lambda _strategy: OTHER))
    return notes


def test_after_fit_latency_and_pictures_work_on_the_trainers_device(
    seen, tiny, app_config, drawn_data, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("DATA_DIR", str(drawn_data))
    run = experiment.run_experiment(app_config("run", *tiny, f"runs_dir={tmp_path}")).run
    assert {name for name, _ in seen} == {"after_fit", "measure_latency", "detect"}
    assert {device for _, device in seen} == {OTHER}
    assert run.read_json("manifest.json")["device"] == "CPU"
    assert "ms per image on CPU" in capsys.readouterr().out
    page = (run.directory / "report.html").read_text()
    assert "Time and memory on CPU" in page and "median time of one image on CPU" in page
