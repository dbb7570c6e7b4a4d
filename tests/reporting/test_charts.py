from __future__ import annotations

import math

import numpy as np
import pytest

from src.reporting import charts
from src.result import Curve, DefectRecall
from src.saved_run import ScoreRow
from tests.reporting.pictures import make_results


def test_columns_of_the_histogram_hold_every_image_once():
    rows = make_results(60)
    chart = charts.score_chart(rows, 1.0)
    per_image = 150 / chart.most  # pixels
    for kind, label in (("normal", 0), ("defective", 1)):
        drawn = sum(bar.height for bar in chart.bars if bar.kind == kind) / per_image
        assert drawn == pytest.approx(sum(row.label == label for row in rows), abs=0.1)


def test_stacked_columns_never_overlap_and_stay_inside_the_plot():
    chart = charts.score_chart(make_results(60), 1.0)
    boxes = [(bar.x, bar.y, bar.x + bar.width, bar.y + bar.height) for bar in chart.bars]
    for k, a in enumerate(boxes):
        assert a[0] >= 0 and a[2] <= 100 and a[1] >= 0 and a[3] <= chart.base + 0.02
        for b in boxes[k + 1 :]:
            width = min(a[2], b[2]) - max(a[0], b[0])
            height = min(a[3], b[3]) - max(a[1], b[1])
            assert width <= 0.01 or height <= 0.02


def test_each_image_has_one_dot_at_its_score_in_the_strip_of_its_defect():
    rows = make_results(24)
    chart = charts.score_chart(rows, 1.0)
    tops = dict(chart.strips)
    assert [dot.index for dot in chart.dots] == list(range(24))
    for dot in chart.dots:
        value = chart.low + dot.x / 100 * (chart.high - chart.low)
        assert value == pytest.approx(rows[dot.index].score, abs=1e-4)
        assert 0 < dot.y - tops[rows[dot.index].defect] < chart.strip


def test_scores_and_thresholds_that_are_not_finite_are_left_out_and_counted():
    rows = [ScoreRow(str(s), 0, "good", s, False) for s in (1.0, math.nan, math.inf, 2.0)]
    chart = charts.score_chart(rows, math.inf)
    assert len(chart.dots) == 2 and chart.left_out == 2
    assert chart.threshold is None


@pytest.mark.parametrize("scores", [[], [3.0], [0.0, 0.0], [1e-300], [-1e12, 1e12], [5.0] * 99])
def test_any_scores_give_a_chart_with_round_ticks_inside_its_axis(scores):
    rows = [ScoreRow("a", 0, "good", s, False) for s in scores]
    chart = charts.score_chart(rows, math.inf)
    assert chart.low < chart.high
    assert all(0 <= x <= 100 for x, _ in chart.ticks)
    assert all(0 <= dot.x <= 100 for dot in chart.dots)


def test_ticks_are_one_two_or_five_times_a_power_of_ten_apart():
    for low, high in ((0, 1), (0.31, 4.5), (-1200, 77), (1e-7, 3e-7)):
        ticks = charts.nice_ticks(low, high)
        steps = np.diff(ticks)
        assert 3 <= len(ticks) <= 8
        step = float(f"{steps[0] / 10 ** math.floor(math.log10(steps[0] * 1.0001)):.6f}")
        assert step in (1.0, 2.0, 5.0)


def test_a_thinned_curve_stays_within_half_a_percent_of_the_whole():
    x = np.linspace(0, 1, 20001)
    curve = Curve("roc", x, x**0.05, 0.95)
    path = charts.curve_path(curve)
    points = np.array([p.split() for p in path[1:].split("L")], dtype=float) / 100
    assert len(points) < 700
    assert points[0].tolist() == [0.0, 1.0] and points[-1].tolist() == [1.0, 0.0]
    back = np.interp(x, points[:, 0], 1 - points[:, 1])
    assert np.abs(back - x**0.05)[x > 1e-3].max() < 0.005


def test_an_empty_curve_draws_nothing():
    assert charts.curve_path(Curve("pr", np.zeros(0), np.zeros(0), math.nan)) == ""


def test_a_defect_type_without_images_has_no_bar():
    assert charts.recall_bar(DefectRecall("x", 0, 0, 0.0, 1.0)) == {}
    bar = charts.recall_bar(DefectRecall("x", 3, 4, 0.3, 0.95))
    assert bar == {"value": 75.0, "low": 30.0, "high": 95.0}
