from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.ndimage import binary_erosion

from src.reporting import figures
from src.reporting.records import Box, Picture
from tests.reporting.pictures import SCALE, make_picture


def test_a_good_part_far_below_the_threshold_is_shown_untinted():
    picture = make_picture(defect=False)
    assert (figures.overlay(picture, SCALE) == picture.display).all()


def test_blending_follows_the_formula_of_alpha_over():
    display = np.full((2, 2, 3), 100, dtype=np.uint8)
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[...] = (200, 0, 50, 128)
    expected = np.array([200, 0, 50]) * (128 / 255) + 100 * (1 - 128 / 255)
    assert np.abs(figures.blend(display, rgba) - expected).max() <= 0.5


def test_outlines_equal_a_mask_minus_its_eroded_self():
    mask = np.random.default_rng(1).random((30, 40)) > 0.3
    mask[5:20, 8:30] = True
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    for width in (1, 2, 3):
        core = binary_erosion(mask, cross, iterations=width, border_value=1)
        assert (figures.outline(mask, width) == (mask & ~core)).all()


def test_the_outline_of_the_truth_is_white_and_stays_inside_the_mask():
    picture = make_picture()
    drawn = figures.draw_outline(picture.display, picture.mask, figures.TRUTH, 1)
    edge = figures.outline(picture.mask, 1)
    assert (drawn[edge] == 255).all()
    core = picture.mask & ~edge
    assert (drawn[core] == picture.display[core]).all()


def test_the_segmentation_of_the_model_wins_over_the_pixel_threshold():
    picture = make_picture()
    own = np.zeros((12, 16), dtype=bool)
    own[0, 0] = True
    with_own = Picture(picture.display, picture.anomaly_map, picture.mask, own)
    assert figures.segmentation(with_own, SCALE).sum() == 16  # one cell of 4 x 4 pixels
    assert figures.segmentation(picture, SCALE)[12, 20]


def test_agreement_counts_every_pixel_of_truth_and_prediction_once():
    picture = make_picture()
    drawn = figures.agreement(picture, SCALE)
    found, known = figures.segmentation(picture, SCALE), picture.mask
    for colour, where in (
        (figures.AGREE, found & known),
        (figures.MISSED, known & ~found),
        (figures.SURPLUS, found & ~known),
    ):
        assert (drawn == colour).all(axis=-1).sum() == where.sum()


def test_a_triptych_holds_the_untouched_input_and_fits_any_size():
    for height, width in ((48, 64), (1, 1), (17, 31), (300, 20)):
        picture = make_picture(height, width) if height == 48 else Picture(
            np.full((height, width, 3), 90, np.uint8), np.ones((3, 2), np.float32)
        )  # fmt: skip
        sheet = np.asarray(figures.triptych(picture, SCALE))
        assert (sheet[22 : 22 + height, 8 : 8 + width] == picture.display).all()


def test_a_contact_sheet_places_every_tile_in_reading_order():
    tiles = [np.full((10, 20, 3), 10 * k, dtype=np.uint8) for k in range(5)]
    sheet = figures.contact_sheet(tiles, [str(k) for k in range(5)], columns=3, tile_px=20)
    assert sheet.size == (3 * 28 + 8, 2 * 40)
    for k in range(5):
        assert sheet.getpixel((8 + 28 * (k % 3) + 10, 22 + 40 * (k // 3) + 5)) == (10 * k,) * 3


def test_a_crop_keeps_inside_the_picture_and_draws_the_box_where_it_is():
    picture = np.zeros((60, 80, 3), dtype=np.uint8)
    for box in (Box(0, 0, 8, 8), Box(52, 72, 60, 80), Box(20, 30, 28, 38)):
        view = np.asarray(figures.crop(picture, box, context=4.0, side=128))
        assert view.shape == (128, 128, 3)
        cyan = np.argwhere((view == figures.PREDICTION).all(axis=-1))
        length = cyan.max(axis=0) - cyan.min(axis=0) + 1
        assert np.abs(length - 32).max() <= 1  # 8 pixels, enlarged four times


def test_a_long_file_name_keeps_its_telling_end():
    sheet = figures.contact_sheet([np.zeros((4, 4, 3), np.uint8)], ["a/" * 200 + "9.png"], 1, 60)
    assert sheet.width == 76


def test_a_png_appears_complete_or_not_at_all(tmp_path):
    figures.save_png(make_picture().display, tmp_path / "deep" / "x.png")
    assert [each.name for each in (tmp_path / "deep").iterdir()] == ["x.png"]
    with Image.open(tmp_path / "deep" / "x.png") as image:
        assert image.size == (64, 48)


def test_the_colour_bar_shows_the_colour_of_each_end_and_of_the_threshold():
    bar = np.asarray(figures.colour_bar(SCALE, 200, 18)).astype(int)
    assert np.ptp(bar[1, 0]) == 0  # calm: plain grey
    assert bar[1, -1, 1] < 60 < bar[1, -1, 2]  # hottest: purple
