from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src.composing import compose_checked
from src.errors import ConfigError, DataError, SavedModelError
from src.evaluation import ranking
from src.evaluation.threshold import (
    Conformal,
    F1Oracle,
    Nfa,
    Quantile,
    build_rule,
)
from src.evaluation.torch_metrics import CalibrationScores
from src.evaluation.uncertainty import decision_rates
from src.result import NormalScores, Prediction, Threshold
from tests import reference

DISTRIBUTIONS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_cauchy(size=shape),
    "heavy ties": lambda rng, shape: rng.poisson(1.5, size=shape).astype(float),
    "two values": lambda rng, shape: (rng.random(shape) < 0.1).astype(float),
    "skewed": lambda rng, shape: rng.lognormal(0, 2, size=shape),
}


def normal_scores(values):
    values = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    return NormalScores(values, values * 2)


def false_alarms(alpha, n, draw, rounds, seed=0):
    """Share of fresh normal scores above thresholds fitted on n others, one of each a round."""
    rng = np.random.default_rng(seed)
    rule = Conformal(alpha)
    scores = draw(rng, (rounds, n + 1)).astype(np.float32)
    alarms = [row[-1] > rule.fit(normal_scores(row[:-1])).image for row in scores]
    return float(np.mean(alarms))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (20, 0.2), (99, 0.1)])
def test_conformal_threshold_keeps_false_alarms_below_alpha(name, n, alpha):
    rounds = 1500
    error = 3.5 * math.sqrt(alpha * (1 - alpha) / rounds)
    assert false_alarms(alpha, n, DISTRIBUTIONS[name], rounds) <= alpha + error


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("n", [2, 5, 19, 50, 99, 250])
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, 0.5])
def test_conformal_guarantee_holds_for_many_sizes_and_levels(name, n, alpha):
    rounds = 20_000
    level = max(alpha, 1 / (n + 1))
    error = 3.5 * math.sqrt(level * (1 - level) / rounds)
    rate = false_alarms(alpha, n, DISTRIBUTIONS[name], rounds, seed=n)
    assert rate <= level + error
    if name in ("normal", "heavy tails", "skewed"):  # without ties it is not conservative either
        attained = Conformal(alpha).fit(normal_scores(np.arange(n))).attained
        assert rate == pytest.approx(attained, abs=error)


def test_the_plain_quantile_breaks_the_promise_that_conformal_keeps():
    rows = np.random.default_rng(0).normal(size=(4000, 11)).astype(np.float32)

    def rate(rule):
        return np.mean([row[-1] > rule.fit(normal_scores(row[:-1])).image for row in rows])

    error = 3 * math.sqrt(0.09 / 4000)
    assert rate(Conformal(0.1)) <= 0.1 + error
    assert rate(Quantile(0.9)) > 0.15  # 2/11 for n = 10


@settings(max_examples=100, deadline=None)
@given(
    scores=st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=40),
    alpha=st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5, 0.9]),
)
def test_conformal_threshold_equals_its_definition_by_enumeration(scores, alpha):
    fitted = Conformal(alpha).fit(normal_scores(scores))
    assert fitted.image == reference.conformal_threshold(scores, alpha)
    assert fitted.pixel == 2 * fitted.image


@pytest.mark.parametrize(("n", "alpha"), [(99, 0.01), (19, 0.05), (9, 0.1), (999, 0.001)])
def test_the_smallest_sufficient_calibration_set_attains_alpha_without_a_warning(n, alpha, caplog):
    fitted = Conformal(alpha).fit(normal_scores(np.arange(n)))
    assert fitted.attained == pytest.approx(alpha)
    assert fitted.image == n - 1
    assert not caplog.records
    Conformal(alpha).fit(normal_scores(np.arange(n - 1)))
    assert f"at least {n} images" in caplog.text


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_few_images_work_and_the_message_is_honest(n, caplog):
    with caplog.at_level(logging.WARNING):
        fitted = Conformal(0.01).fit(normal_scores(np.arange(n)))
    assert fitted.image == n - 1
    assert fitted.attained == pytest.approx(1 / (n + 1))
    assert fitted.alpha == 0.01
    assert fitted.n == n
    assert f"(1/{n + 1})" in caplog.text
    assert "at least 99 images" in caplog.text


@pytest.mark.parametrize("rule", [Conformal(0.1), Quantile(0.9)])
def test_no_calibration_images_is_a_clear_mistake(rule):
    for missing in (None, normal_scores([])):
        with pytest.raises(ConfigError, match=r"set calibration\.fraction="):
            rule.fit(missing)


@pytest.mark.parametrize("rule", [Conformal(0.5), Quantile(0.5)])
def test_one_calibration_image_can_promise_nothing(rule):
    with pytest.raises(ConfigError, match="two normal images at least"):
        rule.fit(normal_scores([1.0]))


@pytest.mark.parametrize(("n", "alpha"), [(209, 0.01), (60, 0.05), (19, 0.01), (5, 0.2)])
def test_the_limit_is_what_95_of_100_calibrations_keep(n, alpha):
    rounds = 4000
    fitted = Conformal(alpha).fit(normal_scores(np.arange(n)))
    rank = round((n + 1) * (1 - fitted.attained))
    scores = np.random.default_rng(n).random((rounds, n))  # uniform: the rate is 1 - threshold
    realised = 1 - np.sort(scores, axis=1)[:, rank - 1]
    assert realised.mean() == pytest.approx(fitted.attained, abs=4 * realised.std() / 60)
    assert np.mean(realised <= fitted.attained_limit) == pytest.approx(0.95, abs=0.014)
    if (n, alpha) == (209, 0.01):  # a promise on average is broken by more than a third of them
        assert np.mean(realised > alpha) == pytest.approx(0.38, abs=0.03)


