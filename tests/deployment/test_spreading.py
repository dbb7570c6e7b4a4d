from __future__ import annotations

import csv
import shutil

import pytest

from src.commands.predict import predict_images
from src.errors import ConfigError


@pytest.fixture
def photos(drawn_images, tmp_path):
    """Ten images in folders, one of them with an odd name, and two files that are none."""
    root = tmp_path / "photos"
    for i, image in enumerate(drawn_images):
        place = root / f"line{i % 3}" / f"ü {i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
    (root / "line0" / "broken.png").write_bytes(b"no image")
    (root / "line2" / "empty.png").touch()
    return root


def table(folder, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_ray_writes_row_by_row_what_one_process_writes(
    app_config, finished_run, photos, tmp_path, ray_address
):
    words = (f"run={finished_run}", f"images={photos}", "batch_size=2", "device=cpu")
    many = ("engine=ray", "workers=2", f"engine.address={ray_address}", "engine.cpus=1",
            "engine.gpus=0")  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    assert predict_images(app_config("predict", *words, f"out={one}")) == 3
    assert predict_images(app_config("predict", *words, *many, f"out={two}")) == 3
    rows, spread = table(one, "scores.csv"), table(two, "scores.csv")
    assert len(rows) == 10
    for here, there in zip(rows, spread, strict=True):
        assert here.keys() == there.keys()
        for column, value in here.items():
            if column in ("score", "map_max"):
                assert float(there[column]) == pytest.approx(float(value), rel=1e-5)
            else:
                assert there[column] == value
    assert table(two, "unreadable.csv") == table(one, "unreadable.csv")
    pictures = [sorted(p.relative_to(f) for p in f.rglob("*.png")) for f in (one, two)]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 20  # an overlay and a mask each


def test_a_watched_folder_is_no_work_for_ray(app_config, finished_run, tmp_path):
    words = (f"run={finished_run}", f"images={tmp_path}", "watch=true", "engine=ray")
    with pytest.raises(ConfigError, match="on this machine"):
        predict_images(app_config("predict", *words, f"out={tmp_path / 'out'}"))
