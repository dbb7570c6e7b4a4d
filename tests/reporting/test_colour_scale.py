from __future__ import annotations

import math

import numpy as np
import pytest

from src.reporting.colour_scale import ColourScale, resize_map, resize_mask

SCALE = ColourScale(low=0.0, threshold=1.0, high=3.0)


def test_the_threshold_is_the_middle_of_the_scale_whatever_the_ends():
    assert SCALE.position(np.array([0.0, 1.0, 3.0])).tolist() == [-1.0, 0.0, 1.0]
    assert SCALE.position(np.array([-9.0, 0.5, 2.0, 99.0])).tolist() == [-1.0, -0.5, 0.5, 1.0]


def test_the_same_value_has_the_same_colour_in_every_picture():
    quiet = np.array([[0.1, 0.2], [0.3, 2.0]])
    loud = np.array([[9.0, 2.0], [8.0, 7.0]])
    assert (SCALE.colours(quiet)[1, 1] == SCALE.colours(loud)[0, 1]).all()


def test_values_far_below_the_threshold_are_transparent_and_above_it_opacity_only_grows():
    values = np.linspace(0.0, 3.0, 400)
    opacity = SCALE.colours(values)[:, 3].astype(int)
    assert (opacity[values < 0.5] == 0).all()
    assert (np.diff(opacity) >= 0).all()
    assert opacity[-1] > 200


def test_above_the_threshold_luminance_falls_all_the_way_so_grey_print_keeps_the_order():
    rgb = SCALE.colours(np.linspace(1.001, 3.0, 400))[:, :3].astype(float)
    luminance = rgb @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) <= 0.3).all()  # 0.3: rounding to 8 bits
    assert luminance[0] - luminance[-1] > 150


def test_fit_ignores_values_that_are_not_numbers():
    maps = [np.array([[0.0, 1.0, np.nan]]), np.array([[np.inf, 2.0, 10.0]])]
    scale = ColourScale.fit(maps, 1.5)
    assert math.isfinite(scale.low) and math.isfinite(scale.high)
    assert scale.low < 1.5 < scale.high <= 10.0


def test_a_run_without_any_detection_still_has_an_ordered_scale():
    scale = ColourScale.fit([np.zeros((4, 4))], 7.0)
    assert scale.low < 7.0 < scale.high


@pytest.mark.parametrize("level", [0.0, 1e-30, -5.0, 1e12])
def test_constant_maps_at_the_threshold_do_not_divide_by_zero(level):
    scale = ColourScale.fit([np.full((3, 3), level)], level)
    assert scale.low < scale.threshold < scale.high
    assert np.isfinite(scale.position(np.full((2, 2), level))).all()


def test_no_maps_at_all_give_a_scale_too():
    assert ColourScale.fit([], 1.0).low < 1.0


def test_an_infinite_threshold_paints_nothing_hot_and_minus_infinity_everything():
    maps = [np.arange(12.0).reshape(3, 4)]
    assert (ColourScale.fit(maps, math.inf).position(maps[0]) <= 0).all()
    assert (ColourScale.fit(maps, math.nan).position(maps[0]) <= 0).all()
    assert (ColourScale.fit(maps, -math.inf).position(maps[0]) >= 0).all()


def test_a_value_that_is_not_a_number_is_painted_hottest():
    assert SCALE.position(np.array([np.nan]))[0] == 1.0


def test_enlarging_a_map_keeps_the_place_of_its_peak_to_half_a_pixel():
    values = np.zeros((8, 8), dtype=np.float32)
    values[2, 5] = 1.0
    big = resize_map(values, 64, 64)
    rows, columns = np.mgrid[:64, :64]
    centre = ((big * rows).sum() / big.sum(), (big * columns).sum() / big.sum())
    assert centre == pytest.approx((19.5, 43.5), abs=0.01)  # (2 + 0.5) * 8 - 0.5


def test_resizing_a_mask_by_a_whole_factor_repeats_its_pixels():
    mask = np.random.default_rng(0).random((5, 7)) > 0.5
    assert (resize_mask(mask, 15, 21) == np.kron(mask, np.ones((3, 3), dtype=bool))).all()
