from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as referee

from src.errors import DataError
from src.evaluation import ranking
from src.evaluation.uncertainty import decision_rates
from tests import reference

FEW = st.integers(-3, 3).map(float)  # many ties
ANY = st.floats(-1e30, 1e30, allow_nan=False)


def average_precision(scores, labels):
    return ranking.area_under_precision(ranking.rank(scores, labels))


def f1_max(scores, labels):
    table = ranking.rank(scores, labels)
    return SimpleNamespace(f1=ranking.f1_max(table), threshold=ranking.f1_threshold(table))


def rates(alarms, labels):
    found = decision_rates(alarms, np.asarray(labels) == 1)
    return {key.removeprefix("test/"): value.item() for key, value in found.items()}


def labelled(values):
    return st.lists(st.tuples(values, st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: len({y for _, y in rows}) == 2
    )


def split(rows):
    return [s for s, _ in rows], [y for _, y in rows]


@settings(max_examples=150, deadline=None)
@given(rows=st.one_of(labelled(FEW), labelled(ANY)))
def test_auroc_ap_and_f1_equal_pair_counting_and_threshold_sweeps(rows):
    scores, labels = split(rows)
    assert ranking.auroc(scores, labels) == pytest.approx(
        reference.auroc(scores, labels), abs=1e-12
    )
    assert average_precision(scores, labels) == pytest.approx(
        reference.average_precision(scores, labels), abs=1e-12
    )
    assert f1_max(scores, labels).f1 == pytest.approx(reference.f1_max(scores, labels), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(rows=st.one_of(labelled(FEW), labelled(ANY)))
def test_the_f1_threshold_reaches_the_f1_it_promises(rows):
    scores, labels = split(rows)
    best = f1_max(scores, labels)
    assert rates(np.asarray(scores) > best.threshold, labels)["f1"] == pytest.approx(best.f1)


@settings(max_examples=100, deadline=None)
@given(rows=st.one_of(labelled(FEW), labelled(st.floats(-100, 100, width=32))))
def test_the_f1_threshold_also_holds_for_float32_tensors_compared_in_torch(rows):
    scores, labels = split(rows)
    tensor = torch.tensor(scores, dtype=torch.float32)
    best = f1_max(tensor, labels)
    alarm = tensor > best.threshold  # torch rounds the Python number to float32 here
    assert rates(alarm, labels)["f1"] == pytest.approx(best.f1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [3, 50, 10**9])
def test_scikit_learn_agrees(seed, levels):
    rng = np.random.default_rng(seed)
    labels = rng.random(500) < 0.3
    scores = (rng.normal(size=500) + labels) * levels // 3
    assert ranking.auroc(scores, labels) == pytest.approx(referee.roc_auc_score(labels, scores))
    assert average_precision(scores, labels) == pytest.approx(
        referee.average_precision_score(labels, scores)
    )
    fpr, tpr, _ = referee.roc_curve(labels, scores, drop_intermediate=False)
    ours = ranking.roc_curve(ranking.rank(scores, labels))
    grid = np.linspace(0.0013, 0.9987, 401)
    np.testing.assert_allclose(_height(ours.x, ours.y, grid), _height(fpr, tpr, grid), atol=1e-12)
    precision, recall, _ = referee.precision_recall_curve(labels, scores)
    points = {(round(r, 12), round(p, 12)) for r, p in zip(recall, precision, strict=True)}
    curve = ranking.precision_recall_curve(ranking.rank(scores, labels))
    drawn = zip(curve.x, curve.y, strict=True)
    assert all((round(r, 12), round(p, 12)) in points for r, p in drawn)


def _height(x, y, at):
    """The polyline at `at`, which avoids its vertical parts."""
    last = np.searchsorted(x, at, side="right") - 1
    x0, x1, y0, y1 = x[last], x[last + 1], y[last], y[last + 1]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def test_area_under_the_drawn_roc_curve_is_the_auroc():
    rng = np.random.default_rng(7)
    labels = rng.random(300) < 0.4
    scores = np.round(rng.normal(size=300) + labels, 1)
    curve = ranking.roc_curve(ranking.rank(scores, labels))
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(ranking.auroc(scores, labels))
    assert curve.x[0] == curve.y[0] == 0
    assert curve.x[-1] == curve.y[-1] == 1


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], []])
def test_without_both_classes_every_metric_is_nan(labels):
    scores = np.arange(len(labels), dtype=float)
    assert math.isnan(ranking.auroc(scores, labels))
    assert math.isnan(average_precision(scores, labels))
    assert all(math.isnan(v) for v in vars(f1_max(scores, labels)).values())
    assert np.isnan(ranking.roc_curve(ranking.rank(scores, labels)).y).all()
    assert np.isnan(ranking.precision_recall_curve(ranking.rank(scores, labels)).y).all()


