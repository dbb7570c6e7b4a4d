from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control

from src.evaluation.threshold import (
    Conformal,
    OperatingPoint,
    conformal_p,
    deciding,
    operating_points,
    promised,
    suspicion,
)
from src.result import NormalScores, Threshold


def normal_scores(values):
    scores = torch.tensor(values, dtype=torch.float32)
    return NormalScores(scores, scores, paths=[f"good/{k}.png" for k in range(len(values))])


@pytest.mark.parametrize("n", [2, 18, 19, 54, 99, 209])
def test_every_row_is_the_threshold_that_this_alpha_would_have_given(n):
    normal = normal_scores(np.random.default_rng(n).permutation(n))
    points = operating_points(normal, [], [])
    assert {point.alpha for point in points} == {0.01, 0.02, 0.05, 0.1, 0.2, 1 / (n + 1)}
    for point in points:
        fitted = Conformal(point.alpha).fit(normal)
        assert point.threshold == fitted.image
        assert point.attained == pytest.approx(fitted.attained) == promised(normal, fitted.image)
        assert point.possible == (point.alpha > 1 / (n + 1) - 1e-9)


def test_rows_count_decisions_of_labelled_test_images():
    scores, labels = [1.0, 50.0, 60.0, 9.5, 99.0, 99.0], [0, 0, 1, 1, 1, -1]
    rows = {p.alpha: p for p in operating_points(normal_scores(range(9)), scores, labels)}
    assert rows[0.1] == OperatingPoint(0.1, 8.0, 0.1, 3, 3, 1, 2)
    assert rows[0.2].threshold == 7.0
    as_text = {name: str(value) for name, value in rows[0.2]._asdict().items()}
    assert OperatingPoint.from_row(as_text) == rows[0.2]


def test_the_picture_that_decides_is_named_with_what_would_hold_without_it():
    normal = normal_scores([3.0, 248.0, 223.0, *range(100, 151)])  # 54, as metal_plate has
    highest = deciding(normal, Conformal(1 / 55).fit(normal))
    assert highest[:3] == ("good/1.png", 248.0, 223.0)
    assert highest.attained == pytest.approx(2 / 55)
    assert not highest.above
    second = deciding(normal, Conformal(0.05).fit(normal))
    assert second.path == "good/2.png"
    assert second.above == [("good/1.png", 248.0)]


def test_nobody_decides_an_oracle_or_a_threshold_without_scores():
    normal = normal_scores([1.0, 2.0])
    assert deciding(normal, Threshold(1.5, 1.5, "f1_oracle", oracle=True)) is None
    assert deciding(None, Threshold(1.0, 1.0, "conformal")) is None
    assert deciding(normal._replace(paths=()), Threshold(1.0, 1.0, "conformal")) is None


def test_suspicion_ranks_all_pictures_and_counts_ties_against_the_picture():
    ranked = suspicion(normal_scores([1.0, 5.0, 3.0, 3.0]))
    assert [path for path, _, _ in ranked] == [f"good/{k}.png" for k in (1, 2, 3, 0)]
    assert [p for _, _, p in ranked] == pytest.approx([0.25, 0.75, 0.75, 1.0])


def test_a_p_value_is_the_share_of_calibration_scores_and_its_own_that_reach_a_score():
    normal = normal_scores([3.0, 1.0, 2.0, 2.0])
    assert conformal_p(normal, [0.5, 1.0, 2.0, 2.5, 3.0, 9.0]) == pytest.approx(
        [1, 1, 4 / 5, 2 / 5, 2 / 5, 1 / 5]
    )


def test_p_values_of_good_parts_keep_their_level_and_discoveries_their_share_of_good_parts():
    """Over 400 draws of 99 calibration scores and 50 good beside 25 bad parts, as promised."""
    rng, below, wrong = np.random.default_rng(0), [], []
    for _ in range(400):
        normal = normal_scores(rng.normal(size=99))
        p = conformal_p(normal, np.r_[rng.normal(size=50), rng.normal(size=25) + 3])
        below.append((p[:50] <= 0.1).mean())
        found = false_discovery_control(p) <= 0.2
        wrong.append(found[:50].sum() / max(found.sum(), 1))
    assert np.mean(below) == pytest.approx(0.1, abs=0.01)
    assert np.mean(wrong) == pytest.approx(0.2 * 50 / 75, abs=0.025)
