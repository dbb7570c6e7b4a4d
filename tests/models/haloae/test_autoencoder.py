from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import ConfigError
from src.models.haloae.autoencoder import (
    Bottleneck,
    HaloAutoEncoder,
    ImageDecoder,
    latent_grid,
    nearest_valid,
)
from src.models.haloae.options import (
    Activation,
    AttentionOptions,
    ImageDecoderOptions,
    Mask,
    OutputResize,
)
from tests.models.haloae.conftest import options_of
from tests.reference_haloae import TransposedBottleneck, live_parameters

ENCODER = [[234, 234, 4, 3], [117, 117, 8, 3], [58, 58, 8, 5], [29, 29, 8, 5]]
DECODER = [[29, 29, 4, 3], [58, 59, 8, 3], [118, 118, 8, 3], [236, 237, 8, 5], [703, 704, 8, 1]]
ATTENTION = AttentionOptions(4, 1, 4, Mask.correct)
IMAGE = ImageDecoderOptions(True, 8, 1, 2, Activation.relu)


def published(
    size: int = 256, channels: int = 704, image_size: tuple[int, int] | None = None, **changes: Any
) -> HaloAutoEncoder:
    torch.manual_seed(0)
    return HaloAutoEncoder(channels, image_size or (size, size), options_of(changes)).eval()


def small(size: int = 64, **changes: Any) -> HaloAutoEncoder:
    defaults = {
        "channels": 10,
        "head": 8,
        "encoder": [[8, 8, 1, 3], [6, 6, 2, 3], [4, 4, 2, 5], [4, 4, 2, 5]],
        "decoder": [[4, 4, 1, 3], [6, 6, 2, 3], [8, 8, 2, 3], [8, 9, 2, 5], [9, None, 2, 1]],
        "attention": {"block": 4, "halo": 1, "dim_head": 4},
        "image_decoder": {"first_channels": 8, "layers": 1},
    }
    return published(size, **(defaults | changes))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def full() -> HaloAutoEncoder:
    return published()


def test_parameters_of_every_part_are_the_published_live_ones(full):
    assert count(full.head) == 4_118_868
    assert [count(stage) for stage in full.encoder] == [609_626, 239_672, 128_766, 40_432]
    assert [count(stage) for stage in full.decoder] == [
        16_971, 65_289, 201_474, 1_577_594, 1_194_224,
    ]  # fmt: skip
    assert count(full.image_decoder) == 3_271_287
    assert count(full.classifier) == 393_218
    assert count(full) == 11_857_421


def test_parameters_follow_the_closed_form(full):
    channels = 234
    for stage, row in zip(full.encoder, ENCODER, strict=True):
        assert count(stage) == live_parameters(channels, *row)
        channels = row[1]
    for stage, row in zip(full.decoder, DECODER, strict=True):
        assert count(stage) == live_parameters(channels, *row)
        channels = row[1]


def test_parameters_without_classifier_and_of_the_other_image_decoder():
    assert count(published(classifier="none")) == 11_464_203
    assert (
        count(ImageDecoder(704, ImageDecoderOptions(True, 100, 3, 2, Activation.relu))) == 693_148
    )
    features_only = published(image_decoder={"enabled": False})
    assert count(features_only.classifier) == 5_767_170


def test_shapes_of_every_stage_are_the_published_ones(full):
    shapes: list[tuple[int, ...]] = []
    hooks = [
        part.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
        for part in (full.head, *full.encoder, *full.decoder, *full.image_decoder.body)
    ]
    with torch.no_grad():
        out = full(torch.rand(1, 704, 64, 64))
    for hook in hooks:
        hook.remove()
    widths = [234, 234, 117, 58, 29, 29, 59, 118, 237, 704]
    assert shapes[:10] == [(width, 60, 60) for width in widths]
    assert shapes[10:] == [(width, 64, 64) for width in (380, 190, 95, 47, 23)]
    assert out.features.shape == (1, 704, 64, 64)
    assert out.image.shape == (1, 3, 256, 256)
    assert out.logits.shape == (1, 2)
    assert out.latent.shape == (1, 29, 60, 60)
    assert out.features.min() >= 0
    assert out.image.min() >= 0


@pytest.mark.parametrize(("reduction", "latent"), [("s2", (36, 36)), ("s4", (12, 12))])
def test_reductions_shrink_the_latent_map_as_published(reduction, latent):
    narrow = {"channels": 8, "decoder": [*DECODER[:4], [16, None, 8, 1]]}
    model = published(reduction=reduction, **narrow)
    with torch.no_grad():
        out = model(torch.rand(1, 8, 64, 64))
    assert out.latent.shape == (1, 29, *latent)
    assert out.features.shape == (1, 8, 64, 64)


def test_a_stride_adds_exactly_the_convolution_that_the_release_always_stores():
    narrow = {"channels": 8, "decoder": [*DECODER[:4], [16, None, 8, 1]]}
    plain, strided = published(**narrow), published(reduction="s2", **narrow)
    assert count(strided.encoder[1]) - count(plain.encoder[1]) == 123_201
    assert count(strided.decoder[3]) - count(plain.decoder[3]) == 505_521


