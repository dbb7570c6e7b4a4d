from __future__ import annotations

import csv
import re
from html.parser import HTMLParser

import hydra
import pytest
from omegaconf import OmegaConf

from src.commands import reproduce as command
from src.commands.reproduce import COLUMNS, reproduce
from src.composing import CONF
from src.errors import ConfigError, DataError, SavedModelError
from src.experiment import run_experiment
from src.reproduction.judging import (
    judge_variant,
    measurements,
    stored_intervals,
)
from src.reproduction.planning import Job, Published, Variant, make_plan
from src.saved_run import SavedRun, ScoreRow


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


def finish(job, value: float, spread: float = 0.001, aupro: float = -0.092) -> None:
    """Write what a run leaves behind; seeds 0, 1, 2 lie `spread` apart around `value`.

    AUPRO lies `aupro` from it, as in conf/paper/smoke.yaml.
    """
    folder = job.locate()
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "protocol: honest\ntransform: {resize: 256, crop: 224}\n"
        "evaluation: {size: 256, whole_image: false, masks: eroded}\n"
    )
    metrics = {"fit/seconds": 90.0}
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        here = value + spread * (job.seed - 1) + (aupro if name == "aupro" else 0.0)
        metrics[f"test/{name}"] = here
        metrics[f"test/{name}_ci_low"], metrics[f"test/{name}_ci_high"] = here - 0.2, here + 0.01
    run = SavedRun(folder)
    run.write_scores([ScoreRow(f"{y}.png", y, "x", y, bool(y)) for y in (0, 1)])
    run.finish(metrics)


def finish_all(cfg, value: float = 0.971, **options) -> None:
    for job in make_plan(cfg).jobs:
        finish(job, value, **options)


def test_numbers_within_tolerance_are_reproduced_and_exit_with_zero(settings, capsys):
    cfg = settings(variants=["crn"])
    finish_all(cfg)
    assert reproduce(cfg) == 0
    assert "DONE: 0 of 0" in capsys.readouterr().out  # the smoke file judges PatchCore only
    cfg = settings(variants=["patchcore"])
    finish_all(cfg)
    assert reproduce(cfg) == 0
    assert "REPRODUCED: 2 of 2 judged numbers" in capsys.readouterr().out


def test_a_number_that_leaves_its_tolerance_fails_and_is_named(settings, capsys):
    cfg = settings(variants=["patchcore"])
    finish_all(cfg, value=0.93)
    assert reproduce(cfg) == 1
    said = capsys.readouterr().out
    assert re.search(r"outside: smoke/patchcore gear test/pixel_auroc 0\.9300, paper 0\.9710", said)
    assert "OUTSIDE: 0 of 2" in said


def test_one_seed_reproduces_nothing_and_the_verdict_says_what_is_missing(settings, capsys):
    cfg = settings(variants=["patchcore"], seeds=[0])
    finish_all(cfg)
    assert reproduce(cfg) == 0
    said = capsys.readouterr().out
    assert "DONE: 0 of 0" in said
    assert "2 not judged: their spread needs more seeds" in said


def test_a_partial_result_makes_a_partial_table_that_says_so(settings, tmp_path, capsys):
    cfg = settings(variants=["patchcore"], tables_only=True)
    for job in make_plan(cfg).jobs[:2]:
        finish(job, 0.9705)
    assert reproduce(cfg) == 1  # a run is missing
    assert "PARTIAL" in capsys.readouterr().out
    page = (tmp_path / "tables" / "smoke.md").read_text()
    assert "PARTIAL: 0 of 0 judged numbers are within tolerance; 2 not judged" in page
    assert "1 runs missing." in page
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
    finish(plan.jobs[0], 0.99, aupro=0.0)
    reproduce(cfg)
    page = (tmp_path / "tables" / "patchcore.md").read_text()
    assert "no data for 14 categories (cable, capsule," in page
    assert "| bottle | 100.00 | 98.90 | -1.10 |" in page


def test_without_any_data_the_advice_is_to_set_data_dir(settings):
    with pytest.raises(DataError, match="DATA_DIR"):
        make_plan(settings(paper="crn"))
    fetched = make_plan(settings(paper="crn", variants=["honest"], seeds=[0], download=True))
    assert len(fetched.jobs) == 15


