"""File names that are not UTF-8 (zip files from Windows) or hold line breaks, in every command."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.files import shown

GERMAN = "M\udcfcller"  # the bytes of "Müller" in Windows' own code page
ODD = ("M\udcfcller.png", "new\nline.png", "\udc83j\udc83W.png", "100%, \"a\" [b].png",
       "9" * 251 + ".png")  # fmt: skip
SMALL = (
    "experiment=demo", "data=folder", "data.abnormal_dir=bad", "transform.resize=64",
    "transform.crop=null", "model.target_dim=64", "evaluation.size=64", "evaluation.bootstrap=50",
    "evaluation.latency_images=2", "report.max_images=9", "hardware.num_workers=0",
)  # fmt: skip


def table(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def odd_root(tmp_path_factory, finished_run, drawn_data):
    """A folder of good and bad parts whose every name is odd, its own too."""
    root = tmp_path_factory.mktemp("odd") / f"{GERMAN} & Sohn"
    good = sorted(drawn_data.rglob("train/good/*.png"))
    bad = [path for path in sorted(drawn_data.rglob("test/*/*.png")) if "good" not in str(path)]
    (root / "good").mkdir(parents=True)
    for i, path in enumerate(good):
        shutil.copy(path, root / "good" / f"{i}{GERMAN}.png")
    (root / "bad" / "Kra\udcfctzer").mkdir(parents=True)
    for name, path in zip(ODD, bad, strict=False):
        shutil.copy(path, root / "bad" / "Kra\udcfctzer" / name)
    return root


@pytest.fixture(scope="module")
def odd_run(odd_root, tmp_path_factory):
    """A finished run on that data."""
    from src.experiment import run_experiment
    from tests.conftest import compose_app

    runs = tmp_path_factory.mktemp("odd_runs")
    cfg = compose_app("run", *SMALL, f"data.root='{odd_root}'", f"runs_dir={runs}")
    return run_experiment(cfg).run.directory


def test_every_name_has_one_printable_form_that_leads_back():
    for name in (*ODD, "Prüfung/写真.png", "plain.png"):
        text = shown(Path(name))
        assert text.isprintable()
        assert text.encode("utf-8")
        back = text.encode("raw_unicode_escape").decode("unicode_escape")
        if "\udc83" in name or "\udcfc" in name or "\n" in name:
            assert os.fsencode(back) == os.fsencode(name)
        else:
            assert text == name


def test_a_run_on_odd_names_writes_files_that_all_can_read(odd_run, odd_root):
    for path in odd_run.rglob("*"):
        if path.suffix in (".csv", ".json", ".yaml", ".html", ".txt"):
            path.read_text(encoding="utf-8")  # strict: one wrong byte raises
    rows = table(odd_run / "scores.csv")
    bad = {row["path"] for row in rows if row["label"] == "1"}
    assert bad == {f"bad/Kra\\udcfctzer/{shown(name)}" for name in ODD}
    assert {row["defect"] for row in rows} == {"good", "Kra\\udcfctzer"}
    page = (odd_run / "report.html").read_text(encoding="utf-8")
    assert "M\\udcfcller.png" in page
    assert "new\\nline.png" in page


def test_a_run_on_odd_names_is_found_again(odd_run, odd_root):
    from src.experiment import run_experiment
    from src.saved_run import SavedRun

    config = SavedRun(odd_run).config()
    assert config.data.root == str(odd_root)
    config.data.bit_depth = "auto"  # as it was asked; the saved config says what came of it
    assert run_experiment(config).run.directory == odd_run


def test_prediction_of_odd_names_scores_all_of_them(odd_run, odd_root, app_config, tmp_path):
    from src.commands.predict import predict_images

    (odd_root / "bad" / f"cut{GERMAN}.png").write_bytes(b"no image")
    call = (f"run={odd_run}", f"images='{odd_root / 'bad'}'", f"out={tmp_path / 'out'}")
    cfg = app_config("predict", *call, "save.maps=npy")
    assert predict_images(cfg) == 3
    (odd_root / "bad" / f"cut{GERMAN}.png").unlink()
    names = [f"Kra\\udcfctzer/{shown(name)}" for name in ODD]
    first = (tmp_path / "out" / "scores.csv").read_text(encoding="utf-8")
    assert sorted(row["path"] for row in table(tmp_path / "out" / "scores.csv")) == sorted(names)
    assert table(tmp_path / "out" / "unreadable.csv")[0]["path"] == "cutM\\udcfcller.png"
    for kind, suffix in (("overlays", "png"), ("masks", "png"), ("maps", "npy")):
        written = sorted((tmp_path / "out" / kind).rglob(f"*.{suffix}"))
        assert len(written) == len(ODD)
        assert (tmp_path / "out" / kind / f"{names[0]}.{suffix}").is_file()
    assert predict_images(cfg) == 0  # continues: every name is recognised
    assert (tmp_path / "out" / "scores.csv").read_text(encoding="utf-8") == first


def test_other_commands_take_odd_names(odd_run, odd_root, app_config, tmp_path):
    from src.commands.check import check_data_set
    from src.commands.compare import compare_runs
    from src.commands.patch_match import explain_image
    from src.saved_run import SavedRun

    data = ("data=folder", "data.abnormal_dir=bad", f"data.root='{odd_root}'")
    (odd_root / "good" / f"cut{GERMAN}.png").write_bytes(b"no image")
    assert check_data_set(app_config("check", *data, f"out={tmp_path / 'check'}")) == 2
    (odd_root / "good" / f"cut{GERMAN}.png").unlink()
    found = json.loads((tmp_path / "check" / "findings.json").read_text(encoding="utf-8"))
    named = [Path(file).name for finding in found["findings"] for file in finding["files"]]
    assert f"cut{GERMAN}.png" in named
    assert compare_runs(app_config("compare", f"run_a={odd_run}", f"run_b={odd_run}"))
    assert len(SavedRun(odd_run).scores()) > len(ODD)
    for name in ODD[:2]:
        image = odd_root / "bad" / "Kra\udcfctzer" / name
        cfg = app_config("patch_match", f"run={odd_run}", f"out={tmp_path / 'match'}")
        cfg.image, cfg.animation.step = str(image), 20
        assert all(path.is_file() for path in explain_image(cfg))


def test_the_live_page_explains_with_odd_names(odd_run, drawn_images):
    from fastapi.testclient import TestClient

    from src.commands.serve import build_application
    from src.detector import Detector

    client = TestClient(build_application(Detector.load(odd_run, "cpu"), 4, 0.5))
    files = [("files", ("x.png", drawn_images[-1].read_bytes(), "image/png"))]
    answer = client.post("/api/score?pictures=true", files=files).json()[0]
    assert answer["explanation"]["source"].endswith("M\\udcfcller.png")
    assert "Sohn" in client.get("/api/detector").text


def test_the_console_shows_odd_names_also_through_a_pipe(odd_run, odd_root, tmp_path):
    command = (
        sys.executable, "-m", "src.predict", f"run={odd_run}", "images=.", f"out='{GERMAN}'",
        "save.overlays=false", "save.masks=false",
    )  # fmt: skip
    there = shutil.copytree(odd_root / "bad", tmp_path / GERMAN / "bad")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=there.parent, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"results in M\\udcfcller" in done.stdout
    assert len(table(there.parent / GERMAN / "scores.csv")) == len(ODD)
