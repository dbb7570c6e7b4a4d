"""A HaloAE of 64 px with a tiny frozen network, built from the real configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from src.models.build import read_options
from src.models.haloae.module import HaloAE
from src.models.haloae.options import HaloAEOptions

CONF = Path(__file__).parents[3] / "conf" / "model" / "haloae.yaml"


SMALL = {
    "head": 8,
    "encoder": [[8, 8, 1, 3], [6, 6, 2, 3], [4, 4, 2, 5]],
    "decoder": [[4, 4, 1, 3], [6, 6, 2, 3], [9, None, 2, 1]],
    "attention": {"block": 4, "halo": 1, "dim_head": 4},
    "image_decoder": {"first_channels": 8, "layers": 1},
}


def options_of(*changes: dict[str, Any]) -> HaloAEOptions:
    """Those of the model file; groups in `changes` are deepened, everything else is replaced."""
    values = yaml.safe_load(CONF.read_text())["model"]
    for key in ("_target_", "name", "stages"):
        del values[key]
    values |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "seed": 0}
    for change in changes:
        for key, value in change.items():
            nested = isinstance(value, dict) and isinstance(values[key], dict)
            values[key] = {**values[key], **value} if nested else value
    return read_options(HaloAEOptions, values)


class TinyFeatures(nn.Module):
    """Two frozen maps at strides 1 and 4; not negative, like those of VGG19."""

    channels = (4, 6)
    reductions = (1, 4)
    identity = "tiny@0"
    image_size = None

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.fine = nn.Conv2d(3, 4, 3, padding=1)
        self.coarse = nn.Conv2d(4, 6, 4, stride=4)
        for parameter in self.parameters():
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> TinyFeatures:
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        fine = self.fine(image).relu()
        return [fine, self.coarse(fine).relu()]


@pytest.fixture
def make() -> Callable[..., HaloAE]:
    """Build the small model; keyword arguments replace or deepen those of the configuration."""

    def build(image_size: tuple[int, int] = (64, 64), seed: int = 0, **changes: object) -> HaloAE:
        torch.manual_seed(seed)
        options = options_of(SMALL, {"seed": seed}, changes)
        return HaloAE(TinyFeatures(), image_size, options)

    return build


@pytest.fixture
def textures() -> Callable[..., Tensor]:
    """Normalised images (n, 3, S, S): stripes of one frequency, any phase, a little noise."""

    def draw(count: int, size: int = 64, seed: int = 0, defect: bool = False) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        phase = torch.rand(count, 1, 1, 1, generator=generator) * 6.28
        x = torch.arange(size)[None, None, None, :]
        stripes = torch.sin(x * 0.5 + phase).expand(count, 3, size, size).clone()
        if defect:
            for row in range(count):
                top, left = (int(v) for v in torch.randint(8, size - 24, (2,), generator=generator))
                stripes[row, :, top : top + 14, left : left + 14] = 1.5
        return stripes + 0.05 * torch.randn(stripes.shape, generator=generator)

    return draw
