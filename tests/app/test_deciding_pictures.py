"""The pictures that set a threshold: named, ranked, left out, through the real commands."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from src.commands.check import check_data_set
from src.commands.evaluate import evaluate_run
from src.detector import Detector
from src.errors import ConfigError
from src.evaluation.threshold import POINTS
from src.experiment import run_experiment
from src.reporting.run_table import print_result
from src.saved_run import SavedRun
from tests.conftest import TINY


@pytest.fixture
def console(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda: " ".join(capsys.readouterr().out.split())


@pytest.fixture
def run_without(app_config, drawn_data, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(drawn_data))

    def start(*names):
        words = (*TINY, f"runs_dir={tmp_path}", f"data.exclude=[{','.join(names)}]")
        return run_experiment(app_config("run", *words)).run

    return start


def loudest(folder):
    normal = SavedRun(folder).calibration()
    return normal.paths[int(normal.image.argmax())], float(normal.image.max())


def test_report_and_console_name_the_picture_and_the_thresholds(finished_run, console):
    path, score = loudest(finished_run)
    page = (finished_run / "report.html").read_text()
    print_result(SavedRun(finished_run))
    for text in (console(), page):
        assert f"Threshold {score:.4g} comes from {path}; without it" in text
    rows = SavedRun(finished_run).read_rows(POINTS)
    assert [float(row["alpha"]) for row in rows] == [0.01, 0.02, 0.05, 0.1, 1 / 9, 0.2]
    assert {(row["defective"], row["normal"]) for row in rows} == {("6", "4")}
    data = json.loads(re.search(r'id="page-data">(.*?)</script>', page, re.DOTALL)[1])
    assert len(data["normal"]) == 8 and data["normal"][-1] == pytest.approx(score)
    assert f'alt="{path}, calibration score {score:.4g}"' in page
    assert "without its fold" in page


def test_a_deciding_picture_is_shown_as_a_model_without_it_would_see_it(finished_run):
    detector = Detector.load(finished_run, "cpu")
    root = Path(SavedRun(finished_run).config().data.root)
    entries = [e for e in SavedRun(finished_run).record().entries if e.split == "train"]
    loudest_path, _ = loudest(finished_run)
    index = next(i for i, e in enumerate(entries) if e.path == loudest_path)
    batch = detector.transform(detector.read(root / loudest_path))[None]
    with torch.inference_mode():
        known, unseen = detector.model(batch), detector.model.unseen(batch, index)
    origin = detector.model.memory.bank.origin[:, 0]
    assert (origin == index).any()  # the loudest picture gives rows to the bank: it hides itself
    assert unseen.score > known.score
    assert (unseen.anomaly_map >= known.anomaly_map - 1e-5).all()


def test_a_held_out_deciding_picture_is_shown_as_it_was_scored(
    app_config, drawn_data, tmp_path, monkeypatch
):
    monkeypatch.setenv("DATA_DIR", str(drawn_data))
    shown = {}

    def report(_, data, **__):
        shown.update({path: (score, picture) for path, score, picture in data.deciders})

    monkeypatch.setattr("src.outputs.write_report", report)
    words = (*TINY, f"runs_dir={tmp_path}", "calibration.fraction=0.4", "report.enabled=true")
    run = run_experiment(app_config("run", *words)).run
    detector = Detector.load(run.directory, "cpu")
    assert shown
    for path, (score, picture) in shown.items():
        (found,) = detector.detect([detector.read(Path(run.config().data.root) / path)])
        assert found.score == pytest.approx(score, rel=1e-5)
        assert picture.anomaly_map == pytest.approx(found.anomaly_map, rel=1e-4, abs=1e-5)


def test_an_excluded_picture_leaves_bank_calibration_and_test(run_without, finished_run, caplog):
    path, _ = loudest(finished_run)
    with caplog.at_level("INFO"):
        run = run_without(path, "test/good/000.png")
    assert "train 7, test good 3, defective 6 (" in caplog.text
    assert f"excluded 2 ({path}, test/good/000.png)" in caplog.text
    assert len(run.calibration().paths) == 7 and path not in run.calibration().paths
    assert path not in {entry.path for entry in run.record().entries}
    assert len(run.scores()) == 9
    assert run.directory.name != finished_run.name


def test_names_that_are_not_one_picture_are_refused_with_the_nearest(run_without, finished_run):
    path, _ = loudest(finished_run)
    with pytest.raises(ConfigError, match=f"Did you mean.*{path}"):
        run_without(path.replace("train", "trian"))
    with pytest.raises(ConfigError, match=r"the end of \S*train/good/000\.png, "):
        run_without("000.png")


def test_check_ranks_the_pictures_of_a_run(finished_run, app_config, tmp_path, console):
    run = shutil.copytree(finished_run, tmp_path / "run")
    path, score = loudest(run)
    assert check_data_set(app_config("check", f"run={run}")) == 0
    assert f"{path} │ {score:.4g} │ 0.125" in console()
    with (run / "suspicion.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 8 and rows[0]["path"] == path
    assert (run / "suspicion.png").stat().st_size > 10_000
    (run / "calibration.csv").unlink()
    with pytest.raises(ConfigError, match="has no scores of good pictures"):
        check_data_set(app_config("check", f"run={run}"))


def test_an_evaluation_tells_the_same_picture(finished_run, app_config, tmp_path, drawn_data):
    out = tmp_path / "out"
    evaluate_run(app_config("evaluate", f"run={finished_run}", f"out={out}"))
    path, score = loudest(finished_run)
    assert f"Threshold {score:.4g} comes from {path}" in (out / "report.html").read_text()
