"""Block D: from reconstructed features to the reconstructed image."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import ConfigError
from src.models.haloae.options import ImageDecoderOptions


class ImageDecoder(nn.Module):
    """Block D: 3x3 convolutions with mirrored borders from features to the image, four times finer.

    The published layers for 704 channels: 380, 190, 95, 47, 23 at the size of the features, then
    3 (x 2), 3 (x 2), each with ReLU. The last ReLU cannot give the negative half of a normalised
    image, and half of all seeds start with a dead channel among the three; `activation: none` takes
    the ReLU out of both tail layers.
    """

    def __init__(self, channels: int, options: ImageDecoderOptions) -> None:
        super().__init__()
        widths = [channels, options.first_channels]
        widths += [options.first_channels // 2**n for n in range(1, options.layers + 1)]
        if widths[-1] < 1:
            raise ConfigError(
                "model.image_decoder halves its channels to nothing.",
                found=f"first_channels={options.first_channels}, layers={options.layers}",
                do="use fewer layers or more first_channels (published: 4 and 380)",
            )
        self.body = nn.ModuleList(_mirrored(before, after) for before, after in pairwise(widths))
        self.tail = nn.ModuleList(
            _mirrored(widths[-1] if n == 0 else 3, 3) for n in range(options.tail)
        )
        self.factor = 4 // options.tail  # two layers of x 2 or one of x 4
        self.rectified = options.activation == "relu"

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, 4 h, 4 w)."""
        x = features
        for layer in self.body:
            x = F.relu(layer(x))
        for layer in self.tail:
            x = F.relu(layer(x)) if self.rectified else layer(x)
            x = F.interpolate(x, scale_factor=self.factor, mode="nearest")
        return x


def _mirrored(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1, padding_mode="reflect")
