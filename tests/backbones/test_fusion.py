"""Fused frozen networks compute what the networks they came from compute."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.models._features_fx import create_feature_extractor
from torch import nn

from src.backbones.fusion import FusedConvolution, fold, fuse

CASES = [
    ("resnet18", ["layer2", "layer3"]),
    ("tf_efficientnet_lite0", ["blocks.2", "blocks.4"]),
    ("densenet121", ["features.denseblock1", "features.denseblock2"]),
    ("vgg11", ["features.7", "features.12"]),
    ("resnet18", ["layer1.0.bn1", "layer1.0.act1"]),  # a BatchNorm that is read twice
]


def traced(name: str, layers: list[str]) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that matter
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return create_feature_extractor(model, {layer: layer for layer in layers}).eval()


@pytest.mark.parametrize(("name", "layers"), CASES)
def test_fused_network_equals_the_traced_one(name, layers):
    network = traced(name, layers)
    image = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        expected = network(image)
        fused = fuse(copy.deepcopy(network))
        found = fused(image)
        packed = fused(image.contiguous(memory_format=torch.channels_last))
    assert set(found) == set(layers)
    for layer in layers:
        scale = expected[layer].abs().max().item()
        torch.testing.assert_close(found[layer], expected[layer], rtol=0, atol=1e-5 * scale)
        torch.testing.assert_close(packed[layer], expected[layer], rtol=0, atol=1e-5 * scale)


def test_no_batchnorm_is_left_in_a_residual_network():
    fused = fuse(traced("resnet18", ["layer3"]))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert sum(isinstance(module, FusedConvolution) for module in fused.modules()) == 15


def test_gradients_and_autocast_take_the_ordinary_path():
    fused = fuse(traced("resnet18", ["layer1"]))
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    fused(image)["layer1"].sum().backward()
    assert image.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = fused(image)["layer1"]
    with torch.no_grad():
        full = fused(image)["layer1"]
    torch.testing.assert_close(low.float(), full, rtol=0.1, atol=0.1 * full.abs().max().item())


def test_folding_keeps_a_convolution_with_its_own_bias_and_a_norm_without_weights():
    convolution, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False).eval()
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    image = torch.randn(2, 3, 8, 8)
    expected = norm(convolution(image))
    fold(convolution, norm)
    torch.testing.assert_close(convolution(image), expected)


def test_norm_without_running_statistics_cannot_be_folded():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(ValueError, match="running statistics"):
        fold(nn.Conv2d(3, 4, 1), norm)
