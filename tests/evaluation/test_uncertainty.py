from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as referee

from src.evaluation import overlap, ranking, uncertainty
from src.evaluation.pixels import PixelStore
from src.evaluation.uncertainty import Interval
from tests import reference


def binormal(rng, auroc, normals, defects):
    """Scores and labels whose true AUROC is `auroc`."""
    labels = np.arange(normals + defects) >= normals
    shift = stats.norm.ppf(auroc) * math.sqrt(2)
    return rng.normal(size=labels.size) + shift * labels, labels


def coverage(auroc, normals, defects, rounds, seed=0):
    """Share of simulated test sets whose interval holds the true AUROC."""
    rng = np.random.default_rng(seed)
    held = 0
    for _ in range(rounds):
        scores, labels = binormal(rng, auroc, normals, defects)
        low, high = uncertainty.auroc_interval(ranking.auroc(scores, labels), defects, normals)
        held += low <= auroc <= high
    return held / rounds


def bootstrap_coverage(auroc, normals, defects, rounds, seed=0):
    rng = np.random.default_rng(seed)
    held = 0
    for _ in range(rounds):
        scores, labels = binormal(rng, auroc, normals, defects)
        weights = uncertainty.stratified_weights(labels, 400, rng)
        resampled = uncertainty.image_metrics(scores, labels, weights)["test/image_auroc"]
        low, high = uncertainty.percentile_interval(resampled)
        held += low <= auroc <= high
    return held / rounds


@pytest.mark.parametrize("auroc", [0.8, 0.99])
def test_the_auroc_interval_holds_the_truth_in_about_95_percent_of_test_sets(auroc):
    rounds = 300
    slack = 3 * math.sqrt(0.05 * 0.95 / rounds)
    assert 0.95 - slack <= coverage(auroc, 20, 63, rounds)


@pytest.mark.slow
@pytest.mark.parametrize("auroc", [0.5, 0.7, 0.9, 0.97, 0.99, 0.998])
@pytest.mark.parametrize(("normals", "defects"), [(20, 63), (12, 30), (60, 40), (58, 92)])
def test_coverage_of_the_auroc_interval_on_the_sizes_of_mvtec(auroc, normals, defects):
    rate = coverage(auroc, normals, defects, 3000)
    assert 0.93 <= rate <= 0.998


def test_the_percentile_bootstrap_is_too_narrow_near_one_which_is_why_it_is_not_used():
    assert bootstrap_coverage(0.99, 20, 63, 150) < 0.85
    assert bootstrap_coverage(0.75, 60, 60, 150) > 0.88


def test_a_perfect_separation_of_few_images_is_not_certain():
    low, high = uncertainty.auroc_interval(1.0, 63, 20)
    assert high == 1
    assert 0.9 < low < 0.97
    few = uncertainty.auroc_interval(1.0, 3, 3)
    assert few.low < low
    assert uncertainty.auroc_interval(0.0, 63, 20) == pytest.approx((1 - high, 1 - low))


def test_intervals_without_a_class_are_nan():
    for interval in (
        uncertainty.auroc_interval(math.nan, 0, 5),
        uncertainty.auroc_interval(0.5, 5, 0),
        uncertainty.rate_interval(0, 0),
        uncertainty.mean_interval([], []),
    ):
        assert all(math.isnan(limit) for limit in interval)
    weights = uncertainty.stratified_weights([0, 0], 10, np.random.default_rng(0))
    resampled = uncertainty.image_metrics([1.0, 2.0], [0, 0], weights)
    assert np.isnan(resampled["test/image_auroc"]).all()


def test_wilson_intervals_equal_those_of_scipy():
    for count, total in ((0, 5), (3, 7), (20, 20), (1, 1)):
        expected = stats.binomtest(count, total).proportion_ci(method="wilson")
        assert uncertainty.rate_interval(count, total) == pytest.approx(
            (expected.low, expected.high), abs=1e-12
        )


def test_every_resample_keeps_the_number_of_images_of_each_class():
    labels = np.array([0, 1, 1, 0, 1], dtype=bool)
    weights = uncertainty.stratified_weights(labels, 2000, np.random.default_rng(0))
    assert (weights[:, labels].sum(axis=1) == 3).all()
    assert (weights[:, ~labels].sum(axis=1) == 2).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.1)


def test_resampled_metrics_equal_the_metrics_of_the_repeated_images():
    rng = np.random.default_rng(1)
    labels = np.arange(15) % 3 > 0
    scores = np.round(rng.normal(size=15) + labels / 2)  # ties within and between the classes
    weights = uncertainty.stratified_weights(labels, 20, rng)
    ours = uncertainty.image_metrics(scores, labels, weights)
    for row, drawn in enumerate(weights):
        s, y = np.repeat(scores, drawn), np.repeat(labels, drawn)
        assert ours["test/image_auroc"][row] == pytest.approx(referee.roc_auc_score(y, s))
        assert ours["test/image_ap"][row] == pytest.approx(referee.average_precision_score(y, s))
        assert ours["test/image_f1_max"][row] == pytest.approx(
            reference.f1_max(s.tolist(), y.tolist())
        )


