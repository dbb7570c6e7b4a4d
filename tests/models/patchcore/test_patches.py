"""Patch vectors against the spelled-out official chain and recorded fingerprints."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from src.errors import ConfigError
from src.models.patchcore.patches import PatchEmbedder, adaptive_pool_matrix
from tests.models.patchcore.stand_ins import options
from tests.reference_patchcore import official_patches


def embedder(embedding, channels, patch, stride, middle, target) -> PatchEmbedder:
    chosen = options(
        embedding=embedding, patch_size=patch, patch_stride=stride, pretrain_dim=middle,
        target_dim=target,
    )  # fmt: skip
    return PatchEmbedder(channels, chosen)


def wave(channels: int, side: int) -> torch.Tensor:
    """Element k, row-major, is float32(sin(0.37 k)) with the sine in float64."""
    values = np.sin(0.37 * np.arange(channels * side * side)).astype(np.float32)
    return torch.from_numpy(values).view(1, channels, side, side)


def test_wide_resnet_vectors_of_1024_match_the_recorded_fingerprint():
    embed = embedder("official", (512, 1024), 3, 1, 1024, 1024)
    rows = embed([wave(512, 28), wave(1024, 14)]).view(784, 1024)
    expected = {
        (0, 0): [-0.1408058, 0.1108186, 0.2504171, 0.1368704],
        (400, 510): [0.0182842, 0.0460614, -0.0660474, -0.0455731],
        (783, 1021): [-0.0051163, 0.0200021, 0.0396979],
    }
    for (row, at), values in expected.items():
        found = rows[row, at : at + len(values)]
        torch.testing.assert_close(found, torch.tensor(values), atol=1e-6, rtol=0)
    assert rows.double().norm().item() == pytest.approx(52.275277, abs=2e-5)


def test_wide_resnet_vectors_of_384_match_the_recorded_fingerprint():
    embed = embedder("official", (512, 1024), 3, 1, 1024, 384)
    rows = embed([wave(512, 28), wave(1024, 14)]).view(784, 384)
    first = torch.tensor([0.0734766, 0.0337638, -0.0881085, 0.0854358])
    middle = torch.tensor([0.0815372, 0.0121231, -0.0414549, -0.0362631])
    torch.testing.assert_close(rows[0, :4], first, atol=1e-6, rtol=0)
    torch.testing.assert_close(rows[400, 190:194], middle, atol=1e-6, rtol=0)
    assert rows.double().norm().item() == pytest.approx(27.247243, abs=2e-5)


@pytest.mark.parametrize(
    ("channels", "sides", "patch", "stride", "middle", "target"),
    [
        ((64, 128), (12, 6), 3, 1, 128, 128),
        ((64, 128), (12, 6), 3, 1, 128, 48),
        ((64, 128), (12, 6), 5, 1, 128, 128),
        ((64, 128), (13, 7), 3, 2, 128, 96),
        ((64, 224), (12, 6), 3, 1, 128, 48),  # the ratio of DenseNet201's 512 and 1792
        ((32, 64, 128), (16, 8, 4), 3, 1, 128, 128),  # bins span layers: nothing merges
        ((40, 112), (12, 6), 3, 1, 1024, 384),  # EfficientNet-Lite0
        ((5, 7), (9, 4), 1, 1, 64, 10),
    ],
)
def test_merged_convolution_equals_the_official_chain(
    channels, sides, patch, stride, middle, target
):
    generator = torch.Generator().manual_seed(1)
    maps = [
        torch.randn(2, c, s, s + 1, generator=generator)
        for c, s in zip(channels, sides, strict=True)
    ]
    embed = embedder("official", channels, patch, stride, middle, target)
    expected = official_patches(maps, patch, stride, middle, target)
    torch.testing.assert_close(embed(maps).flatten(0, 2), expected, atol=1e-6, rtol=0)


def test_channels_last_maps_give_the_same_vectors():
    maps = [torch.randn(2, 16, 8, 8), torch.randn(2, 32, 4, 4)]
    embed = embedder("official", (16, 32), 3, 1, 32, 32)
    packed = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    torch.testing.assert_close(embed(packed), embed(maps))


def test_concat_equals_unfolded_means_resized_and_joined():
    maps = [torch.randn(2, 3, 6, 8), torch.randn(2, 5, 3, 4)]
    patches = embedder("concat", (3, 5), 3, 1, 1, 1)(maps)
    means = [
        torch.nn.functional.unfold(m, 3, padding=1).view(2, m.shape[1], 9, *m.shape[2:]).mean(2)
        for m in maps
    ]
    means[1] = torch.nn.functional.interpolate(means[1], size=(6, 8), mode="bilinear")
    torch.testing.assert_close(patches, torch.cat(means, 1).permute(0, 2, 3, 1))


def test_concat_without_neighbourhood_returns_the_first_map_itself():
    maps = [torch.randn(2, 4, 5, 3)]
    patches = embedder("concat", (4,), 1, 1, 1, 1)(maps)
    torch.testing.assert_close(patches, maps[0].permute(0, 2, 3, 1))


@pytest.mark.parametrize(("n", "m"), [(9, 4), (4608, 1024), (7, 7), (3, 8), (2048, 384)])
def test_pool_matrix_is_adaptive_average_pooling(n, m):
    x = torch.randn(2, 1, n, dtype=torch.float64)
    expected = torch.nn.functional.adaptive_avg_pool1d(x, m)
    torch.testing.assert_close(x @ adaptive_pool_matrix(n, m).T, expected)


def test_even_patch_side_is_refused_with_advice():
    with pytest.raises(ConfigError, match="odd side"):
        options(patch_size=2)
