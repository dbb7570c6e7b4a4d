from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import hydra
import numpy as np
import pytest
from omegaconf import OmegaConf

from src.command_line import CONF
from src.errors import ConfigError, DataError
from src.reproduction import working
from src.reproduction.collecting import borrowed_intervals, resampled_intervals, stored_intervals
from src.reproduction.ledger import Attempt
from src.reproduction.pages import COLUMNS
from src.reproduction.reproduction import reproduce
from src.reproduction.working import make_plan, workplace


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """The config of `src.reproduce` on an empty folder, without any process started."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    places = {"runs_dir": str(tmp_path / "runs"), "tables_dir": str(tmp_path / "tables")}

    def build(paper="smoke", **changes):
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            cfg = hydra.compose("reproduce", overrides=[f"paper={paper}"])
        for key, value in {**places, **changes}.items():
            OmegaConf.update(cfg, key, value)
        return cfg

    return build


def finish(job, cfg, value: float, width: float = 0.01) -> None:
    """Write what a run leaves behind."""
    job.folder.mkdir(parents=True)
    (job.folder / "config.yaml").write_text("protocol: honest\n")
    metrics = {}
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        metrics[f"test/{name}"] = value
        metrics[f"test/{name}_ci_low"], metrics[f"test/{name}_ci_high"] = (
            value - width,
            value + width,
        )
    (job.folder / "metrics.json").write_text(json.dumps(metrics))
    workplace(cfg).ledger.add(
        job.key, Attempt(ended=1.0, seconds=90.0, exit_code=0, host="h", log="l")
    )


def finish_all(cfg, value: float = 0.971, **options) -> None:
    for job in make_plan(cfg).jobs:
        finish(job, cfg, value, **options)


def test_numbers_within_tolerance_are_reproduced_and_exit_with_zero(settings, capsys):
    cfg = settings(variants=["crn"])
    finish_all(cfg)
    assert reproduce(cfg) == 0
    assert "DONE: 0 of 0" in capsys.readouterr().out  # the smoke file judges PatchCore only
    cfg = settings(variants=["patchcore"])
    finish_all(cfg, width=0.2)
    assert reproduce(cfg) == 0
    assert "REPRODUCED: 2 of 2 judged numbers" in capsys.readouterr().out


def test_a_number_that_leaves_its_tolerance_fails_and_is_named(settings, capsys):
    cfg = settings(variants=["patchcore"])
    finish_all(cfg, value=0.93)
    assert reproduce(cfg) == 1
    said = capsys.readouterr().out
    assert re.search(r"outside: smoke/patchcore gear test/pixel_auroc 0\.9300, paper 0\.9710", said)
    assert "OUTSIDE: 0 of 2" in said


def test_a_partial_result_makes_a_partial_table_that_says_so(settings, tmp_path, capsys):
    cfg = settings(variants=["patchcore"], tables_only=True)
    finish(make_plan(cfg).jobs[0], cfg, 0.97, width=0.2)
    assert reproduce(cfg) == 1  # a run is missing
    assert "PARTIAL" in capsys.readouterr().out
    page = (tmp_path / "tables" / "smoke.md").read_text()
    assert "PARTIAL: 2 of 2 judged numbers are within tolerance; 1 runs missing." in page
    assert "| gear | 97.10 | 97.00 | -0.10 |" in page


def test_categories_without_data_are_named_in_the_table(settings, tmp_path):
    root = tmp_path / "data" / "mvtec" / "bottle"
    for part in ("train/good", "test/good", "test/broken", "ground_truth/broken"):
        (root / part).mkdir(parents=True)
        suffix = "_mask.png" if "ground" in part else ".png"
        (root / part / f"000{suffix}").write_bytes(b"not opened by the planner")
    cfg = settings(paper="patchcore", variants=["wrn50_1"], seeds=[0])
    plan = make_plan(cfg)
    assert [job.category for job in plan.jobs] == ["bottle"]
    assert len(plan.absent) == 14
    finish(plan.jobs[0], cfg, 0.99)
    reproduce(cfg)
    page = (tmp_path / "tables" / "patchcore.md").read_text()
    assert "no data for 14 categories (cable, capsule," in page
    assert "| mean of 1/15 | 100.00 | 99.00 |" in page


def test_without_any_data_the_advice_is_to_set_data_dir(settings):
    with pytest.raises(DataError, match="DATA_DIR"):
        make_plan(settings(paper="crn"))
    fetched = make_plan(settings(paper="crn", variants=["honest"], seeds=[0], download=True))
    assert len(fetched.jobs) == 15


def test_a_dry_run_lists_commands_and_writes_nothing(settings, tmp_path, capsys):
    assert reproduce(settings(dry_run=True)) == 0
    said = capsys.readouterr().out
    assert said.count("to run   smoke/") == 8
    assert "python -m src.run hardware=cpu data=synthetic" in said
    assert not (tmp_path / "tables").exists()


def test_a_table_of_changed_recipes_says_so(settings, tmp_path):
    cfg = settings(variants=["crn"], overrides=["trainer.max_steps=7"])
    finish_all(cfg)
    reproduce(cfg)
    assert (
        "Not the paper's recipe: run with trainer.max"
        in (tmp_path / "tables" / "smoke.tex").read_text()
    )


def test_only_unfinished_jobs_are_started(settings, monkeypatch, capsys):
    cfg = settings(variants=["patchcore"])
    first, second = make_plan(cfg).jobs
    finish(first, cfg, 0.97, width=0.2)
    started = []

    def pretend(self):
        started.extend(job.key for job in self.waiting)
        for job in self.waiting:
            finish(job, cfg, 0.97, width=0.2)
        self.outcome.done = list(self.waiting)
        return self.outcome

    monkeypatch.setattr(working.Grid, "run", pretend)
    assert reproduce(cfg) == 0
    assert started == [second.key]
    said = capsys.readouterr().out
    assert "2 runs: 1 finished before, 1 to run." in said
    assert "1 runs were finished before, 1 ran now." in said


def test_two_variants_with_equal_configs_are_one_run(settings):
    cfg = settings(overrides=["model.num_units=2"], variants=["crn"])
    assert len(make_plan(cfg).jobs) == len(make_plan(settings(variants=["crn"])).jobs)
    keys = {job.key for job in make_plan(cfg).jobs}
    assert keys == {job.key for job in make_plan(settings(variants=["crn"])).jobs}


def test_a_misspelt_override_is_refused_before_anything_runs(settings):
    with pytest.raises(ConfigError, match="nun_units"):
        make_plan(settings(variants=["crn"], overrides=["model.nun_units=2"]))


class Cells(HTMLParser):
    """Tables of a page as lists of rows of texts."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th")
        if self.inside:
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        self.inside = False