def test_the_bootstrap_distribution_is_that_of_naive_resampling():
    rng = np.random.default_rng(2)
    scores, labels = binormal(rng, 0.8, 12, 15)
    naive = reference.resampled_auroc(scores, labels, rng, 1500)
    weights = uncertainty.stratified_weights(labels, 4000, rng)
    ours = uncertainty.image_metrics(scores, labels, weights)["test/image_auroc"]
    assert ours.mean() == pytest.approx(naive.mean(), abs=0.01)
    assert ours.std() == pytest.approx(naive.std(), rel=0.1)
    assert stats.ks_2samp(ours, naive).pvalue > 1e-3


def pixel_images(rng, images, good, size=24, visible=2.0):
    """A store, maps and masks whose defects vary in visibility from image to image."""
    store, maps, masks = PixelStore(1), [], []
    for index in range(images):
        mask = np.zeros((size, size), dtype=bool)
        if index >= good:
            r, c = rng.integers(1, size - 8, size=2)
            mask[r : r + rng.integers(2, 8), c : c + rng.integers(2, 8)] = True
        anomaly_map = rng.normal(size=mask.shape) + rng.normal() * 0.3
        anomaly_map[mask] += rng.normal(visible, 0.35 * visible)
        maps.append(anomaly_map.astype(np.float32))
        masks.append(mask)
        store.add(index, maps[-1], mask)
    return store, np.array(maps), np.array(masks)


def test_resampled_pixel_metrics_equal_those_of_the_repeated_images_up_to_the_bins():
    rng = np.random.default_rng(4)
    store, maps, masks = pixel_images(rng, images=7, good=2)
    weights = uncertainty.stratified_weights(np.arange(7) >= 2, 4, rng)
    ours = uncertainty.pixel_metrics(store.histograms(1024), weights, {"aupro": 0.3})
    for row, drawn in enumerate(weights):
        chosen = np.repeat(np.arange(7), drawn)
        truth, flat = masks[chosen].ravel(), maps[chosen].ravel()
        assert ours["test/pixel_auroc"][row] == pytest.approx(
            referee.roc_auc_score(truth, flat), abs=3e-3
        )
        assert ours["test/pixel_ap"][row] == pytest.approx(
            referee.average_precision_score(truth, flat), abs=2e-2
        )
        repeated = PixelStore(1)
        for position, index in enumerate(chosen):
            repeated.add(position, maps[index], masks[index])
        exact = overlap.area_under_overlap(repeated.rank().regions, 0.3)
        assert ours["aupro"][row] == pytest.approx(exact, abs=5e-3)


def pixel_coverage(rounds, good, defective, visible=2.0, population=3000):
    """Shares of simulated test sets whose interval holds the truth: pixel AUROC and AUPRO."""
    rng, limits = np.random.default_rng(5), {"test/aupro": 0.3}
    big = pixel_images(rng, population, population // 3, visible=visible)[0].histograms(1024)
    truth = uncertainty.pixel_metrics(big, np.ones((1, population), dtype=np.int32), limits)
    held = {"test/pixel_auroc": 0, "test/aupro": 0}
    for _ in range(rounds):
        store, _, _ = pixel_images(rng, good + defective, good, visible=visible)
        found = uncertainty.pixel_intervals(store, limits, 300, int(rng.integers(2**31)))
        for key in held:
            held[key] += found[key].low <= truth[key][0] <= found[key].high
    return [count / rounds for count in held.values()]


def test_resampling_images_covers_pixel_metrics_although_pixels_depend_on_each_other():
    assert min(pixel_coverage(rounds=40, good=12, defective=30, population=600)) >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("visible", [2.0, 4.0])  # AUROC of about 0.89 and 0.98
@pytest.mark.parametrize(("good", "defective"), [(12, 30), (60, 20)])
def test_coverage_of_the_pixel_intervals_is_close_to_95_percent(good, defective, visible):
    for rate in pixel_coverage(400, good, defective, visible):
        assert 0.83 <= rate <= 0.995  # the percentile bootstrap had 0.75 to 0.93


def test_an_interval_of_a_metric_near_one_holds_its_value_and_stays_below_one():
    resampled = np.r_[0.995, np.random.default_rng(0).beta(200, 1, size=500)]
    low, high = uncertainty.logit_interval(resampled, 12)
    assert 0 < low < 0.995 < high < 1
    assert uncertainty.logit_interval(np.ones(50), 12) == pytest.approx((1, 1))
    assert math.isnan(uncertainty.logit_interval(resampled, 1).low)


def test_the_interval_of_a_mean_adds_distances_in_squares():
    pair = uncertainty.mean_interval([0.9, 0.7], [Interval(0.8, 0.95), Interval(0.6, 0.75)])
    assert pair == pytest.approx((0.8 - math.hypot(0.1, 0.1) / 2, 0.8 + math.hypot(0.05, 0.05) / 2))
    alone = uncertainty.mean_interval([0.9], [Interval(0.8, 0.95)])
    assert alone == pytest.approx((0.8, 0.95))


def test_the_interval_of_a_mean_over_categories_holds_the_true_mean():
    rng = np.random.default_rng(6)
    truths = [0.999, 0.99, 0.97, 0.9, 0.8]
    rounds, held = 200, 0
    for _ in range(rounds):
        values = [ranking.auroc(*binormal(rng, truth, 20, 40)) for truth in truths]
        limits = [uncertainty.auroc_interval(value, 40, 20) for value in values]
        low, high = uncertainty.mean_interval(values, limits)
        held += low <= np.mean(truths) <= high
    assert held / rounds >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / rounds)


