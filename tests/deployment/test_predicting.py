from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from src.commands.predict import UNREADABLE, predict_images
from src.errors import ConfigError, DataError


def rows(folder):
    with (folder / "scores.csv").open() as stream:
        return {row["path"]: row for row in csv.DictReader(stream)}


@pytest.fixture
def predict(app_config, finished_run, tmp_path):
    def call(images, *overrides):
        out = tmp_path / "out"
        cfg = app_config(
            "predict", f"run={finished_run}", f"images={images}", f"out={out}", *overrides
        )
        return predict_images(cfg), out

    return call


def test_scores_equal_those_of_the_run(predict, finished_run, drawn_images):
    code, out = predict(drawn_images[0].parents[1])
    assert code == 0
    found = rows(out)
    with (finished_run / "scores.csv").open() as stream:
        for row in csv.DictReader(stream):
            mine = found["/".join(row["path"].split("/")[-2:])]
            assert float(mine["score"]) == pytest.approx(float(row["score"]), rel=1e-5)
            assert mine["decision"] == row["decision"]


def test_pictures_have_the_size_of_the_original(predict, tmp_path, drawn_images):
    photo = tmp_path / "wide.jpg"
    with Image.open(drawn_images[0]) as image:
        image.convert("RGB").resize((90, 90)).save(photo)
    _, out = predict(photo, "save.maps=npy")
    for kind in ("overlays", "masks"):
        with Image.open(out / kind / "wide.jpg.png") as picture:
            assert picture.size == (90, 90)
    raw = np.load(out / "maps" / "wide.jpg.npy")
    assert raw.shape == (90, 90)
    assert raw.dtype == np.float32


def test_sixteen_bit_maps_give_the_raw_values_back(predict, drawn_images, tmp_path):
    _, out = predict(drawn_images[0], "save.maps=npy")
    raw = np.load(out / "maps" / f"{drawn_images[0].name}.npy")
    shutil.rmtree(out)
    _, out = predict(drawn_images[0], "save.maps=png")
    import json

    scale = json.loads((out / "maps" / "scale.json").read_text())
    with Image.open(out / "maps" / f"{drawn_images[0].name}.png") as picture:
        grey = np.asarray(picture).astype(float)
    back = scale["low"] + grey / 65535 * (scale["high"] - scale["low"])
    expected = raw.clip(scale["low"], scale["high"])
    assert np.abs(back - expected).max() < 1e-3 * (scale["high"] - scale["low"])


def test_unreadable_files_are_listed_and_the_rest_is_scored(predict, tmp_path, drawn_images):
    folder = tmp_path / "in"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    shutil.copy(drawn_images[0], folder / "a" / "same.png")
    shutil.copy(drawn_images[1], folder / "b" / "same.png")
    (folder / "empty.png").touch()
    (folder / "cut.png").write_bytes(drawn_images[0].read_bytes()[:900])
    code, out = predict(folder)
    assert code == UNREADABLE == 3
    assert set(rows(out)) == {"a/same.png", "b/same.png"}
    listing = (out / "unreadable.csv").read_text()
    assert "empty.png" in listing
    assert "cut.png" in listing
    assert len(list((out / "overlays").rglob("*.png"))) == 2


def test_an_interrupted_call_continues_behind_the_last_whole_row(predict, drawn_images):
    folder = drawn_images[0].parents[1]
    _, out = predict(folder)
    whole = (out / "scores.csv").read_text()
    lines = whole.splitlines(keepends=True)
    (out / "scores.csv").unlink()
    (out / "scores.csv.partial").write_text("".join(lines[:4]) + lines[4][:7])
    _, out = predict(folder)
    assert (out / "scores.csv").read_text() == whole
    assert not (out / "scores.csv.partial").exists()


def test_a_glob_finds_what_the_shell_would(predict, drawn_images):
    _, out = predict(f"'{drawn_images[0].parents[1]}/*/000.png'")
    assert len(rows(out)) == sum(path.name == "000.png" for path in drawn_images)


def test_a_watched_folder_takes_files_as_they_come(predict, tmp_path, drawn_images):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    shutil.copy(drawn_images[0], inbox / "first.png")
    code, out = predict(inbox, "watch=true", "watch_seconds=0.05", "watch_idle_seconds=0.4")
    assert code == 0
    assert list(rows(out)) == ["first.png"]


def test_a_place_without_images_is_explained(predict, tmp_path):
    with pytest.raises(DataError, match="no images"):
        predict(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="watch=true needs a folder"):
        predict(tmp_path / "nowhere", "watch=true")


def test_a_batch_is_screened_by_p_values_among_the_calibration_scores(
    predict, finished_run, drawn_images, capsys
):
    _, out = predict(drawn_images[0].parents[1], "false_discoveries=0.4")
    with (out / "screening.csv").open() as stream:
        found = list(csv.DictReader(stream))
    with (finished_run / "calibration.csv").open() as stream:
        normal = np.array([float(row["score"]) for row in csv.DictReader(stream)])
    scores = np.array([float(row["score"]) for row in found])
    assert {row["path"] for row in found} == set(rows(out))
    assert (np.diff(scores) <= 0).all()
    p = np.array([(1 + (normal >= score).sum()) / (normal.size + 1) for score in scores])
    assert [float(row["p_value"]) for row in found] == pytest.approx(p)
    last = max((k for k in range(len(p)) if p[k] <= 0.4 * (k + 1) / len(p)), default=-1)
    told = [row["discovery"] == "1" for row in found]
    assert told == [k <= last for k in range(len(p))]
    assert any(told)
    said = " ".join(capsys.readouterr().out.split())
    assert f"{sum(told)} of {len(p)} images stand out at 40 % false discoveries" in said


def test_too_few_calibration_images_for_a_batch_are_said(predict, drawn_images, capsys):
    predict(drawn_images[0].parents[1], "false_discoveries=0.001")
    said = " ".join(capsys.readouterr().out.split())
    assert "0 of" in said
    assert "none can with" in said
