from __future__ import annotations

import math

import numpy as np
import pytest

from src.evaluation.uncertainty import Interval, mean_interval
from src.reproduction.judging import (
    ABOVE,
    BELOW,
    UNJUDGED,
    WITHIN,
    Measured,
    judge_variant,
    tolerance,
)
from src.reproduction.papers import GROUPS, Published, Variant

METRIC = "test/image_auroc"


def published(values, rounding=0.0005, judged=True) -> Published:
    return Published(METRIC, "a table", values, rounding, judged, "")


def variant(*columns: Published, categories=("a", "b")) -> Variant:
    return Variant("v", "V", (), (METRIC,), columns, categories)


def run(value: float, seed: int = 0, low: float = 0.02, high: float = 0.01) -> Measured:
    limits = Interval(value - low, value + high)
    return Measured(seed, {METRIC: value}, {METRIC: limits}, f"h{seed}", "honest", 10.0)


@pytest.mark.parametrize(
    ("paper", "said"),
    [(0.95, WITHIN), (0.9605, WITHIN), (0.9606, BELOW), (0.9295, WITHIN), (0.9294, ABOVE)],
)
def test_the_verdict_is_whether_the_papers_number_lies_in_our_interval(paper, said):
    [row, *_] = judge_variant("t", variant(published({"a": paper})), {"a": [run(0.95)]})
    assert row.verdict == said
    assert row.fails == (said != WITHIN)
    assert row.difference == pytest.approx(0.95 - paper)


def test_seeds_widen_the_tolerance_by_students_prediction_interval():
    values = np.array([0.90, 0.92, 0.94])
    runs = [run(value, seed) for seed, value in enumerate(values)]
    [row, *_] = judge_variant("t", variant(published({"a": 0.9})), {"a": runs})
    reach = 4.302653 * values.std(ddof=1) * math.sqrt(1 + 1 / 3)  # t of 2 degrees of freedom
    assert row.ours == pytest.approx(0.92)
    assert row.std == pytest.approx(0.02)
    assert row.tolerance.low == pytest.approx(0.92 - math.hypot(0.02, reach) - 0.0005)
    assert row.tolerance.high == pytest.approx(0.92 + math.hypot(0.01, reach) + 0.0005)
    assert row.interval.low > row.tolerance.low  # a mean is surer than one more run


def test_two_seeds_show_a_spread_but_do_not_widen():
    runs = [run(0.90, 0), run(0.94, 1)]
    [row, *_] = judge_variant("t", variant(published({"a": 0.9})), {"a": runs})
    assert row.std > 0
    expected = tolerance(0.92, Interval(0.90, 0.93), math.nan, 1, 0.0005)
    assert row.tolerance == pytest.approx(expected)


def test_the_prediction_interval_holds_the_next_run_95_times_in_100():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        *values, fresh = rng.normal(0.9, 0.01, size=6)
        nothing = Interval(float(np.mean(values)), float(np.mean(values)))
        allowed = tolerance(nothing.low, nothing, float(np.std(values, ddof=1)), 5, 0.0)
        held += allowed.low <= fresh <= allowed.high
    assert 0.935 < held / 2000 < 0.965


def test_the_mean_of_a_complete_set_is_judged_by_the_printed_mean():
    cells = {"a": [run(0.90)], "b": [run(0.96)]}
    rows = judge_variant("t", variant(published({"mean": 0.99})), cells)
    mean = rows[-1]
    assert (mean.category, mean.of, mean.paper) == ("mean", (2, 2), 0.99)
    limits = [cells[c][0].intervals[METRIC] for c in "ab"]
    expected = mean_interval([0.90, 0.96], limits)
    assert mean.interval == pytest.approx(expected)
    assert mean.verdict == BELOW
    assert all(row.verdict == UNJUDGED for row in rows[:-1])  # nothing printed for them


def test_a_partial_mean_is_shown_beside_the_same_categories_and_not_judged():
    rows = judge_variant(
        "t", variant(published({"a": 0.99, "b": 0.5, "mean": 0.745})), {"a": [run(0.90)]}
    )
    mean = rows[-1]
    assert (mean.of, mean.paper, mean.verdict) == ((1, 2), 0.99, UNJUDGED)


def test_textures_and_objects_get_rows_when_all_fifteen_are_listed():
    names = [c for members in GROUPS.values() for c in members]
    cells = {c: [run(0.5 if c in GROUPS["textures"] else 0.8)] for c in names}
    rows = judge_variant("t", variant(published({}), categories=tuple(names)), cells)
    by_name = {row.category: row for row in rows}
    assert by_name["textures"].ours == pytest.approx(0.5)
    assert by_name["objects"].ours == pytest.approx(0.8)
    assert by_name["mean"].ours == pytest.approx(0.7)


def test_numbers_of_another_definition_are_shown_but_never_fail():
    [row, *_] = judge_variant("t", variant(published({"a": 0.1}, judged=False)), {"a": [run(0.9)]})
    assert (row.paper, row.verdict, row.fails) == (0.1, UNJUDGED, False)


def test_without_published_numbers_rows_have_ours_only():
    [row, *_] = judge_variant("t", variant(), {"a": [run(0.9)]})
    assert (row.ours, row.paper, row.verdict) == (0.9, None, UNJUDGED)


def test_a_missing_interval_cannot_judge():
    bare = Measured(0, {METRIC: 0.9}, {}, "h", "honest", math.nan)
    [row, *_] = judge_variant("t", variant(published({"a": 0.5})), {"a": [bare]})
    assert row.verdict == UNJUDGED


def test_a_category_without_runs_has_no_row():
    rows = judge_variant("t", variant(published({"a": 0.9})), {"b": [run(0.9)]})
    assert {row.category for row in rows} == {"b", "mean"}