def test_calibration_scores_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="1 of 3 calibration scores"):
        Conformal(0.1).fit(normal_scores([1.0, math.nan, 2.0]))


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 2])
def test_alpha_outside_zero_and_one_is_refused(alpha):
    with pytest.raises(ConfigError, match=r"threshold\.alpha"):
        compose_checked("run", [f"threshold.alpha={alpha}"])


@pytest.mark.parametrize("q", [0, 1.01])
def test_quantile_outside_zero_and_one_is_refused(q):
    with pytest.raises(ConfigError, match=r"threshold\.q"):
        compose_checked("run", ["threshold=quantile", f"threshold.q={q}"])


@pytest.mark.parametrize(
    ("q", "expected"), [(0.5, 49), (0.99, 98), (1, 99), (0.991, 99), (0.001, 0)]
)
def test_quantile_is_the_smallest_score_that_the_share_reaches(q, expected):
    fitted = Quantile(q).fit(normal_scores(np.random.default_rng(0).permutation(100)))
    assert fitted.image == expected
    assert fitted.attained == pytest.approx((100 - expected) / 101)


def test_the_oracle_threshold_reaches_the_best_f1_of_images_and_of_pixels():
    rng = np.random.default_rng(1)
    labels = np.arange(60) % 3 > 0
    scores = (rng.normal(size=60) + labels).astype(np.float32)
    pixel_truth = rng.random(2000) < 0.1
    pixels = ranking.rank((rng.normal(size=2000) + 2 * pixel_truth).astype(np.float32), pixel_truth)
    fitted = F1Oracle().fit_oracle(scores, labels, scores * 3, pixels)
    assert fitted.oracle
    alarm = torch.tensor(scores) > fitted.image
    assert decision_rates(alarm, labels)["test/f1"].item() == pytest.approx(
        reference.f1_max(scores.tolist(), labels.tolist())
    )
    assert fitted.pixel == ranking.f1_threshold(pixels)
    maskless = F1Oracle().fit_oracle(scores, labels, scores * 3, None)
    assert maskless.pixel == pytest.approx(3 * fitted.image, rel=1e-6)


def test_the_oracle_without_defects_is_a_clear_mistake():
    with pytest.raises(ConfigError, match="3 normal, 0 defective"):
        F1Oracle().fit_oracle([1.0, 2.0, 3.0], [0, 0, 0], [1.0, 2.0, 3.0], None)
    assert F1Oracle().fit(normal_scores([1.0])) is None


def test_nfa_decides_by_any_pixel_of_the_own_mask_and_needs_no_calibration():
    threshold = Nfa().fit(None)
    mask = torch.tensor([[[False, False]], [[True, False]]])
    prediction = Prediction(torch.zeros(2), torch.zeros(2, 1, 2), mask)
    assert threshold.decide(prediction).tolist() == [False, True]
    assert threshold.mask(prediction).tolist() == [[[False, False]], [[True, False]]]
    with pytest.raises(ConfigError, match="model=uflow"):
        threshold.decide(prediction._replace(mask=None))


def test_equal_to_the_threshold_is_not_an_alarm():
    threshold = Conformal(0.5).fit(normal_scores([0.1, 0.2, 0.3]))
    assert threshold.image == pytest.approx(0.2)
    prediction = Prediction(torch.tensor([0.2, 0.20001]), torch.full((2, 1, 1), 0.4))
    assert threshold.decide(prediction).tolist() == [False, True]
    assert not threshold.mask(prediction).any()


def test_a_threshold_survives_json():
    threshold = Conformal(0.1).fit(normal_scores(np.random.default_rng(0).normal(size=30)))
    assert Threshold.from_json(json.loads(json.dumps(threshold.to_json()))) == threshold
    with pytest.raises(SavedModelError, match="exactly the keys"):
        Threshold.from_json({"image": 1.0})


@pytest.mark.parametrize(
    ("name", "kind"),
    [("conformal", Conformal), ("quantile", Quantile), ("f1_oracle", F1Oracle), ("nfa", Nfa)],
)
def test_every_config_of_the_group_builds_its_rule(name, kind, request):
    path = request.config.rootpath / "conf" / "threshold" / f"{name}.yaml"
    rule = build_rule(OmegaConf.load(path))
    assert isinstance(rule, kind)
    assert rule.name == name
    assert rule.needs_labels == (name == "f1_oracle")
    assert rule.needs_own_mask == (name == "nfa")


def test_an_experiment_that_sets_alpha_does_not_forbid_other_rules():
    for name, options in (("Quantile", {"q": 0.9}), ("F1Oracle", {}), ("Nfa", {})):
        target = {"_target_": f"src.evaluation.threshold.{name}"}
        rule = build_rule(OmegaConf.create(target | options | {"alpha": 0.05}))
        assert type(rule).__name__ == name


def test_calibration_takes_each_image_once_and_its_highest_map_value():
    collected = CalibrationScores()
    maps = torch.arange(12.0).reshape(3, 2, 2)
    for index in ([4, 1, 4], [1, 4, 7]):
        batch = {"index": torch.tensor(index)}
        score = torch.tensor(index, dtype=torch.float32)
        collected.update(batch, Prediction(score, maps))
    assert collected.compute().tolist() == [[1, 3], [4, 7], [7, 11]]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_calibration_images_there_are_no_scores():
    assert CalibrationScores().compute().shape == (0, 2)
