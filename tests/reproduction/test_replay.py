from __future__ import annotations

import json
import math
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf, open_dict

from src.commands.compare import compare_exactly
from src.commands.run import replay_run, replayed_config
from src.composing import CONF
from src.data.record import Entry
from src.errors import SavedModelError
from src.experiment import run_experiment
from src.files import write_rows
from src.reproduction.planning import load_papers
from src.saved_run import SavedRun, ScoreRow


def compose(*words: str):
    smoke = OmegaConf.create({"smoke": OmegaConf.load(CONF / "paper" / "smoke.yaml")})
    small = load_papers(smoke)[0].variants[0].overrides  # PatchCore
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose("run", overrides=[*small, *words])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A real run on generated images."""
    root = tmp_path_factory.mktemp("replay")
    cfg = compose("data.category=gear", f"runs_dir={root / 'runs'}", f"data.root={root / 'data'}")
    return run_experiment(cfg).run.directory


def replaying(folder: Path):
    cfg = compose(f"runs_dir={folder.parents[3]}")
    with open_dict(cfg):
        cfg.replay = str(folder)
    return cfg


def test_a_replay_on_the_cpu_is_identical_and_leaves_the_run_alone(finished, capsys):
    stamp = (finished / "metrics.json").stat().st_mtime_ns
    assert replay_run(replaying(finished)) == 0
    assert "identical" in capsys.readouterr().out
    assert (finished / "metrics.json").stat().st_mtime_ns == stamp


def test_a_changed_number_is_found_named_and_fails(finished, capsys):
    path = finished / "metrics.json"
    original = path.read_text()
    metrics = json.loads(original)
    metrics["test/aupro"] += 1e-9
    path.write_text(json.dumps(metrics))
    try:
        assert replay_run(replaying(finished)) == 1
    finally:
        path.write_text(original)
    said = capsys.readouterr().out
    assert "DIFFERENT: 1 of" in said
    assert "test/aupro" in said


def test_an_unfinished_run_cannot_be_replayed(tmp_path):
    with pytest.raises(SavedModelError, match="metrics"):
        replay_run(replaying(tmp_path / "runs" / "m" / "d" / "c" / "r"))


def fake_run(folder: Path, score: float, aupro: float | None, packages: dict) -> SavedRun:
    run = SavedRun(folder)
    run.write_json("metrics.json", {"test/aupro": aupro, "speed/latency_p50_ms": score})
    write_rows(folder / "data.csv", [], Entry._fields)
    run.write_json("manifest.json", {"started": folder.name, "packages": packages, "cores": 2})
    rows = [ScoreRow("a.png", 0, "good", 1.0, False), ScoreRow("b.png", 0, "good", score, False)]
    run.write_scores(rows)
    return run


def test_comparison_ignores_timing_and_names_what_may_have_caused_a_change(tmp_path):
    old = fake_run(tmp_path / "old", 2.0, None, {"torch": "2.6", "numpy": "2.0"})
    new = fake_run(tmp_path / "new", 2.5, None, {"torch": "2.7", "numpy": "2.0"})
    found = compare_exactly(old, new)
    assert list(found.metrics) == ["test/aupro"]
    assert not found.different  # NaN before and now
    assert found.score_change == pytest.approx(0.5)
    assert not found.identical
    assert found.facts == {"packages.torch": ("2.6", "2.7")}


def test_other_images_are_not_identical(tmp_path):
    old, new = (fake_run(tmp_path / name, 2.0, 0.5, {}) for name in ("old", "new"))
    text = (new.directory / "scores.csv").read_text().replace("b.png", "c.png")
    (new.directory / "scores.csv").write_text(text)
    assert math.isnan(compare_exactly(old, new).score_change)
    assert not compare_exactly(old, new).identical


def test_a_run_of_another_machine_finds_its_data_where_they_are_today(tmp_path):
    saved = OmegaConf.create({"data": {"name": "mvtec", "root": "/gone"}, "runs_dir": "elsewhere"})
    here = OmegaConf.create({"data": {"name": "mvtec", "root": str(tmp_path)}, "debug": False})
    here.runs_dir = str(tmp_path / "runs")
    config = replayed_config(saved, here)
    assert (config.data.root, config.force, config.replay) == (str(tmp_path), True, None)
    assert saved.data.root == "/gone"
