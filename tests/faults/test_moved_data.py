"""Export and patch_match of a run whose photos were moved: both take `data.root`."""

from __future__ import annotations

import shutil

import pytest

from src.commands.export import export_run
from src.commands.patch_match import explain_image
from src.errors import DataError
from src.experiment import run_experiment

SMALL = (
    "experiment=demo", "data=folder", "data.abnormal_dir=bad", "transform.resize=64",
    "transform.crop=null", "model.target_dim=64", "evaluation.size=64", "evaluation.bootstrap=50",
    "evaluation.latency_images=2", "report.enabled=false", "hardware.num_workers=0",
)  # fmt: skip


@pytest.fixture
def moved(tmp_path, drawn_images, drawn_data, app_config):
    """(run, old folder, new folder) of a run on photos that were moved after it."""
    old, new = tmp_path / "photos", tmp_path / "archive" / "line 3"
    for kind, found in (
        ("good", sorted(drawn_data.rglob("train/good/*.png"))),
        ("bad", [path for path in drawn_images if path.parent.name != "good"]),
    ):
        (old / kind).mkdir(parents=True)
        for i, path in enumerate(found):
            shutil.copy(path, old / kind / f"{i}.png")
    cfg = app_config("run", *SMALL, f"data.root={old}", f"runs_dir={tmp_path / 'runs'}")
    run = run_experiment(cfg).run.directory
    new.parent.mkdir()
    old.rename(new)
    return run, old, new


def test_export_and_patch_match_find_photos_that_were_moved(moved, app_config, tmp_path):
    run, old, new = moved
    export = (f"run={run}", f"out={tmp_path / 'detector'}", "parity.images=4", "parity.repeats=1")
    match = (f"run={run}", f"out={tmp_path / 'match'}", "image=bad/0.png", "animation.step=40")
    for call, words, name in (
        (export_run, export, "export"),
        (explain_image, match, "patch_match"),
    ):
        with pytest.raises(DataError) as caught:
            call(app_config(name, *words))
        assert str(old) in str(caught.value)
        assert "data.root" in caught.value.do
        assert call(app_config(name, *words, f"data.root='{new}'"))
    assert (tmp_path / "detector.onnx").is_file()
    assert (tmp_path / "match" / "match.png").is_file()
