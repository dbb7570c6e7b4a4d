from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src.commands import selection
from src.errors import DataError
from src.reporting.chart_files import save_figure

VALUES = st.integers(0, 6).map(float)
POINTS = st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=12)


@given(POINTS)
def test_the_front_holds_exactly_the_points_that_no_other_beats(points):
    cost, gain = np.array(points).T
    front = selection.pareto_front(cost, gain)
    for k, (x, y) in enumerate(points):
        beaten = any(c <= x and g >= y and (c, g) != (x, y) for c, g in points)
        assert front[k] == (not beaten)


@given(st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=20), st.floats(0.1, 2))
def test_spread_labels_keep_their_order_their_distance_and_their_centre(heights, gap):
    heights = sorted(heights)
    moved = selection.spread(heights, gap)
    assert (np.diff(moved) >= gap - 1e-9).all()
    assert np.mean(moved) == pytest.approx(np.mean(heights), abs=1e-9)
    if all(np.diff(heights) >= gap):
        assert moved == pytest.approx(heights, abs=1e-9)


def test_marker_areas_follow_memory_and_never_vanish():
    areas = selection.marker_areas(np.array([1.0, 50.0, 100.0]))
    assert areas[2] == 2 * areas[1] and areas[0] == 30
    assert (selection.marker_areas(np.zeros(3)) == 30).all()


def make_table():
    rows = []
    for ratio in (0.01, 0.1):
        for category, base in (("bottle", 0.99), ("screw", 0.9)):
            rows += [{
                "model": "patchcore", "backbone": "resnet18.tv_in1k", "ratio": ratio,
                "category": category, "model_mb": 100 * ratio, "seed": seed,
                "test/image_auroc": base + 0.01 * seed + 0.1 * ratio,
                "speed/latency_p50_ms": 10 + 100 * ratio,
            } for seed in (0, 1)]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_coreset_curve_averages_seeds_and_its_bold_line_the_categories():
    axes = selection.coreset_curve(make_table()).axes[0]
    bottle, screw, mean = (line.get_ydata() for line in axes.lines)
    assert bottle == pytest.approx([0.996, 1.005]) and screw == pytest.approx([0.906, 0.915])
    assert mean == pytest.approx((np.array(bottle) + screw) / 2)


def test_a_category_without_every_fraction_does_not_bend_the_mean():
    table = make_table()
    table = table[~((table.category == "screw") & (table.ratio == 0.1))]
    axes = selection.coreset_curve(table).axes[0]
    assert axes.lines[-1].get_ydata() == pytest.approx([0.996, 1.005])


def test_the_pareto_figure_numbers_every_configuration_and_draws_its_front():
    table = make_table()
    table["label"] = selection.configuration_labels(table)
    axes = selection.pareto_figure(table).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:2] == ["1", "2"]
    assert texts[2].split() == ["1", "resnet18", "1", "%,", "1", "MB"]
    assert list(axes.lines[0].get_xdata()) == [11.0, 20.0]


def test_labels_name_the_model_only_when_there_are_several():
    table = make_table()
    assert set(selection.configuration_labels(table)) == {"resnet18 1 %", "resnet18 10 %"}
    table.loc[0, ["model", "backbone", "ratio"]] = ["crn", None, np.nan]
    assert selection.configuration_labels(table)[0] == "crn no backbone"


def write_run(folder, ratio, auroc, category="bottle"):
    folder.mkdir(parents=True)
    config = {
        "model": {"name": "patchcore", "coreset": {"ratio": ratio}},
        "backbone": {"name": "resnet18"},
        "data": {"name": "mvtec", "category": category},
        "seed": 0,
    }
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    metrics = {"test/image_auroc": auroc, "speed/latency_p50_ms": 10 / ratio}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"0" * 2_000_000)


def test_finished_runs_become_rows_and_broken_folders_are_left_out(tmp_path):
    write_run(tmp_path / "a" / "seed0", 0.01, 0.9)
    write_run(tmp_path / "b" / "seed0", 0.1, 0.95)
    write_run(tmp_path / "b" / "seed0" / "evaluations" / "other", 0.5, 0.1)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.json").write_text("{half")
    table = selection.runs_table(tmp_path)
    assert table["ratio"].tolist() == [0.01, 0.1]
    assert table["model_mb"].tolist() == [2.0, 2.0]


def test_of_runs_on_data_that_changed_since_only_the_newest_counts(tmp_path, capsys):
    for second, content in enumerate(("00000000aa", "00000000bb")):
        write_run(folder := tmp_path / "a" / f"seed0-0123456789-{content}", 0.01, 0.5 + second / 4)
        os.utime(folder / "metrics.json", (second, second))
    assert selection.runs_table(tmp_path)["test/image_auroc"].tolist() == [0.75]
    assert "1 runs on earlier data or weights are left out" in capsys.readouterr().out


def test_the_command_writes_a_table_and_the_figures_that_make_sense(tmp_path):
    write_run(tmp_path / "runs" / "a", 0.01, 0.9)
    cfg = OmegaConf.create({"runs": str(tmp_path / "runs"), "out": str(tmp_path / "out"),
                            "metric": "test/image_auroc"})  # fmt: skip
    assert [path.name for path in selection.write_selection(cfg)] == ["runs.csv"]
    write_run(tmp_path / "runs" / "b", 0.1, 0.95)
    names = [path.name for path in selection.write_selection(cfg)]
    assert names == ["runs.csv", "coreset.png", "pareto.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)


def test_a_folder_without_runs_or_a_misspelt_metric_is_explained(tmp_path):
    cfg = OmegaConf.create({"runs": str(tmp_path), "out": "o", "metric": "test/image_auroc"})
    with pytest.raises(DataError, match="0 finished runs"):
        selection.write_selection(cfg)
    write_run(tmp_path / "a", 0.01, 0.9)
    cfg.metric = "test/image_aurocc"
    with pytest.raises(DataError, match="Did you mean 'test/image_auroc'"):
        selection.write_selection(cfg)


def test_one_fraction_and_one_configuration_can_still_be_drawn(tmp_path):
    table = make_table()[:1].assign(label="only")
    save_figure(selection.coreset_curve(table), tmp_path / "a.png", 40)
    save_figure(selection.pareto_figure(table), tmp_path / "b.png", 40)
