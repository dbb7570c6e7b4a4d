from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as referee

from src.data.images import Region
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


# --- sPRO ---------------------------------------------------------------------------------------


def some_regions(masks, seed):
    """Of each image: parts of its mask that overlap, with a saturation area; None for the last."""
    rng = np.random.default_rng(seed)
    regions = []
    for mask in masks:
        own = []
        for _ in range(2):
            part = mask & (rng.random(mask.shape) < 0.7)
            if part.any():
                own.append(Region(part, rng.uniform(0.5, part.sum() + 2)))
        own.append(Region(mask & ~np.logical_or.reduce([r.pixels for r in own] or [~mask]), 2))
        regions.append([r for r in own if r.pixels.any()])
    regions[1] = None
    return regions


def saturated(maps, masks, regions):
    store = pixels.PixelStore(1)
    for index, (scores, mask, own) in enumerate(zip(maps, masks, regions, strict=True)):
        weights = None if own is None else pixels.saturating_weights(scores, mask, own)
        store.add(index, scores, mask, None, weights)
    return store


@pytest.mark.parametrize("levels", [None, 1])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_auspro_equals_its_definition_over_every_threshold(seed, limit, levels):
    maps, masks = draw(seed, levels=levels)
    regions = some_regions(masks, seed)
    store = saturated(maps, masks, regions)
    points = reference.spro_curve(maps, masks, regions)
    assert store.saturates
    assert overlap.area_under_overlap(store.rank().saturated, limit) == pytest.approx(
        reference.area_up_to(points, limit), abs=1e-12
    )
    assert overlap.area_under_overlap(store.rank().regions, limit) == pytest.approx(
        reference.aupro(maps, masks, limit), abs=1e-12
    )


def test_one_object_of_the_places_where_it_may_lie_is_enough():
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True  # two places of 5 x 10, one of them found
    found = np.zeros((20, 20), dtype=np.float32)
    found[5:10, 5:15] = 1
    one = saturated([found], [mask], [[Region(mask, 50)]]).rank()
    assert overlap.area_under_overlap(one.saturated, 0.05) == 1
    assert overlap.area_under_overlap(one.regions, 0.05) == pytest.approx(0.5, abs=0.02)


def test_without_saturation_areas_spro_is_pro():
    maps, masks = draw(3)
    store = stored(maps, masks)
    table = store.rank()
    assert not store.saturates
    assert np.array_equal(table.saturated.hits, table.regions.hits)
    threshold = store.counts_above(0.5)
    assert "test/auspro" not in overlap.pixel_metrics(store, *threshold, {"test/aupro": 0.3})
    told = saturated(maps, masks, some_regions(masks, 3))
    got = overlap.pixel_metrics(told, *threshold, {"test/aupro": 0.3, "test/aupro_05": 0.05})
    assert got["test/auspro_05"] != got["test/aupro_05"]


# --- AUPIMO -------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 6])
@pytest.mark.parametrize("bounds", [(0.01, 0.1), (0.004, 0.5), (0.02, 0.03)])
@pytest.mark.parametrize("seed", range(4))
def test_aupimo_equals_its_definition_over_every_threshold(seed, bounds, levels):
    maps, masks = draw(seed, images=7, size=(9, 13), levels=levels, good=3)
    found = overlap.image_overlaps(stored(maps, masks), bounds)
    truth = np.array(reference.aupimo(maps, masks, *bounds))
    assert found == pytest.approx(truth, abs=1e-12, nan_ok=True)
    assert np.isnan(found[4:]).all()
    if levels is None:
        assert np.isfinite(found[:4]).all()


def test_good_images_of_several_sizes_weigh_the_same():
    maps, masks = draw(5, images=4, size=(9, 13), good=2)
    maps, masks = list(maps), list(masks)
    maps[3], masks[3] = maps[3][:4, :5], masks[3][:4, :5]
    found = overlap.image_overlaps(stored(maps, masks), (0.05, 0.2))
    truth = np.array(reference.aupimo(maps, masks, 0.05, 0.2))
    assert found == pytest.approx(truth, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("good", "tied", "why"),
    [
        (0, False, "no good image"),
        (2, False, "1 of 234 pixels is above the bound"),
        (2, True, "tie"),
    ],
)
def test_aupimo_is_undefined_where_no_threshold_reaches_its_lower_bound(good, tied, why):
    maps, masks = draw(0, images=4, size=(9, 13), good=good)
    if tied:
        maps = np.minimum(maps, 0)
    bounds = (1e-2, 1e-1) if tied or not good else (1e-3, 1e-1)
    store = stored(maps, masks)
    assert np.isnan(overlap.image_overlaps(store, bounds)).all(), why
    got = overlap.pixel_metrics(store, *store.counts_above(0.5), {})
    assert math.isnan(got["test/aupimo"])
    assert math.isnan(got["test/aupimo_p10"])


def test_aupimo_of_a_perfect_map_is_one_and_of_a_blind_one_zero():
    _, masks = draw(0, images=5, size=(9, 13), good=2)
    noise = np.random.default_rng(0).random(masks.shape).astype(np.float32)
    for shown, value in ((2.0, 1.0), (-2.0, 0.0)):
        found = overlap.image_overlaps(stored(noise + shown * masks, masks), (0.01, 0.1))
        assert found[:3] == pytest.approx(value, abs=1e-12)


def maps_with_blobs(images=16, good=8, side=160):
    rng = np.random.default_rng(1)
    maps = rng.gamma(2.0, size=(images, side, side)).astype(np.float32)
    masks = np.zeros(maps.shape, dtype=bool)
    for image in range(images - good):
        r, c = rng.integers(0, side - 30, size=2)
        masks[image, r : r + 20, c : c + 25] = True
    maps[masks] += rng.normal(7, 4, size=masks.sum())
    return maps, masks


def test_aupimo_is_that_of_anomalib():
    peer = pytest.importorskip(
        "anomalib.metrics.pimo.functional",
        reason="pip install -r tests/bench/peers/requirements.txt",
    )
    maps, masks = maps_with_blobs()
    pixels = 8 * 160 * 160
    # theirs takes the nearest of 300 000 even thresholds to each bound, so give it some that exist
    bounds = (50 / pixels, 2000 / pixels)
    *_, theirs, _ = peer.aupimo_scores(
        torch.from_numpy(maps), torch.from_numpy(masks), fpr_bounds=bounds, force=True
    )
    ours = overlap.image_overlaps(stored(maps, masks), bounds)
    bad = masks.any(axis=(1, 2))
    assert ours[bad] == pytest.approx(theirs.numpy()[bad], abs=1e-3)
    assert 0.2 < ours[bad].mean() < 0.95
