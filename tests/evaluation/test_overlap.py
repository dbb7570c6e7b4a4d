from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as referee

from src.errors import DataError
from src.evaluation import overlap, pixels, ranking
from tests import reference


def draw(seed, images=4, size=(7, 9), levels=None, good=1):
    """Random maps with blobs as masks; the last `good` images are normal."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(images, *size)).astype(np.float32)
    masks = np.zeros((images, *size), dtype=bool)
    for mask in masks[: images - good]:
        for _ in range(rng.integers(1, 4)):
            r, c = rng.integers(0, size[0] - 2), rng.integers(0, size[1] - 2)
            mask[r : r + rng.integers(1, 4), c : c + rng.integers(1, 4)] = True
    maps[masks] += 1.0
    if levels:
        maps = np.round(maps * levels).astype(np.float32)
    return maps, masks


def stored(maps, masks, memory_gb=1.0):
    store = pixels.PixelStore(memory_gb)
    for index, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
        store.add(index, anomaly_map, mask)
    return store


@pytest.mark.parametrize("levels", [None, 2, 1])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_aupro_equals_flood_fill_and_trapezoids_over_every_threshold(seed, limit, levels):
    maps, masks = draw(seed, levels=levels)
    table = stored(maps, masks).rank()
    assert overlap.area_under_overlap(table.regions, limit) == pytest.approx(
        reference.aupro(maps, masks, limit), abs=1e-12
    )
    assert overlap.area_under_overlap(table.regions_inside, limit) == pytest.approx(
        reference.aupro(maps, masks, limit, anomaly_only=True), abs=1e-12
    )


def test_the_drawn_pro_curve_is_the_one_of_the_definition():
    maps, masks = draw(11, levels=2)
    drawn = overlap.overlap_curve(stored(maps, masks).rank().regions, 1.0)
    points = reference.pro_curve(maps, masks)
    for limit in (0.01, 0.2, 0.77, 1.0):
        area = reference.area_up_to(list(zip(drawn.x, drawn.y, strict=True)), limit)
        assert area == pytest.approx(reference.area_up_to(points, limit), abs=1e-12)


def test_aupro_of_a_perfect_map_is_one_and_of_an_inverted_map_zero():
    _, masks = draw(0)
    perfect = stored(masks.astype(np.float32), masks).rank().regions
    inverted = stored(-masks.astype(np.float32), masks).rank().regions
    for limit in (0.05, 0.3):
        assert overlap.area_under_overlap(perfect, limit) == 1
        assert overlap.area_under_overlap(inverted, limit) == 0


def test_a_constant_map_has_half_the_area_of_the_limit():
    _, masks = draw(0)
    table = stored(np.ones_like(masks, dtype=np.float32), masks).rank().regions
    assert overlap.area_under_overlap(table, 0.3) == pytest.approx(0.15)  # the diagonal, scaled
    assert overlap.area_under_overlap(table, 1.0) == pytest.approx(0.5)


def test_every_region_weighs_the_same_whatever_its_size():
    mask = np.zeros((1, 20, 20), dtype=bool)
    mask[0, 0, 0] = True  # one pixel
    mask[0, 5:15, 5:15] = True  # a hundred
    anomaly_map = np.where(mask, 2.0, 1.0).astype(np.float32)
    anomaly_map[0, 0, 0] = 0.0  # the small one is missed
    table = stored(anomaly_map, mask).rank()
    assert overlap.area_under_overlap(table.regions, 0.3) == pytest.approx(0.5)
    assert ranking.area_under_roc(table.pixels) == pytest.approx(100 / 101)


def test_regions_touching_at_a_corner_are_one():
    mask = np.eye(5, dtype=bool)
    assert pixels.region_sizes(mask).tolist() == [5] * 5
    assert len(reference.flood_regions(mask)) == 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([None, 1, 3]))
def test_pixel_auroc_and_ap_equal_scikit_learn_on_all_pixels(seed, levels):
    maps, masks = draw(seed, levels=levels)
    table = stored(maps, masks).rank()
    flat, truth = maps.ravel(), masks.ravel()
    assert ranking.area_under_roc(table.pixels) == pytest.approx(referee.roc_auc_score(truth, flat))
    assert ranking.area_under_precision(table.pixels) == pytest.approx(
        referee.average_precision_score(truth, flat)
    )
    alone = ranking.rank(flat, truth)
    assert ranking.f1_max(table.pixels) == pytest.approx(ranking.f1_max(alone))
    assert ranking.f1_threshold(table.pixels) == pytest.approx(ranking.f1_threshold(alone))
    has_defect = masks.any(axis=(1, 2))
    assert ranking.area_under_roc(table.pixels_inside) == pytest.approx(
        referee.roc_auc_score(masks[has_defect].ravel(), maps[has_defect].ravel())
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [None, 2])
def test_the_best_mean_iou_equals_trying_every_threshold(seed, levels):
    maps, masks = draw(seed, images=5, good=seed % 3, levels=levels)
    store = stored(maps, masks)
    best = overlap.best_mean_iou(store)
    assert best == pytest.approx(reference.best_mean_iou(maps, masks), abs=1e-12)


def test_the_best_mean_iou_search_opens_brackets_on_larger_maps():
    maps, masks = draw(5, images=3, size=(60, 60), good=1)
    masks[0, 10:50, 10:50] = True
    maps[0, 10:50, 10:50] += 1
    store = stored(maps, masks)
    values = store.rank().pixels.value
    assert values.size > 3 * overlap._BRACKETS
    tp, fp = store.counts_from(values)
    everything = overlap.image_ious(tp, fp, store.defects[:, None]).mean(axis=0).max()
    assert overlap.best_mean_iou(store) == pytest.approx(everything, abs=1e-15)


@pytest.mark.parametrize("threshold", [-9.0, 0.0, 0.3, 1.0, 9.0])
@pytest.mark.parametrize("levels", [None, 1])
def test_iou_at_a_threshold_is_strictly_above_and_averaged_per_image(threshold, levels):
    maps, masks = draw(3, levels=levels)
    store = stored(maps, masks)
    tp, fp = store.counts_above(threshold)
    ours = overlap.image_ious(tp, fp, store.defects)
    assert ours.mean() == pytest.approx(reference.mean_iou(maps, masks, threshold), abs=1e-12)


def test_a_silent_detector_scores_the_share_of_good_images():
    maps, masks = draw(0, images=4, good=2)
    store = stored(maps, masks)
    tp, fp = store.counts_above(1e9)
    assert overlap.image_ious(tp, fp, store.defects).mean() == 0.5


@pytest.mark.parametrize("threshold", [0.1, -0.1, 0.0, 1e-46, -1e-46, 1e39, -1e39, math.inf])
def test_strictly_above_means_the_same_for_float32_scores_as_in_float64(threshold):
    near = np.float32(min(max(threshold, -3e38), 3e38))
    scores = np.array([near, np.nextafter(near, np.float32(-9)), np.nextafter(near, np.float32(9))])
    expected = scores.astype(np.float64) > threshold
    assert (scores >= pixels.first_above(threshold)).tolist() == expected.tolist()


def test_spooling_to_disk_changes_no_number():
    maps, masks = draw(2, images=6, size=(16, 16), good=2)
    kept, spooled = stored(maps, masks), stored(maps, masks, memory_gb=1500 / 2**30)
    assert spooled.spool is not None
    assert kept.spool is None
    for ours, theirs in zip(kept.rank(), spooled.rank(), strict=True):
        for a, b in zip(vars(ours).values(), vars(theirs).values(), strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(kept.histograms(16), spooled.histograms(16), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(kept.counts_above(0.5), spooled.counts_above(0.5))


def test_sorting_in_several_runs_changes_no_number(monkeypatch):
    maps, masks = draw(2, images=6, size=(16, 16), good=2, levels=3)
    whole = stored(maps, masks).rank()
    monkeypatch.setattr(pixels, "RUN_LENGTH", 300)
    for ours, theirs in zip(whole, stored(maps, masks).rank(), strict=True):
        for a, b in zip(vars(ours).values(), vars(theirs).values(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_histograms_keep_all_pixels_and_nearly_all_of_the_auroc():
    maps, masks = draw(8, images=8, size=(40, 40), good=3)
    store = stored(maps, masks)
    binned = store.histograms(128)
    assert (binned.defect.sum(1) + binned.normal.sum(1) == 1600).all()
    assert binned.region.sum() == pytest.approx(sum(len(reference.flood_regions(m)) for m in masks))
    above = np.cumsum(binned.normal.sum(0)) - binned.normal.sum(0) / 2
    area = 1 - (binned.defect.sum(0) * above).sum() / binned.defect.sum() / binned.normal.sum()
    assert area == pytest.approx(ranking.area_under_roc(store.rank().pixels), abs=1 / 128)


def test_without_defects_or_without_normal_pixels_pixel_metrics_are_nan():
    maps, masks = draw(0, images=2, good=2)
    table = stored(maps, masks).rank()
    assert math.isnan(overlap.area_under_overlap(table.regions, 0.3))
    assert math.isnan(ranking.area_under_roc(table.pixels))
    everything = stored(maps, np.ones_like(masks)).rank()
    assert math.isnan(overlap.area_under_overlap(everything.regions, 0.3))
    assert math.isnan(overlap.area_under_overlap(pixels.PixelStore(1).rank().regions, 0.3))


def test_a_map_that_is_not_finite_is_refused_with_its_image():
    store = pixels.PixelStore(1)
    with pytest.raises(DataError, match="1 of 4 map values of image 7 are not finite"):
        store.add(7, np.array([[0, np.nan], [1, 2]], np.float32), np.zeros((2, 2), bool))


@pytest.mark.slow
def test_all_pixel_metrics_of_a_bottle_sized_set_take_about_a_second():
    maps, masks = draw(1, images=83, size=(256, 256), good=20)
    began = time.process_time()
    store = stored(maps, masks)
    table = store.rank()
    ranking.area_under_roc(table.pixels)
    ranking.area_under_precision(table.pixels)
    ranking.f1_max(table.pixels)
    overlap.area_under_overlap(table.regions, 0.3)
    overlap.area_under_overlap(table.regions, 0.05)
    overlap.best_mean_iou(store)
    assert time.process_time() - began < 5  # about 1 s where it was measured
