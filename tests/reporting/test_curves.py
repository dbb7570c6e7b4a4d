from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from src.reporting import curves
from src.reporting.records import Curve

RNG = np.random.default_rng(0)
SCORES = np.r_[RNG.normal(1.0, 0.2, 50), RNG.normal(2.0, 0.4, 20), np.nan, np.inf]
LABELS = np.r_[np.zeros(50, int), np.ones(20, int), 0, 1]


def axes_of(figure):
    return figure.axes[0]


def test_histogram_columns_add_up_to_the_finite_scores_of_each_class():
    axes = axes_of(curves.score_histogram(SCORES, LABELS, 1.5))
    heights = [sum(patch.get_height() for patch in group) for group in axes.containers]
    assert heights == [50, 20]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["normal (50, 1 not finite)", "defective (20, 1 not finite)"]


def test_the_threshold_stands_where_it_is_and_an_infinite_one_is_not_drawn():
    axes = axes_of(curves.score_histogram(SCORES, LABELS, 1.5))
    assert [list(line.get_xdata()) for line in axes.lines] == [[1.5, 1.5]]
    assert not axes_of(curves.score_histogram(SCORES, LABELS, np.inf)).lines


@pytest.mark.parametrize("scores", [[], [2.0], [1.0, 1.0, 1.0], [np.nan], [-1e9, 1e9]])
def test_any_scores_can_be_drawn(scores, tmp_path):
    values, labels = np.array(scores), np.zeros(len(scores), int)
    curves.save_figure(curves.score_histogram(values, labels, 0.5), tmp_path / "h.png", 40)
    strip = curves.score_strip(values, ["good"] * len(scores), labels, 0.5)
    curves.save_figure(strip, tmp_path / "s.png", 40)


def test_the_strip_plot_has_a_line_per_defect_type_with_good_parts_on_top():
    defects = ["zap"] * 36 + ["good"] * 36
    axes = axes_of(curves.score_strip(SCORES, defects, LABELS, 1.5))
    assert [text.get_text() for text in axes.get_yticklabels()] == ["good", "zap"]
    places = np.concatenate([each.get_offsets() for each in axes.collections])
    assert sorted(places[:, 0]) == sorted(SCORES[np.isfinite(SCORES)])
    lower, upper = axes.get_ylim()
    assert lower > upper  # the first name is at the top


def test_curves_carry_their_points_their_number_and_the_operating_point():
    x = np.linspace(0, 1, 20)
    axes = axes_of(curves.ranking_curve(Curve("roc", x, x**0.3, 0.76981), (0.2, 0.6)))
    assert "0.7698" in axes.get_title(loc="left")
    assert [list(line.get_ydata()) for line in axes.lines][1:] == [list(x**0.3), [0.6]]


def test_the_area_of_pro_is_shaded_up_to_its_limit_only():
    x = np.linspace(0, 1, 101)
    axes = axes_of(curves.ranking_curve(Curve("pro", x, x**0.3, 0.8, 0.3)))
    shaded = axes.collections[0].get_paths()[0].vertices[:, 0]
    assert shaded.max() == pytest.approx(0.3)


def test_figures_are_written_whole_in_the_format_of_their_name(tmp_path):
    figure, _ = curves.new_figure(6.0, 1.4)
    for name, start in (("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")):
        curves.save_figure(figure, tmp_path / name, 40)
        assert (tmp_path / name).read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 3
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 240  # 6 inches


def test_drawing_leaves_no_global_state_behind():
    code = "import sys; import src.reporting.curves; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
