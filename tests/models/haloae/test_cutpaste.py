from __future__ import annotations

import dataclasses

import pytest
import torch
import torchvision.transforms.functional as TF
from torch import Tensor

from src.models.haloae.cutpaste import (
    Jitter,
    Pieces,
    cut_and_paste,
    draw_rectangles,
    draw_scars,
    jitter,
    paste,
    views,
)
from src.models.haloae.options import CutPasteMode, CutPasteOptions

PUBLISHED = CutPasteOptions(
    mode=CutPasteMode["3way"],
    jitter=0.1,
    area=(0.02, 0.15),
    aspect=0.3,
    scar_width=(2, 16),
    scar_height=(10, 25),
    rotation=(-45, 45),
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(count: int = 4, side: int = 64) -> Tensor:
    return torch.rand(count, 3, side, side, generator=seeded(7))


def changed(before: Tensor, after: Tensor) -> Tensor:
    return (before != after).any(1)  # (B, H, W)


def test_the_original_is_untouched_when_jitter_is_off():
    image = photos()
    kept = image.clone()
    quiet = dataclasses.replace(PUBLISHED, jitter=None)
    original, *_ = views(image, quiet, seeded())
    assert torch.equal(original, kept)
    assert torch.equal(image, kept)  # and nothing is written in place


def test_three_views_share_their_background():
    original, normal, scar = views(photos(16, 128), PUBLISHED, seeded())
    for pasted, most in ((normal, 0.16), (scar, 0.03)):
        share = changed(original, pasted).float().mean((1, 2))
        assert bool((share > 0).all())
        assert bool((share < most).all())


def test_rectangles_cover_two_to_fifteen_percent_and_lie_inside():
    pieces = draw_rectangles(4000, (256, 256), PUBLISHED, seeded())
    share = pieces.width * pieces.height / 256**2
    assert 0.0195 < share.min() < 0.0205
    assert 0.148 < share.max() < 0.152  # sides are rounded
    assert share.mean() == pytest.approx(0.085, abs=0.002)
    assert min(pieces.width.min(), pieces.height.min()) >= 20
    assert max(pieces.width.max(), pieces.height.max()) <= 181  # sqrt(0.15 * 256² / 0.3)
    for start, size in (
        (pieces.from_x, pieces.width),
        (pieces.from_y, pieces.height),
        (pieces.centre_x - pieces.width / 2, pieces.width),
        (pieces.centre_y - pieces.height / 2, pieces.height),
    ):
        assert start.min() >= 0
        assert (start + size).max() <= 256
    assert pieces.from_x.unique().numel() > 150  # corners are spread over the image


def test_the_changed_area_of_a_rectangle_is_the_drawn_one():
    image = photos(32, 128)
    quiet = dataclasses.replace(PUBLISHED, jitter=None)
    pieces = draw_rectangles(32, (128, 128), quiet, seeded(3))
    area = changed(image, paste(image, pieces, None)).sum((1, 2))
    moved = (pieces.from_x != pieces.centre_x - pieces.width / 2) | (
        pieces.from_y != pieces.centre_y - pieces.height / 2
    )
    assert torch.equal(area[moved].float(), (pieces.width * pieces.height)[moved])


def test_a_pasted_rectangle_is_an_exact_copy_of_its_source():
    image = photos(1)
    pieces = Pieces(*(torch.tensor([float(v)]) for v in (10, 6, 3, 40, 30, 13, 0)))
    out = paste(image, pieces, None)
    assert torch.equal(out[0, :, 10:16, 25:35], image[0, :, 40:46, 3:13])


def test_a_scar_turned_by_ninety_degrees_is_the_turned_copy():
    image = photos(1)
    pieces = Pieces(*(torch.tensor([float(v)]) for v in (4, 12, 50, 20, 30, 20, 90)))
    out = paste(image, pieces, None)
    turned = image[0, :, 20:32, 50:54].rot90(1, (1, 2))  # counter-clockwise, (3, 4, 12)
    assert torch.equal(out[0, :, 18:22, 24:36], turned)


def test_scars_stay_within_their_rotated_box():
    quiet = dataclasses.replace(PUBLISHED, jitter=None)
    image = photos(200, 96)
    pieces = draw_scars(200, (96, 96), quiet, seeded())
    assert pieces.width.min() >= 2
    assert pieces.width.max() <= 16
    assert pieces.height.min() >= 10
    assert pieces.height.max() <= 25
    assert pieces.angle.abs().max() <= 45
    where = changed(image, paste(image, pieces, None))
    area = where.sum((1, 2)).float()
    assert (area - pieces.width * pieces.height).abs().max() < 30  # nearest-pixel edges
    for mask, width, height in zip(where, pieces.width, pieces.height, strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        diagonal = float((width**2 + height**2).sqrt()) + 1
        assert int(rows.max() - rows.min()) <= diagonal
        assert int(columns.max() - columns.min()) <= diagonal


def test_the_same_seed_gives_the_same_views_and_another_seed_others():
    one = views(photos(), PUBLISHED, seeded(1))
    again = views(photos(), PUBLISHED, seeded(1))
    other = views(photos(), PUBLISHED, seeded(2))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("mode", "count"), [("3way", 3), ("normal", 2), ("scar", 2), ("union", 2)])
def test_each_mode_gives_its_number_of_views(mode, count):
    shown = views(photos(), dataclasses.replace(PUBLISHED, mode=mode), seeded())
    assert len(shown) == count
    for view in shown:
        assert view.shape == (4, 3, 64, 64)
        assert 0 <= float(view.min()) <= float(view.max()) <= 1


def test_union_mixes_rectangles_and_scars():
    mode = dataclasses.replace(PUBLISHED, mode="union")
    original, pasted = views(photos(64, 128), mode, seeded())
    share = changed(original, pasted).float().mean((1, 2))
    assert 16 < int((share > 0.0199).sum()) < 48


def test_images_that_are_not_square_are_pasted_inside():
    image = torch.rand(8, 3, 48, 96, generator=seeded())
    for mode in ("normal", "scar"):
        out = cut_and_paste(image, mode, PUBLISHED, seeded())
        assert bool(changed(image, out).flatten(1).any(1).all())


@pytest.mark.parametrize(
    ("change", "factor", "pillow"),
    [
        (0, 1.1, TF.adjust_brightness),
        (1, 0.9, TF.adjust_contrast),
        (2, 1.1, TF.adjust_saturation),
        (3, 0.1, TF.adjust_hue),
    ],
)
def test_colour_changes_equal_those_of_torchvision(change, factor, pillow):
    image = photos(2)
    factors = [torch.ones(2), torch.ones(2), torch.ones(2), torch.zeros(2)]
    factors[change] = torch.full((2,), factor)
    out = jitter(image, Jitter(*factors, order=(change,)))
    assert (out - pillow(image, factor)).abs().max() < 2e-3
    every = jitter(image, Jitter(*factors, order=(3, 1, 0, 2)))
    assert (every - pillow(image, factor)).abs().max() < 2e-3


def test_contrast_of_a_piece_pivots_on_the_grey_of_the_piece_alone():
    image = photos(1)
    image[:, :, :, 32:] = 0.0
    region = torch.zeros(1, 64, 64, dtype=torch.bool)
    region[:, :, :32] = True
    half = torch.full((1,), 0.5)
    one = torch.ones(1)
    out = jitter(image, Jitter(one, half, one, one * 0, order=(1,)), region=region)
    expected = TF.adjust_contrast(image[..., :32], 0.5)
    assert (out[..., :32] - expected).abs().max() < 2e-3