def test_a_dry_run_lists_commands_and_writes_nothing(settings, tmp_path, capsys):
    assert reproduce(settings(dry_run=True)) == 0
    said = capsys.readouterr().out
    assert said.count("to run   smoke/") == 12
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
    first, second, third = make_plan(cfg).jobs
    finish(first, 0.971)
    started = []

    def pretend(jobs, cfg, finished):
        started.extend(job.key for job in jobs)
        for job in jobs:
            finish(job, 0.971)

    monkeypatch.setattr(command, "run_jobs", pretend)
    assert reproduce(cfg) == 0
    assert started == [second.key, third.key]
    said = capsys.readouterr().out
    assert "3 runs: 1 finished before, 2 to run." in said


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
    finish_all(cfg, value=0.9512345, spread=0.0, aupro=0.0)
    reproduce(cfg)
    folder = tmp_path / "tables"
    rows = list(csv.DictReader((folder / "smoke.csv").open()))
    assert len(rows) == 6  # three metrics of two variants
    assert [float(row["ours"]) for row in rows] == pytest.approx([0.9512345] * 6)
    assert {row["seconds"] for row in rows} == {"90.0"}
    markdown = (folder / "smoke.md").read_text()
    said = "Ours: pixel metrics over the centre 224x224 after resizing to a shorter side of 256"
    assert said in markdown and "masks eroded as by the official PatchCore code" in markdown
    assert markdown.count("95.12") >= 6
    latex = (folder / "smoke.tex").read_text()
    assert latex.count(r"\toprule") == latex.count(r"\end{tabular}") == 6
    assert latex.count("95.12") == 6
    assert r"pixel\_auroc" in latex
    parser = Cells()
    parser.feed((folder / "smoke.html").read_text())
    assert [text.strip() for text in parser.rows[0]] == [column.name for column in COLUMNS]
    assert [row[2].strip() for row in parser.rows if row[0].strip() == "gear"] == ["95.12"] * 6


def test_an_interval_that_does_not_hold_its_metric_belongs_to_another_epoch_and_is_left_out():
    limits = {"test/aupro_ci_low": 0.90, "test/aupro_ci_high": 0.94}
    assert stored_intervals({"test/aupro": 0.91, **limits}) == {"test/aupro": (0.90, 0.94)}
    assert stored_intervals({"test/aupro": 0.97, **limits}) == {}


def test_miou_of_real_runs_is_judged_from_the_scores_they_wrote(
    tmp_path, drawn_data, monkeypatch, app_config, tiny, finished_run
):
    monkeypatch.setenv("DATA_DIR", str(drawn_data))
    words = (*tiny, "report.enabled=false", f"runs_dir={tmp_path}")
    runs = [SavedRun(finished_run)] + [
        run_experiment(app_config("run", *words, f"seed={seed}")).run for seed in (1, 2)
    ]
    jobs = [
        Job((), f"k{seed}", "t", "v", "gear", seed, lambda folder=run.directory: folder)
        for seed, run in enumerate(runs)
    ]
    found = measurements(jobs)
    images = runs[0].scores()
    stated = runs[0].metrics()["test/miou"]
    assert images.iou.mean() == pytest.approx(stated)
    for paper, said in ((stated, "within"), (stated + 0.5, "below")):
        published = Published("test/miou", "a table", {"gear": paper}, 0.0005, True, "")
        variant = Variant("v", "V", (), ("test/miou",), (published,), ("gear",))
        [row] = judge_variant("t", variant, found)
        assert row.verdict == said


def test_a_table_that_lacks_a_column_is_refused(finished_run, tmp_path):
    whole = (finished_run / "scores.csv").read_text()
    (tmp_path / "scores.csv").write_text(whole.replace(",iou", ",other", 1))
    with pytest.raises(SavedModelError, match=r"\['iou'\]"):
        SavedRun(tmp_path).scores()
    with pytest.raises(SavedModelError, match=r"scores\.csv: FileNotFound"):
        SavedRun(tmp_path / "nowhere").scores()
