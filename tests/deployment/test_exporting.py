from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from src.commands import export as exporting
from src.commands.export import Outputs, ParityError, check_parity, export_run
from src.composing import compose, compose_checked
from src.detector import Detector
from src.errors import ConfigError
from src.options import plain

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


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
    maps = np.zeros((2, 3, 3))
    truth = Outputs(np.array([0.0, 1.0]), np.array([False, True]), maps, maps > 0)
    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)

    def original(batch):
        return truth if len(batch) == 2 else Outputs(*(part[: len(batch)] for part in truth))

    def flipped(batch):
        found = original(batch)
        return found._replace(alarm=~found.alarm)

    with pytest.raises(ParityError, match="2 of 2 decisions flip"):
        check_parity(images, original, flipped, threshold=0.5, tolerance=1, repeats=1)


#: Overrides of a U-Flow that learns for two seconds.
TINY_UFLOW = (
    "data=synthetic", "model=uflow", "backbone=efficientnet_lite0", "threshold=nfa",
    "data.synthetic.size=64", "data.synthetic.train=8", "data.synthetic.test_normal=4",
    "data.synthetic.test_defective=6", "transform.resize=64", "transform.crop=null",
    "model.map_size=64", "model.flow_steps=2", "trainer.max_epochs=4", "calibration.fraction=0.2",
    "evaluation.size=64", "evaluation.bootstrap=0", "evaluation.latency_images=1",
    "report.enabled=false", "hardware=cpu", "hardware.num_workers=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def nfa_run(tmp_path_factory, drawn_data):
    """A U-Flow that decides by its number of false alarms: half of the test images alarm."""
    from src.experiment import run_experiment

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(drawn_data))
        runs = tmp_path_factory.mktemp("uflow")
        cfg = plain(compose("run", [*TINY_UFLOW, f"runs_dir={runs}"]))
        run = run_experiment(cfg).run
    detector = Detector.load(run.directory, "cpu")
    found = detector.detect([*images_of(run).values()])
    highest = np.sort([one.extra["-log10 NFA"].max() for one in found])
    card = json.loads((run.directory / "model" / "model.json").read_text())
    card["facts"]["log_nfa_offset"] += float(highest[len(found) // 2 - 1 :][:2].mean())
    (run.directory / "model" / "model.json").write_text(json.dumps(card))
    return run


def images_of(run):
    """Its test images (h, w, 3) by name."""
    root = Path(run.config().data.root)
    names = sorted(run.scores()["path"])
    return {name: np.asarray(Image.open(root / name).convert("RGB")) for name in names}


@pytest.fixture(scope="module")
def nfa_mask():
    """The function of `examples/nfa_mask.py`."""
    spec = importlib.util.spec_from_file_location("nfa_mask", EXAMPLES / "nfa_mask.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.nfa_mask


@pytest.mark.parametrize(
    ("form", "script"),
    [
        ("onnx", "detect.py"),
        pytest.param("openvino", "detect_openvino.py", marks=pytest.mark.slow),
    ],
)
def test_a_file_and_the_example_decide_by_the_number_of_false_alarms(
    export, tmp_path, nfa_run, nfa_mask, form, script
):
    images = images_of(nfa_run)
    expected = Detector.load(nfa_run.directory, "cpu").detect([*images.values()])
    assert 0 < sum(one.alarm for one in expected) < len(expected)
    assert any(0 < one.mask.mean() < 1 for one in expected)
    parity = export(f"run={nfa_run.directory}", f"format={form}", "parity.images=10")
    assert parity.flips == 0 and parity.mask_error == 0
    for number, image in enumerate(images.values()):
        np.save(tmp_path / f"{number}.npy", image)
    suffix = {"onnx": "onnx", "openvino": "xml"}[form]
    printed = example(tmp_path, script, f"detector.{suffix}", len(images))
    for line, one in zip(printed, expected, strict=True):
        assert line.startswith("ALARM" if one.alarm else "good")
        assert f"{one.mask.mean():.2%} of the pixels" in line
    if form == "onnx":
        session = onnxruntime.InferenceSession(tmp_path / "detector.onnx")
        facts = session.get_modelmeta().custom_metadata_map["goodparts.nfa"]
        names = [output.name for output in session.get_outputs()]
        for image, one in zip(images.values(), expected, strict=True):
            found = dict(zip(names, session.run(None, {"image": image[None]}), strict=True))
            assert np.array_equal(nfa_mask(facts, found), one.mask)


@pytest.mark.parametrize("tests", ["per_size", "total"])
@pytest.mark.parametrize("seed", range(3))
def test_the_region_tree_of_the_example_equals_ours(nfa_mask, tests, seed):
    from src.models.uflow.nfa import evidence, log_nfa
    from src.models.uflow.options import NfaOptions

    generator = torch.Generator().manual_seed(seed)
    latents = [torch.randn(1, c, n, n + 4, generator=generator) for c, n in ((90, 16), (160, 8))]
    for z in latents:
        z[:, :, 2:5, 1:4] *= 2.2
        z[:, :, 3, 2:6] *= 1.5
    if seed == 0:  # many equal values
        latents = [(2 * z).round() / 2 for z in latents]
    how = NfaOptions("tree", "bound", "clamp", "asymptotic", tests, False)
    expected = (log_nfa(latents, (64, 72), how)[0] + 1.5 < 0).numpy()
    maps = {f"evidence_{i}": e.numpy() for i, e in enumerate(evidence(latents, how), start=1)}
    facts = json.dumps(asdict(how) | {"channels": [90, 160], "offset": 1.5})
    found = nfa_mask(facts, maps | {"anomaly_map": np.zeros((1, 64, 72))})
    assert 0 < expected.mean() < 1 and np.array_equal(found, expected)


def test_the_example_names_the_options_that_it_does_not_know(nfa_mask):
    with pytest.raises(SystemExit, match="tail=bound"):
        nfa_mask(json.dumps({"method": "tree", "tail": "exact", "lower_tail": "clamp"}), {})


def test_a_mask_that_differs_is_refused():
    rows = np.zeros(2), np.zeros(2, bool), np.zeros((2, 3, 3))
    whole, none = (
        Outputs(*rows, np.ones((2, 3, 3), bool)),
        Outputs(*rows, np.zeros((2, 3, 3), bool)),
    )

    def side(outputs):
        return lambda images: Outputs(*(part[: len(images)] for part in outputs))

    images = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    with pytest.raises(ParityError, match=r"100.00% of the mask pixels differ"):
        check_parity(images, side(whole), side(none), threshold=0.5, tolerance=0.5, repeats=1)


def test_the_served_page_decides_by_the_number_of_false_alarms(nfa_run):
    from fastapi.testclient import TestClient

    from src.commands.serve import build_application

    detector = Detector.load(nfa_run.directory, "cpu")
    root, names = Path(nfa_run.config().data.root), sorted(nfa_run.scores()["path"])
    files = [("files", (name, (root / name).read_bytes(), "image/png")) for name in names]
    answers = TestClient(build_application(detector, 16, 1)).post("/api/score", files=files).json()
    expected = detector.detect([*images_of(nfa_run).values()])
    assert [answer["alarm"] for answer in answers] == [one.alarm for one in expected]


def example(folder, script, file, count):
    """Lines that a script of examples/ prints of 0.npy, 1.npy, ... in `folder`."""
    command = [sys.executable, EXAMPLES / script, file, *(f"{i}.npy" for i in range(count))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("form", "script", "file", "package"),
    [
        ("onnx", "detect.py", "detector.onnx", "onnxruntime"),
        ("openvino", "detect_openvino.py", "detector.xml", "openvino"),
    ],
)
def test_the_stand_alone_examples_need_only_numpy_and_the_runtime(
    export, tmp_path, drawn_images, form, script, file, package
):
    export(f"format={form}")
    for number, path in enumerate(drawn_images[:2]):
        np.save(tmp_path / f"{number}.npy", np.asarray(Image.open(path).convert("RGB")))
    text = (EXAMPLES / script).read_text()
    imports = [line for line in text.splitlines() if line.startswith("import")]
    assert imports == ["import sys", "import numpy as np", f"import {package}"]
    assert sum("score" in line for line in example(tmp_path, script, file, 2)) == 2
