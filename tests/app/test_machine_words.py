"""Streams, .env files and disks that are not as they should be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src import command_line, mistakes
from src.deployment.inbox import find_images
from src.detector import _device
from src.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def shell(line, cwd):
    """Run a bash line in which $RUN is src.run; the codes of its pipe are printed last."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RUN": f"{sys.executable} -m src.run"}
    return subprocess.run(
        ["bash", "-c", f"{line}; echo ${{PIPESTATUS[@]}} >&2"],
        capture_output=True, text=True, cwd=cwd, env=environment, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "code"),
    [("$RUN --cfg job | true", "141"), ("$RUN --cfg job >&-", "0"), ("$RUN seed=-1 2>&-", "")],
)
def test_output_that_nobody_reads_ends_quietly(line, code, tmp_path):
    said = shell(line, tmp_path).stderr
    assert "Traceback" not in said
    assert "Exception" not in said
    assert said.split()[:1] == ([code] if code else ["2"])


@pytest.mark.parametrize("content", ["A=b\n".encode("utf-16"), b"A=\xff\n", b"A=b\0c\n"])
def test_a_damaged_env_file_is_named(content, tmp_path):
    (tmp_path / ".env").write_bytes(content)
    with pytest.raises(ConfigError, match="UTF-8"):
        command_line._load_environment(tmp_path / ".env")


def test_an_env_file_of_windows_is_read(tmp_path, monkeypatch):
    monkeypatch.delenv("GOODPARTS_A", raising=False)
    (tmp_path / ".env").write_bytes("GOODPARTS_A=ü\r\n".encode("utf-8-sig"))
    command_line._load_environment(tmp_path / ".env")
    assert os.environ.pop("GOODPARTS_A") == "ü"


def test_a_full_disk_is_known_from_the_writer_of_torch(capsys):
    with pytest.raises(RuntimeError) as caught:
        torch.save({"x": torch.zeros(1_000_000)}, "/dev/full")
    assert mistakes.explain(caught.value, "run", []) == 1
    said = capsys.readouterr().err
    assert "disk is full" in said
    assert "Traceback" not in said


def test_a_full_disk_is_known_from_the_writer_of_safetensors(capsys):
    from safetensors import SafetensorError

    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    mistakes.explain(SafetensorError(text), "predict", [])
    assert "give out=FOLDER" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["gpu", "cuda", "cuda:3"])
def test_a_gpu_that_is_not_there_is_explained(name):
    with pytest.raises(ConfigError, match="device=cpu"):
        _device(name)


def test_brackets_mean_a_folder_that_exists_and_a_class_elsewhere(tmp_path):
    for name in ("line [7]/a.png", "line 7/b.png", "[7]x.png", "8/c1.png", "8/c2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(pattern):
        return [path.name for path in find_images(str(tmp_path / pattern))[1]]

    assert names("line [7]/*.png") == ["a.png"]
    assert names("8/c[12].png") == ["c1.png", "c2.png"]
    assert names("[7]*.png") == ["[7]x.png"]


def test_odd_names_go_from_run_to_predict(tmp_path, monkeypatch, program):
    """A detector, its config and its results, in folders whose names Hydra cannot read."""
    monkeypatch.chdir(tmp_path)
    root, good, bad = "Prüfung 写真 (1) [7]", "gut=ok, a&b", "#2 ${x} it's"
    colours = np.random.default_rng(0)
    for name, count in ((good, 8), (bad, 2)):
        (tmp_path / root / name).mkdir(parents=True)
        for number in range(count):
            pixels = colours.integers(90, 110, (48, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / root / name / f"{number}.png")

    def start(*words):
        code, said = program(*words)
        assert code == 0, said.err

    start(
        "run", "data=folder", f"data.root={root}", f"data.normal_dir={good}",
        f"data.abnormal_dir=[{bad}]", "data.category=0", "backbone=efficientnet_lite0",
        "transform.resize=48", "model.target_dim=32", "evaluation.size=48", "hardware=cpu",
        "evaluation.bootstrap=20", "report.enabled=no", "runs_dir=läufe (a=b)",
    )  # fmt: skip
    [run] = (tmp_path / "läufe (a=b)" / "patchcore" / "folder" / "0").iterdir()
    start("predict", f"run={run}", f"images={root}/{bad}/*.png", "out=aus, gabe")
    assert len((tmp_path / "aus, gabe" / "scores.csv").read_text().splitlines()) == 3
