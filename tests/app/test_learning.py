"""Confirmed good parts join a finished run, through the command itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from src.commands.learn import learn_images
from src.errors import DataError
from src.saved_run import SavedRun
from tests.conftest import compose_app


def fitted_images(run) -> list[Path]:
    saved = SavedRun(run)
    return sorted(Path(saved.config().data.root) / one.path for one in saved.record().fitted)


@pytest.fixture
def confirmed(tmp_path, drawn_data, finished_run, monkeypatch):
    """A folder with two good parts that the finished run has not seen, drawn with another seed."""
    monkeypatch.setenv("DATA_DIR", str(drawn_data))
    from PIL import Image

    folder = tmp_path / "confirmed"
    folder.mkdir()
    for i, path in enumerate(fitted_images(finished_run)[:2]):
        with Image.open(path) as image:
            image.rotate(90 * (i + 1)).save(folder / f"{i}.png")
    return folder


def learn(run, folder, out, *words):
    return learn_images(
        compose_app("learn", f"run={run}", f"images={folder}", f"out={out}", *words)
    ).run


def test_confirmed_parts_make_a_new_run_that_says_where_it_comes_from(
    finished_run, confirmed, drawn_images, tmp_path, capsys
):
    known = fitted_images(finished_run)[0]
    shutil.copy(known, confirmed / "copy.png")
    before, files = SavedRun(finished_run), sorted(finished_run.rglob("*"))
    after = learn(finished_run, confirmed, tmp_path / "runs")
    printed = capsys.readouterr().out
    assert "2 confirmed pictures learnt: threshold" in printed
    assert "false alarms" in printed
    assert "defects found" in printed
    assert sorted(finished_run.rglob("*")) == files
    assert after.directory != finished_run
    assert after.finished
    learnt = {entry.path for entry in after.record().fitted} - {
        entry.path for entry in before.record().fitted
    }
    assert learnt == {str(confirmed / "0.png"), str(confirmed / "1.png")}
    assert len(after.calibration().image) == len(before.calibration().image) + 2
    assert [one["pictures"] for one in after.read_json("manifest.json")["learnt"]] == [2]

    more = tmp_path / "more"
    more.mkdir()
    from PIL import Image, ImageOps

    with Image.open(confirmed / "0.png") as image:
        ImageOps.mirror(image).save(more / "0.png")
    alarm = next(path for path in drawn_images if path.parent.name == "good")
    shutil.copy(alarm, more / "alarm.png")
    third = learn(after.directory, more, tmp_path / "runs")
    assert len(third.record().fitted) == len(before.record().fitted) + 4
    history = third.read_json("manifest.json")["learnt"]
    assert [one["from"] for one in history] == [finished_run.name, after.directory.name]
    # a confirmed false alarm leaves the test
    tested = set(third.scores()["path"])
    assert not any(path.endswith(f"/good/{alarm.name}") for path in tested)
    assert len(tested) == len(before.scores()) - 1


def test_what_cannot_be_learnt_is_refused_before_anything_is_written(
    finished_run, confirmed, tmp_path, drawn_images
):
    runs = tmp_path / "runs"
    (confirmed / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\nthe rest is missing")
    with pytest.raises(DataError, match=r"torn\.png"):
        learn(finished_run, confirmed, runs)
    (confirmed / "torn.png").unlink()
    bad = next(path for path in drawn_images if path.parent.name != "good")
    shutil.copy(bad, confirmed / "bad.png")
    with pytest.raises(DataError, match="defective ones"):
        learn(finished_run, confirmed, runs)
    with pytest.raises(DataError, match="There are no images"):
        learn(finished_run, tmp_path / "nowhere", runs)
    known = fitted_images(finished_run)[0].parent
    with pytest.raises(DataError, match="nothing to learn"):
        learn(finished_run, known, runs)
    assert not runs.exists()