def compare(first, second, labels, rng, resamples=500):
    weights = uncertainty.stratified_weights(labels, resamples, rng)
    a = uncertainty.image_metrics(first, labels, weights)["test/image_auroc"]
    b = uncertainty.image_metrics(second, labels, weights)["test/image_auroc"]
    observed = ranking.auroc(first, labels), ranking.auroc(second, labels)
    return uncertainty.paired_difference(a, b, observed)


def test_a_run_compared_with_itself_differs_by_nothing():
    rng = np.random.default_rng(0)
    scores, labels = binormal(rng, 0.9, 20, 40)
    assert compare(scores, scores, labels, rng) == (0, 0, 0, 1)


def test_pairing_finds_a_small_difference_that_separate_intervals_hide():
    rng = np.random.default_rng(3)
    scores, labels = binormal(rng, 0.85, 60, 90)
    better = scores + 0.25 * labels
    found = compare(scores, better, labels, rng)
    assert found.value > 0
    assert found.low > 0
    assert found.p_value < 0.01
    one = uncertainty.auroc_interval(ranking.auroc(scores, labels), 90, 60)
    two = uncertainty.auroc_interval(ranking.auroc(better, labels), 90, 60)
    assert one.high > two.low  # the separate intervals overlap


@pytest.mark.parametrize("auroc", [0.9, 0.99])  # near 1 the share is below 0.05, not above
def test_equally_good_runs_seldom_differ_significantly(auroc):
    rng = np.random.default_rng(8)
    rounds, significant = 200, 0
    for _ in range(rounds):
        shared, labels = binormal(rng, auroc, 30, 50)
        first, second = shared + 0.7 * rng.normal(size=(2, labels.size))
        significant += compare(first, second, labels, rng, 300).p_value < 0.05
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / rounds) if auroc < 0.95 else 0.05
    assert significant / rounds <= limit


def test_two_thousand_resamples_of_a_bottle_sized_set_take_well_under_a_second():
    rng = np.random.default_rng(0)
    scores, labels = binormal(rng, 0.95, 20, 63)
    began = time.process_time()
    uncertainty.image_metrics(scores, labels, uncertainty.stratified_weights(labels, 2000, rng))
    assert time.process_time() - began < 0.5


# --- DeLong -------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 2])
def test_delong_equals_its_definition_over_every_pair(levels):
    rng = np.random.default_rng(0)
    labels = rng.random(40) < 0.6
    scores = rng.normal(size=(3, 40)) + labels * np.array([[1.5], [0.7], [0.0]])
    scores[1] += scores[0]  # correlated, as two methods on the same images
    if levels:
        scores = np.round(scores * levels)
    areas, covariance = reference.delong(scores, labels)
    for contrast in ([1, 0, 0], [-1, 1, 0], [0.5, 0.5, -1]):
        found = uncertainty.delong(scores, labels, contrast)
        spread = math.sqrt(np.array(contrast) @ covariance @ np.array(contrast))
        assert found.value == pytest.approx(np.array(contrast) @ areas, abs=1e-12)
        assert (found.high - found.low) / 2 == pytest.approx(stats.norm.ppf(0.975) * spread)
        assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(found.value) / spread))


def test_delong_says_nothing_of_a_single_image_and_too_much_of_a_perfect_separation():
    assert all(map(math.isnan, uncertainty.delong([1.0, 2.0, 3.0], [0, 0, 1], [1])))
    scores, labels = np.arange(10.0), np.arange(10) > 4
    assert uncertainty.delong(scores, labels, [1])[:3] == (1, 1, 1)
    assert uncertainty.auroc_interval(1.0, 5, 5).low < 0.8  # what the run reports first
    assert uncertainty.delong([scores, scores + 1], labels, [-1, 1]) == (0, 0, 0, 1)


@pytest.mark.slow
def test_delong_rejects_one_in_twenty_equal_methods():
    rng, rejected = np.random.default_rng(0), 0
    labels = np.arange(120) % 2 > 0
    for _ in range(2000):
        shared = rng.normal(size=120) + labels
        first, second = (shared + rng.normal(size=120) for _ in range(2))
        rejected += uncertainty.delong([first, second], labels, [-1, 1]).p_value < 0.05
    assert 0.035 < rejected / 2000 < 0.065
