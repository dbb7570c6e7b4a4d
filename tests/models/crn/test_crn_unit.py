from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from src.errors import ConfigError
from src.models.crn.unit import CompetitiveUnit, count_levels
from tests.reference_crn import recursive_unit

# Counted on the official code, for 32, 64, 128 and 256 px.
COUNTS = {
    ("upsample", "batch"): [12412928, 21327872, 30242816, 39157760],
    ("upsample", "instance"): [12411651, 21325571, 30239491, 39153411],
    ("upsample", "none"): [12409216, 21322112, 30235008, 39147904],
    ("transposed", "batch"): [16659075, 29244035, 41828995, 54413955],
    ("transposed", "instance"): [16657795, 29241731, 41825667, 54409603],
}


def unit(levels=5, base=8, norm="batch", decoder="upsample", dropout=False):
    return CompetitiveUnit(levels, base, norm, decoder, dropout)


@pytest.mark.parametrize(("decoder", "norm"), COUNTS)
def test_parameter_counts_equal_the_official_ones(decoder, norm):
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in unit(levels, 64, norm, decoder).parameters())
            for levels in (5, 6, 7, 8)
        ]
    assert counts == COUNTS[decoder, norm]


@pytest.mark.parametrize(("levels", "tensors"), [(5, 24), (6, 30), (7, 36), (8, 42)])
def test_a_level_adds_six_parameter_tensors(levels, tensors):
    assert len(list(unit(levels, 1).parameters())) == tensors


@pytest.mark.parametrize(("side", "levels"), [(32, 5), (64, 6), (128, 7), (256, 8), (512, 8)])
def test_levels_follow_from_the_image_side(side, levels):
    assert count_levels((side, side), 8) == levels


def test_max_depth_limits_the_levels():
    assert count_levels((256, 256), 6) == 6


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_depth_below_five_is_refused_and_says_what_the_authors_do(depth):
    with pytest.raises(ConfigError, match=r"at least 5 times") as caught:
        count_levels((128, 128), depth)
    assert f"model.max_depth={depth}" in caught.value.found
    assert "model.max_depth=5" in caught.value.do


def test_images_that_cannot_be_halved_are_refused_with_a_size_that_can():
    with pytest.raises(ConfigError, match="halved 6 times") as caught:
        count_levels((96, 96), 8)
    assert "[128,128]" in caught.value.do or "[64,64]" in caught.value.do
    with pytest.raises(ConfigError, match=r"at least \[32,32\]"):
        count_levels((16, 16), 8)
    assert count_levels((64, 128), 8) == 6  # not square, but it works


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("decoder", ["upsample", "transposed"])
def test_the_output_has_the_shape_of_the_input_and_lies_within_tanh(norm, decoder):
    image = torch.rand(2, 3, 64, 64) * 2 - 1
    out = unit(6, 4, norm, decoder)(image)
    assert out.shape == image.shape
    assert out.abs().max() <= 1


def test_the_bottleneck_of_a_square_power_of_two_is_one_pixel_of_eight_times_the_channels():
    seen = []
    model = unit(6, 4)
    model.encoder[-1].register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape)))
    model(torch.zeros(2, 3, 64, 64))
    assert seen == [(2, 32, 1, 1)]


@pytest.mark.parametrize("levels", [5, 6, 7])
def test_loops_equal_the_recursive_network_in_values_gradients_and_statistics(levels):
    ours, twin = unit(levels).double(), recursive_unit(levels, 8).double()
    with torch.no_grad():
        for p, q in zip(ours.parameters(), twin.parameters(), strict=True):
            assert p.shape == q.shape
            p.copy_(q)
    ours.set_norm_momentum(0.1)
    image = torch.rand(2, 3, 2**levels, 2**levels, dtype=torch.float64) * 2 - 1
    for model in (ours, twin):
        (model(image) - image).abs().mean().backward()
    torch.testing.assert_close(ours.eval()(image), twin.eval()(image), rtol=1e-12, atol=1e-13)
    for p, q in zip(ours.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-14)


def test_initial_convolutions_have_the_fan_out_deviation():
    model = unit(5, 32)
    model.initialize(torch.Generator().manual_seed(0))
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            size = module.weight.shape
            expected = math.sqrt(2 / (size[0] * size[2] * size[3]))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.03)
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.02)
            assert 0.01 < module.weight.std().item() < 0.03
            assert not module.bias.any()


def test_transposed_kernels_count_their_inputs_as_the_fan():
    model = unit(5, 32, decoder="transposed")
    model.initialize(torch.Generator().manual_seed(0))
    weight = model.decoder[1].conv.weight  # (2 * 256, 256, 4, 4)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (512 * 16)), rel=0.02)


def test_initial_weights_depend_on_the_generator_alone():
    weights = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        model = unit()
        model.initialize(torch.Generator().manual_seed(5))
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_a_fresh_unit_saturates_as_the_authors_does():
    # Measured on the official code at 128 px: half of the pixels beyond 0.99, L1 near 0.9.
    model = unit(7, 64)
    model.initialize(torch.Generator().manual_seed(0))
    image = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        out = model(image)
    assert 0.35 < (out.abs() > 0.99).float().mean() < 0.65
    assert 0.8 < (image - out).abs().mean() < 1.0


@pytest.mark.parametrize(("levels", "places"), [(5, 0), (6, 1), (8, 3)])
def test_dropout_sits_in_the_extra_inner_levels_only(levels, places):
    model = unit(levels, 1, dropout=True)
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert len(dropouts) == places
    assert all(m.p == 0.5 for m in dropouts)
    kinds = [hasattr(up, "dropout") for up in model.decoder]
    assert not kinds[0]  # innermost
    assert not any(kinds[-4:])  # the four outer levels
