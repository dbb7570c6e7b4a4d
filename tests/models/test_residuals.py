"""Residuals against what normal images leave: statistics by hand, and the floor built on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from src.composing import compose
from src.errors import ConfigError
from src.models.build import build_model
from src.models.map_options import MapOptions, ResidualOptions
from src.models.pixel_statistics.module import PixelStatistics
from src.models.residuals import (
    Moments,
    PositionScale,
    ResidualStatistics,
    blurred,
    image_score,
)
from src.models.uflow.positions import LatentPositions

SIDE = 16


def drawn(count, channels=3, side=SIDE, seed=0):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def batches(images):
    return [{"image": part} for part in images.split(3)]


@pytest.mark.parametrize("dims", [(0,), (0, 2, 3)])
def test_moments_of_batches_are_those_of_all_values(dims):
    values, moments = drawn(10) * 2 + 5, Moments(*dims)
    for part in values.split(3):
        moments.add(part)
    mean, spread = moments.result()
    assert np.allclose(mean, values.double().numpy().mean(dims))
    assert np.allclose(spread, values.double().numpy().std(dims))


def test_normal_values_become_mean_0_and_spread_1_at_each_place():
    values = drawn(50) * torch.linspace(0.1, 9, SIDE) + 3
    scale = PositionScale((3, SIDE, SIDE))
    scale.fit(values.split(7))
    found = scale(values)
    assert found.mean(0).abs().max() < 1e-4
    assert (found.std(0, correction=0) - 1).abs().max() < 1e-4


def test_a_shared_variance_lies_between_the_place_and_all_places():
    values = drawn(50) * torch.linspace(0.1, 9, SIDE)
    own = values.double().var(0, correction=0)
    scale = PositionScale((3, SIDE, SIDE), shared=0.25)
    scale.fit([values])
    expected = 0.75 * own + 0.25 * own.mean((1, 2), keepdim=True)
    assert torch.allclose(scale.spread.double().square(), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["none", "position", "position_channel"])
def test_maps_equal_the_steps_done_by_hand(kind):
    normal, new = drawn(30), drawn(4, seed=1)
    statistics = ResidualStatistics(3, (SIDE, SIDE), ResidualOptions("max", 0.1, kind, 0.0, 0.5))
    statistics.fit(normal.split(8))
    if kind == "position_channel":
        far = (new - normal.mean(0)).abs() / (normal.std(0, correction=0) + 0.5)
        expected = far.amax(1)
    else:
        size, sizes = new.abs().mean(1), normal.abs().mean(1)
        expected = size
        if kind == "position":
            expected = (size - sizes.mean(0)) / (sizes.std(0, correction=0) + 0.5)
    assert torch.allclose(statistics(new), expected, atol=1e-5)


def test_a_blur_keeps_the_mean_and_zero_leaves_maps_alone():
    maps = torch.rand(1, 2, 40, 40)
    assert blurred(maps, 0.0) is maps
    flat = blurred(torch.full((1, 1, 40, 40), 3.0), 4.0)
    assert torch.allclose(flat, torch.full_like(flat, 3.0))
    assert blurred(maps, 2.0).std() < maps.std() / 3


@pytest.mark.parametrize(("score", "expected"), [("mean", 49.5), ("max", 99.0), ("top", 97.0)])
def test_image_scores_of_a_known_map(score, expected):
    ramp = torch.arange(100.0).view(1, 10, 10)
    assert image_score(ramp, MapOptions(score, 0.05)).item() == expected


def test_latents_and_energies_of_normal_images_are_standard_at_every_place():
    shapes = [(8, 4, 4), (12, 2, 2)]
    normal = [torch.randn(60, *s) * torch.rand(s) + torch.rand(s) for s in shapes]
    positions = LatentPositions(shapes)
    positions.fit(lambda: zip(*(z.split(16) for z in normal), strict=True))
    standard = positions(normal)
    assert all(z.mean(0).abs().max() < 1e-4 for z in standard)
    calm = positions.scale_maps(standard, (8, 8))
    assert calm.shape == (60, 2, 8, 8)
    assert abs(calm.mean()) < 0.05
    odd = [z[:1].clone() for z in normal]
    odd[0][:, :, 1, 2] += 20
    shown = positions.scale_maps(positions(odd), (8, 8))[0, 0]
    row, column = divmod(int(shown.argmax()), 8)
    assert row in (2, 3)
    assert column in (4, 5)


# --- pixel statistics ----------------------------------------------------------------------------


def floor(*words):
    cfg = compose("run", ["model=pixel_statistics", "data=synthetic", "model.blur=0", *words])
    return build_model(cfg, (SIDE, SIDE))


def test_the_floor_finds_a_pixel_that_is_unusual_for_its_place():
    normal = drawn(40) * 0.1 + torch.linspace(-1, 1, SIDE)
    model = floor()
    model.after_fit(batches(normal))
    new = normal[:2].clone()
    new[1, :, 5, 2] = 1.0  # usual at the right border, not at the left
    found = model(new)
    assert found.anomaly_map.shape == (2, SIDE, SIDE)
    assert found.score[1] > 3 * found.score[0]
    assert divmod(int(found.anomaly_map[1].argmax()), SIDE) == (5, 2)


def test_held_out_scores_are_those_of_statistics_without_the_image():
    normal = drawn(9)
    model = floor()
    model.after_fit(batches(normal))
    scores = model.held_out_scores()
    for left in range(9):
        others = torch.cat([normal[:left], normal[left + 1 :]])
        twin = floor()
        twin.after_fit(batches(others))
        found = twin(normal[left : left + 1])
        assert scores.image[left].item() == pytest.approx(found.score.item(), rel=1e-3)
    assert len(scores.map_max) == 9


def test_a_saved_floor_predicts_the_same(tmp_path):
    model = floor()
    model.after_fit(batches(drawn(12)))
    model.save(tmp_path)
    other = floor()
    other.load(tmp_path)
    new = drawn(3, seed=2)
    assert torch.equal(other(new).anomaly_map, model(new).anomaly_map)
    assert torch.equal(other.held_out_scores().image, model.held_out_scores().image)


def test_the_floor_has_no_use_for_a_backbone():
    options = floor().options
    with pytest.raises(ConfigError, match=r"Pixel statistics learns from pixels"):
        PixelStatistics(torch.nn.Identity(), (SIDE, SIDE), options)
