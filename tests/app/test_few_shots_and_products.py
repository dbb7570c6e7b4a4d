"""Few good images, and one detector for several products, on drawn parts."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from src.commands import few_shot
from src.composing import compose_checked
from src.data.datamodule import AnomalyDataModule
from src.detector import Detector
from src.errors import ConfigError
from src.evaluation.threshold import Conformal
from src.experiment import run_experiment
from src.identity import config_hash
from src.result import Threshold
from src.saved_run import SavedRun
from tests.conftest import TINY, compose_app

BOTH = (*TINY, "data.category=[gear,plate]", "threshold.alpha=0.3")


@pytest.fixture(autouse=True)
def environment(monkeypatch, drawn_data):
    monkeypatch.setenv("DATA_DIR", str(drawn_data))


@pytest.fixture(scope="module")
def both(tmp_path_factory, drawn_data) -> SavedRun:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(drawn_data))
        runs = tmp_path_factory.mktemp("runs")
        return run_experiment(compose_app("run", *BOTH, f"runs_dir={runs}")).run


# --- shots


def data_of(*words):
    data = AnomalyDataModule(compose_app("run", *TINY, *words))
    data.prepare_data()
    data.setup()
    return data


def names(samples):
    return [sample.image_path.name for sample in samples]


def test_the_good_images_that_the_shots_leave_out_set_the_threshold():
    data = data_of("data.shots=2", "seed=1")
    assert names(data.train_samples) == ["002.png", "003.png"]
    assert len(data.calibration_samples) == 6
    assert {data.entry_of(one).content for one in data.train_samples}.isdisjoint(
        data.entry_of(one).content for one in data.calibration_samples
    )


def test_the_strict_protocol_looks_at_nothing_but_the_shots():
    data = data_of("data.shots=2", "calibration.beyond_shots=false")
    assert len(data.train_samples) == 2 and data.calibration_samples == []


def test_one_shot_alone_can_set_no_threshold_and_the_message_says_what_can(tmp_path):
    words = ("data.shots=1", "calibration.beyond_shots=false", f"runs_dir={tmp_path}")
    with pytest.raises(ConfigError, match=r"1 calibration image") as caught:
        run_experiment(compose_app("run", *TINY, *words))
    assert "beyond_shots=true" in caught.value.do


def test_a_threshold_from_the_other_images_is_proven_and_says_of_how_many(tmp_path):
    cfg = compose_app("run", *TINY, "data.shots=2", "threshold.alpha=0.5", f"runs_dir={tmp_path}")
    run, _ = run_experiment(cfg)
    threshold = Threshold.from_json(run.read_json("model/threshold.json"))
    assert (threshold.n, threshold.attained) == (6, pytest.approx(3 / 7))
    assert run.calibration().way == "held_out"


def test_the_curve_resumes_and_its_table_holds_mean_and_deviation_over_the_seeds(tmp_path, capsys):
    runs = tmp_path / "runs"
    out = tmp_path / "out"
    words = [*TINY, f"runs_dir={runs}", f"curve.out={out}", "curve.shots=[2,all]",
             "curve.seeds=[0,1]"]  # fmt: skip
    cfg = compose_checked("few_shot", words)
    table = few_shot.few_shot(cfg)
    assert "run 4 of 4" in capsys.readouterr().out
    assert table["train"].tolist() == [2, 2, 8, 8]
    assert (out / "few_shot.png").stat().st_size > 10_000
    values = 100 * table[table.shots == "2"]["test/image_auroc"]
    cell = f"{values.mean():.1f} ± {values.std():.1f}"
    assert f"| gear | {cell} |" in (out / "few_shot.md").read_text()
    assert "| gear | 6 held out, 14 % | 8 cross, 11 % |" in (out / "few_shot.md").read_text()
    again = few_shot.few_shot(cfg)
    assert "of 4" not in capsys.readouterr().out
    pd.testing.assert_frame_equal(again, table)


def test_a_folder_without_defects_has_a_curve_of_what_can_be_measured(tmp_path):
    good = data_of().train_samples[0].image_path.parent
    words = ["backbone=efficientnet_lite0", "data.view.side=64", "data=folder",
             f"data.root={good.parent}", "data.normal_dir=good",
             f"runs_dir={tmp_path / 'runs'}", f"curve.out={tmp_path / 'out'}", "curve.shots=[2]",
             "curve.seeds=[0]"]  # fmt: skip
    cfg = compose_checked("few_shot", words)
    alone = compose_checked("run", [*words[:6], "data.shots=2", "report.enabled=false"])
    assert config_hash(few_shot.run_config(cfg, None, 2, 0)) == config_hash(alone)
    few_shot.few_shot(cfg)
    text = (tmp_path / "out" / "few_shot.md").read_text()
    assert "Not defined without labelled test images: Image AUROC, AUPRO, Recall." in text
    assert "## False alarms" in text and "nan" not in text
    assert (tmp_path / "out" / "few_shot.png").is_file()


def test_a_point_of_the_curve_is_the_run_that_src_run_would_make():
    words = [*TINY, "report.enabled=false"]
    point = few_shot.run_config(compose_checked("few_shot", words), "plate", 4, 2)
    alone = compose_app("run", *words, "data.category=plate", "data.shots=4", "seed=2")
    assert config_hash(point) == config_hash(alone)


def test_the_deviation_of_the_mean_is_that_of_the_means_of_each_seed():
    rows = [("a", "1", 0, 0.5), ("a", "1", 1, 0.7), ("b", "1", 0, 0.9), ("b", "1", 1, 0.7)]
    table = pd.DataFrame(rows, columns=["category", "shots", "seed", "m"])
    found = few_shot.over_seeds(table, "m")
    assert found["mean", "1"] == pytest.approx([0.7, 0.7])


# --- several categories


def test_each_category_has_the_threshold_that_its_own_good_images_set(both):
    threshold = Threshold.from_json(both.read_json("model/threshold.json"))
    normal = both.calibration()
    assert list(threshold.each) == ["gear", "plate"]
    for name, one in threshold.each.items():
        mine = normal.of(name)
        assert len(mine.image) == one.n == 8
        assert all(f"/{name}/" in path for path in mine.paths)
        assert one == Conformal(0.3).fit(mine)
    assert threshold.n == 16 and threshold.of("gear") != threshold.of("plate")
    assert threshold.of("another") == threshold
    assert Threshold.from_json(json.loads(json.dumps(threshold.to_json()))) == threshold


def test_decisions_and_metrics_of_a_category_are_by_its_own_threshold(both):
    threshold, scores = Threshold.from_json(both.read_json("model/threshold.json")), both.scores()
    product = scores.path.str.split("/").str[1]
    limits = product.map(lambda name: threshold.of(name).image)
    assert (scores.decision == (scores.score > limits)).all()
    assert set(scores[scores.label == 1].defect.str.split("/").str[0]) == {"gear", "plate"}
    metrics = both.metrics()
    for name in ("gear", "plate"):
        bad = scores[(product == name) & (scores.label == 1)]
        good = scores[(product == name) & (scores.label == 0)]
        assert metrics[f"test/recall/{name}"] == pytest.approx(bad.decision.mean())
        assert metrics[f"test/false_alarm_rate/{name}"] == pytest.approx(good.decision.mean())
        above = np.greater.outer(bad.score.to_numpy(), good.score.to_numpy()).mean()
        assert metrics[f"test/image_auroc/{name}"] == pytest.approx(above)
        assert 0 < metrics[f"test/aupro/{name}"] <= 1
    assert (both.directory / "report.html").read_text().count("by its own threshold") == 1


def test_a_detector_decides_by_the_category_that_it_is_given(both):
    one_for_all = Detector.load(both.directory, "cpu")
    plate = Detector.load(both.directory, "cpu", "plate")
    assert plate.threshold == one_for_all.threshold.each["plate"]
    assert plate.identity() != one_for_all.identity()
    with pytest.raises(ConfigError, match="Did you mean 'plate'"):
        Detector.load(both.directory, "cpu", "plates")


def test_evaluation_on_one_category_decides_by_that_categorys_threshold(both, tmp_path):
    from src.commands.evaluate import evaluate_run

    words = [f"run={both.directory}", f"out={tmp_path}", "data=synthetic", "data.category=plate",
             *(word for word in TINY if word.startswith("data."))]  # fmt: skip
    metrics = evaluate_run(compose_checked("evaluate", words))
    assert metrics["test/recall"] == pytest.approx(both.metrics()["test/recall/plate"])
    assert metrics["test/image_auroc"] == pytest.approx(both.metrics()["test/image_auroc/plate"])


def test_the_run_of_several_categories_is_named_after_all_of_them(both, capsys):
    from src.reporting.run_table import print_result

    assert both.directory.parent.name == "gear+plate"
    print_result(both)
    said = capsys.readouterr().out
    assert "synthetic gear+plate" in said and "each by its own threshold" in said
    assert any(line.split()[1] == "plate" for line in said.splitlines() if "plate" in line[:12])


def test_methods_with_a_held_out_share_calibrate_each_category_on_its_own(tmp_path):
    words = [word for word in TINY[1:] if not word.startswith("model.")]
    words += ["model=pixel_statistics", "data=synthetic", "data.category=[gear,plate]",
              "data.synthetic.train=8", "calibration.fraction=0.5", "threshold.alpha=0.3",
              f"runs_dir={tmp_path}"]  # fmt: skip
    run, metrics = run_experiment(compose_app("run", *words))
    threshold = Threshold.from_json(run.read_json("model/threshold.json"))
    assert {name: one.n for name, one in threshold.each.items()} == {"gear": 4, "plate": 4}
    assert "test/recall/plate" in metrics


def test_confirmed_parts_are_refused_by_a_run_of_several_categories(both, tmp_path):
    from src.commands.learn import learn_images

    with pytest.raises(ConfigError, match="gear, plate"):
        learn_images(compose_app("learn", f"run={both.directory}", f"images={tmp_path}"))


def test_calibration_images_of_another_day_belong_to_the_category_whose_folder_they_lie_in(
    tmp_path, both
):
    import shutil

    from src.data.record import list_samples

    data = compose_app("run", *BOTH).data
    [folder] = {s.image_path.parents[3] for s in list_samples(data) if s.category == "plate"}
    root = shutil.copytree(folder, tmp_path / "drawn")
    for name in ("gear", "plate"):
        shutil.copytree(root / name / "train" / "good", root / "day2" / name)
    words = ["data=mvtec", f"data.root={root}", "data.category=[gear,plate]",
             "calibration.dir=day2"]  # fmt: skip
    found = list_samples(compose_app("run", *words).data)
    given = [sample for sample in found if sample.split == "calibration"]
    assert len(given) == 16
    assert all(sample.image_path.parent.name == sample.category for sample in given)
