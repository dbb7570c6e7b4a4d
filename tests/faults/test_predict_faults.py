"""Faults around src.predict: results that would mix, pictures of ours, images that change."""

from __future__ import annotations

import _thread
import csv
import json
import os
import shutil
import threading
import time

import pytest

from src.commands.predict import UNREADABLE, predict_images
from src.composing import compose_checked
from src.deployment.ledger import open_ledger
from src.errors import ConfigError


def table(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def names(folder):
    return [row["path"] for row in table(folder / "scores.csv")]


@pytest.fixture
def photos(tmp_path, drawn_images):
    """A folder of three images: two good ones, one defective."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, source in zip("abc", (drawn_images[i] for i in (0, -1, -2)), strict=True):
        shutil.copy(source, folder / f"{name}.png")
    return folder


@pytest.fixture
def predict(app_config, finished_run, tmp_path):
    """Call src.predict into tmp_path/out; `run=` and `out=` may follow."""

    def call(images, *overrides):
        base = (f"run={finished_run}", f"out={tmp_path / 'out'}", f"images={images}")
        return predict_images(app_config("predict", *base, *overrides))

    return call


@pytest.fixture
def other_detector(finished_run, tmp_path):
    """The same model with another threshold: it decides otherwise, so it is another detector."""
    folder = shutil.copytree(finished_run, tmp_path / "other_run")
    path = folder / "model" / "threshold.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image": 1e-9}))
    return folder


@pytest.mark.parametrize("interrupted", [False, True])
def test_results_of_two_detectors_or_image_folders_never_mix(
    predict, photos, other_detector, tmp_path, interrupted
):
    predict(photos)
    out = tmp_path / "out"
    kept = out / "scores.csv"
    if interrupted:
        kept = kept.rename(out / "scores.csv.partial")
    before = kept.read_text()
    for other in (
        (photos, f"run={other_detector}"),
        (photos / "a.png",),
        (photos, "save.maps=npy"),
        (photos, "watch=true"),
    ):
        with pytest.raises(ConfigError, match="other results") as caught:
            predict(*other)
        assert "out=" in caught.value.do
        assert kept.read_text() == before
    assert predict(photos, f"run={other_detector}", f"out={tmp_path / 'fresh'}") == 0
    assert all(row["decision"] == "1" for row in table(tmp_path / "fresh" / "scores.csv"))


def test_a_moved_run_is_the_same_detector(predict, photos, finished_run, tmp_path):
    predict(photos)
    before = (tmp_path / "out" / "scores.csv").read_text()
    predict(photos, f"run={shutil.copytree(finished_run, tmp_path / 'moved')}")
    assert (tmp_path / "out" / "scores.csv").read_text() == before


def test_results_of_others_are_not_overwritten(predict, photos, finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    before = (run / "scores.csv").read_text()
    with pytest.raises(ConfigError, match="other results"):
        predict(photos, f"out={run}")
    assert (run / "scores.csv").read_text() == before


def test_pictures_of_ours_are_never_scored(
    predict, photos, finished_run, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, tmp_path / "runs" / "a")
    wanted = ["photos/a.png", "photos/b.png", "photos/c.png"]
    for out in ("predictions", "predictions", "more/second"):
        assert predict(".", f"out={out}", "save.maps=png") == 0
        assert names(tmp_path / out) == wanted
    assert "Skipping" in caplog.text
    assert f"{tmp_path / 'runs' / 'a'}:" in caplog.text
    assert predict("'**/*.png'", "out=globbed") == 0
    assert names(tmp_path / "globbed") == wanted
    assert predict("predictions/overlays", "out=explicit") == 0
    assert len(names(tmp_path / "explicit")) == 3


def test_results_do_not_go_among_the_images(predict, photos):
    for out in (photos, photos.parent):
        with pytest.raises(ConfigError, match="holds the folder of the images"):
            predict(photos, f"out={out}")
    assert sorted(path.name for path in photos.iterdir()) == ["a.png", "b.png", "c.png"]


def test_two_calls_into_one_folder_do_not_interleave(predict, photos, tmp_path):
    predict(photos)
    out = tmp_path / "out"
    card = json.loads((out / "predict.json").read_text())
    with open_ledger(out, card), pytest.raises(ConfigError, match="Another src"):
        predict(photos)
    assert predict(photos) == 0
    assert names(out) == ["a.png", "b.png", "c.png"]


def test_a_repeated_call_scores_what_is_new_or_changed(predict, photos, tmp_path, capsys):
    predict(photos)
    before = {row["path"]: row["score"] for row in table(tmp_path / "out" / "scores.csv")}
    shutil.copy(photos / "c.png", photos / "a.png")
    (photos / "b.png").unlink()
    shutil.copy(photos / "c.png", photos / "d.png")
    capsys.readouterr()
    assert predict(photos) == 0
    assert "1 images are already scored" in capsys.readouterr().out
    after = {row["path"]: row["score"] for row in table(tmp_path / "out" / "scores.csv")}
    assert list(after) == ["a.png", "c.png", "d.png"]
    assert after["a.png"] == after["c.png"] == after["d.png"] == before["c.png"] != before["a.png"]


def test_an_unreadable_file_is_tried_again_and_forgiven(predict, photos, tmp_path):
    whole = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(whole[:500])
    assert predict(photos) == UNREADABLE
    (photos / "b.png").write_bytes(whole)
    assert predict(photos) == 0
    assert names(tmp_path / "out") == ["a.png", "b.png", "c.png"]
    assert not (tmp_path / "out" / "unreadable.csv").exists()


def test_a_watched_file_that_is_overwritten_or_repaired_is_scored_again(predict, photos, tmp_path):
    out = tmp_path / "out"
    whole = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(whole[:500])
    steps = []

    def until(ready):
        end = time.monotonic() + 60
        while not ready() and time.monotonic() < end:
            time.sleep(0.02)
        steps.append(ready())

    def rows():
        partial = out / "scores.csv.partial"
        return table(partial) if partial.is_file() else []

    def operator():
        until(lambda: len(rows()) == 2 and (out / "unreadable.csv").is_file())
        (photos / "b.png").write_bytes(whole)
        shutil.copy(photos / "c.png", photos / "a.png")
        until(lambda: len(rows()) == 4 and not (out / "unreadable.csv").is_file())
        _thread.interrupt_main()  # Ctrl-C

    helper = threading.Thread(target=operator)
    helper.start()
    assert predict(photos, "watch=true", "watch_seconds=0.05") == 0
    helper.join()
    assert steps == [True, True]
    assert not (out / "scores.csv.partial").exists()
    found = table(out / "scores.csv")
    assert sorted(row["path"] for row in found) == ["a.png", "a.png", "b.png", "c.png"]
    first, second = [row for row in found if row["path"] == "a.png"]
    assert second["score"] == next(row["score"] for row in found if row["path"] == "c.png")
    assert second["score"] != first["score"]
    assert int(second["modified_ns"]) == (photos / "a.png").stat().st_mtime_ns


def test_a_place_that_cannot_be_written_is_named(predict, photos, tmp_path):
    (tmp_path / "file").touch()
    places = [tmp_path / "file", tmp_path / "file" / "out"]
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        places.append(tmp_path / "locked" / "out")
    for place in places:
        with pytest.raises(ConfigError, match="cannot be written") as caught:
            predict(photos, f"out={place}")
        assert "out=" in caught.value.do


def test_a_mistake_does_not_claim_the_folder(predict, photos, tmp_path):
    with pytest.raises(ConfigError, match=r"save\.maps"):
        compose_checked("predict", ["run=x", "images=y", "save.maps=jpg"])
    assert predict(photos, "save.maps=png") == 0
    assert names(tmp_path / "out") == ["a.png", "b.png", "c.png"]
