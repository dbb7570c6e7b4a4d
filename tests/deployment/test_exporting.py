from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from src.commands import export as exporting
from src.commands.export import Outputs, ParityError, check_parity, export_run
from src.composing import compose_checked
from src.detector import Detector
from src.errors import ConfigError


@pytest.fixture
def export(app_config, finished_run, tmp_path, monkeypatch, drawn_data):
    monkeypatch.setenv("DATA_DIR", str(drawn_data))

    def call(*overrides):
        return export_run(
            app_config(
                "export",
                f"run={finished_run}",
                f"out={tmp_path / 'detector'}",
                "parity.images=6",
                "parity.repeats=2",
                *overrides,
            )
        )

    return call


def run_example(folder, images, script, file, package):
    """The stand-alone example needs NumPy and the runtime only."""
    for number, path in enumerate(images):
        np.save(folder / f"{number}.npy", np.asarray(Image.open(path).convert("RGB")))
    example = Path(__file__).resolve().parents[2] / "examples" / script
    imports = [line for line in example.read_text().splitlines() if line.startswith("import")]
    assert imports == ["import sys", "import numpy as np", f"import {package}"]
    done = subprocess.run(
        [sys.executable, example, file, *(f"{number}.npy" for number in range(len(images)))],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("score") == len(images)


def test_the_onnx_file_alone_decides_like_the_detector(
    export, tmp_path, finished_run, drawn_images
):
    parity = export()
    assert parity.flips == 0
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx")
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in drawn_images])
    detector = Detector.load(finished_run, "cpu")
    expected = detector.detect(list(images))
    for size in (1, 3, len(images)):
        score, alarm, anomaly_map, mask = session.run(None, {"image": images[:size]})
        for row in range(size):
            assert score[row] == pytest.approx(expected[row].score, rel=1e-4)
            assert bool(alarm[row]) == expected[row].alarm
            assert np.allclose(anomaly_map[row], expected[row].anomaly_map, rtol=1e-3)
            assert (mask[row] != expected[row].mask).mean() < 1e-3
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["goodparts.threshold"]) == detector.threshold.to_json()
    run_example(tmp_path, drawn_images[:2], "detect.py", "detector.onnx", "onnxruntime")


def test_the_torch_file_passes_the_same_gate_also_at_another_camera_size(export, tmp_path):
    words = ("format=torch", "camera_size=[100,100]", "parity.tolerance=0.05")
    assert export(*words).flips == 0
    assert (tmp_path / "detector.pt2").stat().st_size > 0


@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-5), ("float16", 1e-2)])
def test_the_openvino_file_passes_the_same_gate(export, tmp_path, precision, error, drawn_images):
    parity = export("format=openvino", f"precision={precision}")
    assert parity.flips == 0 and parity.score_error <= error * parity.spread
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"detector.xml", "detector.bin", "detector.parity.json"}
    if precision == "float32":
        words = ("detect_openvino.py", "detector.xml", "openvino")
        run_example(tmp_path, drawn_images[:2], *words)


def test_a_precision_that_the_format_lacks_is_explained(export, tmp_path):
    with pytest.raises(ConfigError, match="format=onnx has no such precision"):
        export("precision=float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["camera_size=[4,100]", "format=onxx"])
def test_a_camera_too_small_and_an_unknown_format_are_explained(word):
    with pytest.raises(ConfigError, match=f"{word.partition('=')[0]} must be"):
        compose_checked("export", ["run=x", word])


def test_nothing_is_written_when_the_exported_model_differs(export, tmp_path, monkeypatch):
    original = exporting.FixedInput.forward

    def brighter(self, image):
        return original(self, image) + 0.5

    monkeypatch.setattr(exporting.FixedInput, "forward", brighter)
    with pytest.raises(ParityError, match="nothing was written"):
        export("format=torch")
    assert list(tmp_path.iterdir()) == []


def test_one_flipped_label_is_enough_to_refuse():
    truth = Outputs(np.array([0.0, 1.0]), np.array([False, True]), np.zeros((2, 3, 3)))
    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)

    def original(batch):
        return truth if len(batch) == 2 else Outputs(*(part[: len(batch)] for part in truth))

    def flipped(batch):
        found = original(batch)
        return found._replace(alarm=~found.alarm)

    with pytest.raises(ParityError, match="2 of 2 decisions flip"):
        check_parity(images, original, flipped, threshold=0.5, tolerance=1, repeats=1)


def test_nfa_runs_are_explained(app_config, finished_run, tmp_path):
    copy = tmp_path / "nfa_run"
    shutil.copytree(finished_run, copy)
    threshold = json.loads((copy / "model" / "threshold.json").read_text())
    (copy / "model" / "threshold.json").write_text(json.dumps(threshold | {"rule": "nfa"}))
    with pytest.raises(ConfigError, match="threshold=conformal"):
        export_run(app_config("export", f"run={copy}"))
