from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.backbones.features import FeatureExtractor
from src.errors import ConfigError
from src.models.haloae.features import MultiScaleFeatures, align, alignment_matrix
from tests.reference_haloae import features_by_unfold

LAYERS = ["features.1", "features.6", "features.11", "features.17"]


def vgg19(size: int, padding_mode: str | None = "reflect") -> FeatureExtractor:
    torch.manual_seed(0)
    return FeatureExtractor(
        name="vgg19.tv_in1k",
        layers=LAYERS,
        weights="random",
        image_size=(size, size),
        padding_mode=padding_mode,
        precision="float32",
        channels_last=False,
    )


def image(size: int = 64) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def small_vgg() -> FeatureExtractor:
    return vgg19(64)


def test_vgg19_gives_704_channels_in_the_published_order(small_vgg):
    assert small_vgg.channels == (64, 128, 256, 256)
    features = MultiScaleFeatures(small_vgg, "clean")
    out = features(image())
    assert features.channels == 704
    assert out.shape == (1, 704, 16, 16)
    maps = small_vgg(image())
    assert [m.shape[-1] for m in maps] == [64, 32, 16, 16]
    expected = torch.cat([F.adaptive_avg_pool2d(m, 16) for m in maps], 1)
    assert torch.equal(out, expected)
    assert not out.requires_grad


def test_the_cut_network_is_all_of_vgg19_up_to_relu3_4_and_no_more(small_vgg):
    assert sum(p.numel() for p in small_vgg.parameters()) == 2_325_568


def test_the_cut_network_equals_the_uncut_one_and_padding_mode_equals_a_padding_layer(small_vgg):
    convolutions = [m for m in small_vgg.modules() if isinstance(m, nn.Conv2d)]
    x, taps, taken = image(), [], {0, 2, 4, 7}
    pools_before = {2, 4}
    for position, conv in enumerate(convolutions):
        if position in pools_before:
            x = F.max_pool2d(x, 2)
        x = F.relu(F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), conv.weight, conv.bias))
        if position in taken:
            taps.append(x)
    assert len(convolutions) == 8
    for ours, expected in zip(small_vgg(image()), taps, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("padded", [False, True])
def test_alignment_equals_nearest_resize_and_patch_means(padded):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 3, n, n, generator=generator) for n in (256, 128, 64, 64)]
    out = align(maps, (256, 256), padded=padded)
    assert (out - features_by_unfold(maps, 256, padded)).abs().max() < 1e-6


@pytest.mark.parametrize("padded", [False, True])
def test_alignment_takes_maps_of_any_size(padded):
    """Coarser than the grid, or of a size that divides nothing."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(1, 2, n, n, generator=generator) for n in (56, 28, 14, 7, 9)]
    out = align(maps, (112, 112), padded=padded)
    assert (out - features_by_unfold(maps, 112, padded)).abs().max() < 1e-6


def test_the_padded_matrix_reads_what_the_release_reads():
    """Of 258 padded columns each row takes four; 128 and 257 are never read."""
    matrix = alignment_matrix(256, 64, torch.device("cpu"), rim=True)
    assert torch.equal(matrix.sum(1), torch.ones(64))
    assert torch.equal(matrix[0, :4], torch.tensor([0.25, 0.5, 0.25, 0.0]))  # 0 mirrors 1
    assert matrix[:, 127].sum() == 0  # padded column 128
    assert torch.equal(alignment_matrix(64, 64, torch.device("cpu"), rim=False), torch.eye(64))


def test_clean_alignment_keeps_a_ramp_in_place_and_the_padded_one_shifts_it():
    ramp = torch.arange(256.0).expand(1, 1, 256, 256)
    centre = torch.arange(64) * 4 + 1.5
    clean = align([ramp, ramp], (256, 256), padded=False)
    assert torch.equal(clean[0, 0, 0], centre)
    shifted = align([ramp, ramp], (256, 256), padded=True)
    assert float((shifted[0, 0, 0] - centre).abs().max()) >= 0.5
    assert torch.equal(shifted[0, 1], clean[0, 1])  # the last map carries no rim


def test_rectangular_images_keep_their_aspect():
    maps = [torch.rand(1, 2, 48, 96), torch.rand(1, 2, 24, 48)]
    assert align(maps, (48, 96), padded=False).shape == (1, 4, 12, 24)


def test_a_method_without_backbone_is_told_which_to_use():
    with pytest.raises(ConfigError, match="backbone=vgg19"):
        MultiScaleFeatures(nn.Identity(), "clean")
