from __future__ import annotations

import json

import pytest
from hydra import compose, initialize_config_dir

from src.commands.check import check_data_set
from src.composing import CONF
from src.errors import DataError


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("check", list(overrides))


def test_a_folder_is_checked_from_the_config_alone(tmp_path, image, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for i in range(30):
        image(tmp_path / "photos/good" / f"{i}.png", seed=i)
    (tmp_path / "photos/good/7.png").write_bytes(b"")
    cfg = composed("data=folder", f"data.root={tmp_path / 'photos'}", f"out={tmp_path / 'out'}")
    assert check_data_set(cfg) == 2
    assert "cannot be read" in capsys.readouterr().out
    facts = json.loads((tmp_path / "out/findings.json").read_text())
    assert facts["findings"][0]["files"] == [str(tmp_path / "photos/good/7.png")]
    assert (tmp_path / "out/check.png").is_file()
    (tmp_path / "photos/good/7.png").unlink()
    assert check_data_set(cfg) == 0


def test_a_category_of_another_size_than_published_is_a_warning(mvtec_root, tmp_path):
    (mvtec_root / "bolt").rename(mvtec_root / "bottle")
    cfg = composed("data=mvtec", f"data.root={mvtec_root}", f"out={tmp_path / 'out'}")
    assert check_data_set(cfg) == 1
    facts = json.loads((tmp_path / "out/findings.json").read_text())
    assert {"12, published 209", "9, published 83"} <= {f["found"] for f in facts["findings"]}


def test_looking_at_an_absent_data_set_never_downloads_it(tmp_path, monkeypatch):
    from src.data import download

    monkeypatch.setattr(download, "fetch", lambda *_, **__: pytest.fail("network"))
    for name in ("mvtec", "visa", "btad"):
        with pytest.raises(DataError, match="was not found"):
            check_data_set(composed(f"data={name}", f"data.root={tmp_path / name}"))