def test_all_four_formats_hold_the_same_numbers(settings, tmp_path):
    cfg = settings(variants=["patchcore", "uflow"])
    finish_all(cfg, value=0.9512345)
    reproduce(cfg)
    folder = tmp_path / "tables"
    rows = list(csv.DictReader((folder / "smoke.csv").open()))
    assert len(rows) == 6  # three metrics of two variants
    assert {float(row["ours"]) for row in rows} == {0.9512345}
    assert {row["seconds"] for row in rows} == {"90.0"}
    markdown = (folder / "smoke.md").read_text()
    assert markdown.count("95.12") >= 6
    latex = (folder / "smoke.tex").read_text()
    assert latex.count(r"\toprule") == latex.count(r"\end{tabular}") == 6
    assert latex.count("95.12") == 6
    assert r"pixel\_auroc" in latex
    parser = Cells()
    parser.feed((folder / "smoke.html").read_text())
    assert [text.strip() for text in parser.rows[0]] == [column.name for column in COLUMNS]
    assert [row[2].strip() for row in parser.rows if row[0].strip() == "gear"] == ["95.12"] * 6


def test_intervals_of_f1_ap_and_miou_come_from_the_images_of_scores_csv(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.r_[np.zeros(20), np.ones(60)].astype(int)
    scores = labels + rng.normal(size=80)
    ious = rng.random(80)
    lines = ["path,label,score,iou", "x.png,-1,0.5,0.1"]  # an unknown label counts nowhere
    lines += [
        f"{i}.png,{a},{b},{c}" for i, (a, b, c) in enumerate(zip(labels, scores, ious, strict=True))
    ]
    (tmp_path / "scores.csv").write_text("\n".join(lines))
    found = resampled_intervals(tmp_path / "scores.csv", {"test/miou": float(ious.mean())})
    low, high = found["test/miou"]
    assert low < ious.mean() < high
    assert (high - low) == pytest.approx(2 * 1.96 * ious.std() / np.sqrt(80), rel=0.15)
    assert set(found) == {"test/image_ap", "test/image_f1_max", "test/miou"}


def test_scores_without_iou_give_no_interval_of_miou(tmp_path):
    (tmp_path / "scores.csv").write_text("path,label,score\na,0,0.1\nb,1,0.9\nc,1,0.8\n")
    found = resampled_intervals(tmp_path / "scores.csv", {"test/miou": 0.5})
    assert "test/miou" not in found
    assert resampled_intervals(Path("nowhere.csv"), {}) == {}


def test_a_metric_outside_its_interval_gets_one_of_the_same_width_around_itself():
    limits = {"test/aupro_ci_low": 0.90, "test/aupro_ci_high": 0.94}
    inside = stored_intervals({"test/aupro": 0.91, **limits})["test/aupro"]
    assert inside == (0.90, 0.94)
    outside = stored_intervals({"test/aupro": 0.97, **limits})["test/aupro"]
    assert outside == pytest.approx((0.95, 0.99))


def test_relatives_borrow_distances():
    metrics = {"test/aupro": 0.90, "test/aupro_defective_only": 0.95}
    [(name, (low, high))] = borrowed_intervals(metrics, {"test/aupro": (0.88, 0.91)}).items()
    assert name == "test/aupro_defective_only"
    assert (low, high) == pytest.approx((0.93, 0.96))