@pytest.mark.parametrize("reduction", ["s1", "s2", "s4"])
@pytest.mark.parametrize("size", [(64, 64), (112, 64)])
def test_small_and_rectangular_images_come_back_in_their_size(reduction, size):
    model = small(image_size=size, reduction=reduction)
    with torch.no_grad():
        out = model(torch.rand(2, 10, size[0] // 4, size[1] // 4))
    assert out.features.shape == (2, 10, size[0] // 4, size[1] // 4)
    assert out.image.shape == (2, 3, *size)


@pytest.mark.parametrize("mask", ["correct", "inverted", "none"])
def test_112_pixels_work_with_the_published_blocks(mask):
    model = small(112, attention={"mask": mask})
    with torch.no_grad():
        assert model(torch.rand(1, 10, 28, 28)).latent.shape == (1, 4, 24, 24)


def test_valid_sizes_are_those_of_the_paper():
    valid = [size for size in range(1, 560) if nearest_valid(size, 12) == [size]]
    assert valid == [64, 112, 160, 208, 256, 304, 352, 400, 448, 496, 544]
    assert nearest_valid(224, 4) == [224]
    assert nearest_valid(224, 13) == [224]


@pytest.mark.parametrize(
    ("size", "nearby"), [(224, [208, 256]), (320, [304, 352]), (20, [64]), (255, [208, 256])]
)
def test_invalid_sizes_name_the_nearest_valid_ones(size, nearby):
    assert nearest_valid(size, 12) == nearby
    with pytest.raises(ConfigError) as error:
        latent_grid((size, size), 12)
    for side in nearby:
        assert f"[{side},{side}]" in str(error.value)
    with pytest.raises(ConfigError):
        published(size)


def test_transposed_convolutions_of_the_release_equal_our_ordinary_ones():
    torch.manual_seed(0)
    for stage in ([6, 7, 2, 5], [6, 6, 2, 3]):
        ours = Bottleneck(6, stage, ATTENTION).double().eval()
        x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
        with torch.no_grad():
            assert (TransposedBottleneck(ours)(x) - ours(x)).abs().max() < 1e-12


def test_initialisation_is_kaiming_with_the_fan_of_the_release(full):
    def expect(weight: Tensor, fan: int) -> None:
        assert float(weight.detach().std()) == pytest.approx((2 / fan) ** 0.5, rel=0.02)

    expect(full.head[0].weight, 704 * 25)
    expect(full.encoder[1].conv2.weight, 117 * 9)
    expect(full.encoder[0].attention.to_kv.weight, 234)
    expect(full.decoder[3].conv2.weight, 237 * 25)  # transposed: fan over the outputs
    expect(full.decoder[4].conv1.weight, 703)
    tables = torch.cat([stage.attention.rel_height.flatten() for stage in full.encoder])
    assert float(tables.detach().std()) == pytest.approx(0.25, rel=0.05)
    assert not full.decoder[0].attention.to_out.bias.any()


def test_nearest_output_repeats_rows_1_17_33_49_and_replicate_stretches_nothing():
    x = torch.arange(60.0).expand(1, 1, 60, 60)
    model = small()
    model.output_resize = OutputResize.nearest
    columns = model._to_grid(x)[0, 0, 0]
    assert [n for n in range(1, 64) if columns[n] == columns[n - 1]] == [1, 17, 33, 49]
    model.output_resize = OutputResize.replicate
    assert torch.equal(model._to_grid(x)[0, 0, 0, 2:62], x[0, 0, 0])
    model.output_resize = OutputResize.bilinear
    assert model._to_grid(x).shape == (1, 1, 64, 64)


def test_the_image_decoder_can_be_negative_without_its_last_relu():
    features = torch.rand(2, 10, 16, 16)
    torch.manual_seed(0)
    options = dataclasses.replace(IMAGE, activation=Activation.none)
    assert ImageDecoder(10, options)(features).min() < 0
    single = ImageDecoder(10, dataclasses.replace(options, tail=1))(features)
    assert single.shape == (2, 3, 64, 64)
    blocks = F.max_pool2d(single, 4, 4), -F.max_pool2d(-single, 4, 4)
    assert torch.equal(*blocks)  # x 4 at once: constant on 4 x 4 pixels


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reduction": "s3"}, "s2"),
        ({"classifier": "liner"}, "linear"),
        ({"decoder": [[4, 4, 1, 3], [6, 6, 2, 3], [9, 11, 2, 1]]}, "gives 10"),
        ({"encoder": [[8, 8, 1, 3], [6, 6, 2], [4, 4, 2, 5]]}, "four numbers"),
        ({"encoder": [[8, 8, 1, 3], [6, None, 2, 3], [4, 4, 2, 5]]}, "may be null"),
        ({"image_decoder": {"first_channels": 4, "layers": 4}}, "fewer layers"),
    ],
)
def test_mistakes_in_the_configuration_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        small(**changes)