def test_one_image_of_each_class_is_enough():
    assert ranking.auroc([2.0, 1.0], [1, 0]) == 1
    assert ranking.auroc([1.0, 2.0], [1, 0]) == 0
    assert ranking.auroc([1.0, 1.0], [1, 0]) == 0.5


def test_a_constant_score_says_nothing():
    labels = [1, 0, 0, 1, 0]
    assert ranking.auroc([3.0] * 5, labels) == 0.5
    assert average_precision([3.0] * 5, labels) == pytest.approx(0.4)


def test_scores_far_outside_zero_to_one_keep_their_order():
    labels = np.arange(1000) % 2
    scores = 1000 + np.arange(1000) * 1e-3  # a float32 sigmoid would make them all 1.0
    assert ranking.auroc(scores, labels) == pytest.approx(reference.auroc(scores, labels))
    assert ranking.auroc(scores * 1e30, labels) == ranking.auroc(scores, labels)
    assert ranking.auroc(-scores, 1 - labels) == pytest.approx(ranking.auroc(scores, labels))


@settings(max_examples=50, deadline=None)
@given(rows=labelled(FEW), seed=st.integers(0, 99))
def test_order_of_arrival_does_not_matter(rows, seed):
    mixed = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    assert ranking.auroc(*split(mixed)) == ranking.auroc(*split(rows))
    assert average_precision(*split(mixed)) == average_precision(*split(rows))


@settings(max_examples=50, deadline=None)
@given(rows=labelled(st.integers(-50, 50).map(float)))
def test_a_monotone_change_of_scale_changes_nothing(rows):
    scores, labels = split(rows)
    bent = np.exp(np.array(scores) / 10)
    assert ranking.auroc(bent, labels) == ranking.auroc(scores, labels)
    assert f1_max(bent, labels).f1 == f1_max(scores, labels).f1


def test_scores_that_are_not_finite_are_refused_with_their_number():
    with pytest.raises(DataError, match=r"3 of 5 scores.*\n.*2 NaN and 1 infinite"):
        ranking.auroc([1.0, math.nan, math.inf, math.nan, 2.0], [0, 1, 0, 1, 0])


def test_labels_other_than_zero_and_one_are_refused():
    with pytest.raises(ValueError, match="labels must be 0 or 1"):
        ranking.auroc([1.0, 2.0], [0, 2])
    with pytest.raises(ValueError, match="2 scores but 3 labels"):
        ranking.auroc([1.0, 2.0], [0, 1, 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_of_every_float_type_are_accepted(dtype):
    scores = torch.tensor([0.5, 2.0, 1.0, 4.0], dtype=dtype, requires_grad=True)
    assert ranking.auroc(scores, torch.tensor([0, 1, 0, 1])) == 1


def test_the_rates_of_decisions_are_those_of_the_counts():
    found = rates(np.array([1, 2, 3, 4, 5]) > 2, [0, 1, 0, 1, 1])  # 2 hits, 1 miss, 1 false alarm
    assert found["precision"] == found["recall"] == found["f1"] == pytest.approx(2 / 3)
    assert found["false_alarm_rate"] == 0.5


def test_ratios_without_a_denominator_are_nan():
    silent = rates([False, False], [0, 1])
    assert math.isnan(silent["precision"])
    assert silent["recall"] == silent["f1"] == silent["false_alarm_rate"] == 0
    only_normal = rates([False, True], [0, 0])
    assert math.isnan(only_normal["recall"])
    assert math.isnan(only_normal["f1"])
    assert only_normal["false_alarm_rate"] == 0.5


def test_a_thinned_curve_keeps_its_ends_and_its_area():
    rng = np.random.default_rng(3)
    labels = rng.random(20_000) < 0.5
    curve = ranking.roc_curve(ranking.rank(rng.normal(size=20_000) + 2 * labels, labels))
    thin = curve.thinned(400)
    assert len(thin.x) <= 402
    assert (thin.x[0], thin.y[0], thin.x[-1], thin.y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(thin.y, thin.x) == pytest.approx(np.trapezoid(curve.y, curve.x), abs=2e-3)


def test_neighbouring_floats_can_still_be_separated():
    for kind in (np.float32, np.float64):
        low = kind(0.1)
        high = np.nextafter(low, kind(1))
        best = f1_max(np.array([low, high]), [0, 1])
        assert best.f1 == 1
        assert float(low) <= best.threshold < float(high)
