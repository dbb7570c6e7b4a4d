"""Folded frozen networks compute what the networks they came from compute."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.models import create_feature_extractor
from torch import nn

from src.backbones.features import Fused, fold_batchnorms

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
        fused = fold_batchnorms(copy.deepcopy(network))
        found = fused(image)
        packed = fused(image.contiguous(memory_format=torch.channels_last))
    assert set(found) == set(layers)
    for layer in layers:
        scale = expected[layer].abs().max().item()
        torch.testing.assert_close(found[layer], expected[layer], rtol=0, atol=1e-5 * scale)
        torch.testing.assert_close(packed[layer], expected[layer], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("size", [(64, 64), (61, 50)])  # TensorFlow pads them differently
def test_a_convolution_that_takes_its_clamp_along_changes_no_map(size):
    network = traced("tf_efficientnet_lite0", ["blocks.2", "blocks.4"])
    fused = fold_batchnorms(copy.deepcopy(network))
    if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        assert sum(type(module) is Fused for module in fused.modules()) > 20
    with torch.no_grad():
        for image in (torch.randn(2, 3, *size), torch.randn(1, 3, 48, 64)):
            expected, found = network(image), fused(image)
            for layer, maps in expected.items():
                bound = 1e-5 * maps.abs().max().item()
                torch.testing.assert_close(found[layer], maps, rtol=0, atol=bound)
    with torch.enable_grad():  # a gradient needs the plain way
        image.requires_grad_()
        fused(image)["blocks.4"].sum().backward()
    assert image.grad is not None


def test_no_batchnorm_is_left_in_a_residual_network():
    fused = fold_batchnorms(traced("resnet18", ["layer3"]))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


class Unusual(nn.Module):
    """A convolution with its own bias before a norm without weights, and two norms that stay."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.plain = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)
        self.second, self.blind = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
        self.lonely = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lonely(torch.relu(self.blind(self.second(self.plain(self.first(x))))))


def test_biases_count_and_norms_that_cannot_be_folded_stay():
    network = Unusual().eval()
    nn.init.uniform_(network.plain.running_mean)
    nn.init.uniform_(network.plain.running_var, 0.5, 2.0)
    image = torch.randn(2, 3, 8, 8)
    expected = network(image)
    folded = fold_batchnorms(torch.fx.symbolic_trace(network))
    torch.testing.assert_close(folded(image), expected)
    assert isinstance(folded.plain, nn.Identity)
    assert isinstance(folded.blind, nn.BatchNorm2d) and isinstance(folded.lonely, nn.BatchNorm2d)
