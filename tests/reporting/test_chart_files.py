from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from src.reporting import chart_files
from src.reporting.charts import score_chart
from src.result import Curve
from src.saved_run import ScoreRow
from tests.reporting.pictures import make_results


def axes_of(figure):
    return figure.axes[0]


def test_the_figure_of_scores_draws_every_column_and_dot_of_the_chart_of_the_page():
    chart = score_chart(make_results(60), 1.0)
    axes = axes_of(chart_files.score_figure(chart))
    columns = [patch for group in axes.containers for patch in group]
    drawn = sorted([c.get_x(), c.get_y(), c.get_width(), c.get_height()] for c in columns)
    wanted = sorted([b.x, b.y, b.width, b.height] for b in chart.bars)
    np.testing.assert_allclose(drawn, wanted)
    places = np.concatenate([each.get_offsets() for each in axes.collections])
    np.testing.assert_allclose(sorted(places.tolist()), sorted([d.x, d.y] for d in chart.dots))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["normal", "defective"]
    lower, upper = axes.get_ylim()
    assert lower > upper  # good parts, the first strip, are at the top


def test_the_threshold_stands_where_it_is_and_an_infinite_one_is_not_drawn():
    rows = make_results(20)
    chart = score_chart(rows, 1.0)
    axes = axes_of(chart_files.score_figure(chart))
    assert [chart.threshold, chart.threshold] in [list(line.get_xdata()) for line in axes.lines]
    assert "threshold 1" in [text.get_text() for text in axes.texts]
    texts = axes_of(chart_files.score_figure(score_chart(rows, np.inf))).texts
    assert not [text for text in texts if "threshold" in text.get_text()]


@pytest.mark.parametrize("scores", [[], [2.0], [1.0, 1.0, 1.0], [np.nan], [-1e9, 1e9]])
def test_any_scores_can_be_drawn(scores, tmp_path):
    rows = [ScoreRow("a", 0, "good", score, False) for score in scores]
    figure = chart_files.score_figure(score_chart(rows, 0.5))
    chart_files.save_figure(figure, tmp_path / "h.png", 40)
    assert ("1 images are not drawn" in axes_of(figure).get_xlabel()) == (scores == [np.nan])


def test_curves_carry_their_points_and_their_number():
    x = np.linspace(0, 1, 20)
    axes = axes_of(chart_files.ranking_curve(Curve("roc", x, x**0.3, 0.76981)))
    assert "0.7698" in axes.get_title(loc="left")
    assert [list(line.get_ydata()) for line in axes.lines][1:] == [list(x**0.3)]


def test_the_area_of_pro_is_shaded_up_to_its_limit_only():
    x = np.linspace(0, 1, 101)
    axes = axes_of(chart_files.ranking_curve(Curve("pro", x, x**0.3, 0.8, 0.3)))
    shaded = axes.collections[0].get_paths()[0].vertices[:, 0]
    assert shaded.max() == pytest.approx(0.3)


def test_figures_are_written_whole_in_the_format_of_their_name(tmp_path):
    figure, _ = chart_files.new_figure(6.0, 1.4)
    for name, start in (("a.png", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")):
        chart_files.save_figure(figure, tmp_path / name, 40)
        assert (tmp_path / name).read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 3
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 240  # 6 inches


def test_drawing_leaves_no_global_state_behind():
    code = "import sys; import src.reporting.chart_files; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
