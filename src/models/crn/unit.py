"""One competitive unit: a U-Net that is generator and discriminator at once.

Source: official code of CRN (see `module.py`). The shape is that of a pix2pix U-Net (Isola et al.
2017); ours differs from the official code only in form: loops instead of recursion,
no in-place activations (relu(leaky_relu(e)) = relu(e), so skips are equal), no silent fifth level.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import ConfigError

FIRST_STEP = 0.05  # ours: how far the first outputs lie from the mean image, `start_from`
FEWEST_LEVELS = 5  # the five outer levels of the ladder c, 2c, 4c, 8c, 8c are hard-wired


class CompetitiveUnit(nn.Module):
    """A U-Net from an image (B, 3, H, W) to a reconstruction (B, 3, H, W) in (-1, 1).

    Level l = 1..L halves the resolution; its encoder output has `width(l)` channels. There is no
    skip at full resolution. At 128 px, 64 base channels and batch norm: 30 242 816 parameters.
    `levels` is L of `count_levels`, the others are in `CRNOptions`; dropout comes after the decoder
    norms of the innermost 8c levels but one.
    """

    base: Tensor

    def __init__(
        self, levels: int, base_channels: int, norm: str, decoder: str, dropout: bool
    ) -> None:
        super().__init__()
        widths = [3] + [base_channels * min(2**i, 8) for i in range(levels)]
        upsamples, biased = decoder == "upsample", norm == "instance"
        # Order of registration = order of the official recursion: down 1..L, then up L..1.
        inner = range(2, levels)  # the outermost and the innermost encoder have no norm
        self.encoder = nn.ModuleList()
        for level in range(1, levels + 1):  # (B, C, H, W) -> (B, D, H/2, W/2)
            conv = nn.Conv2d(widths[level - 1], widths[level], 4, stride=2, padding=1, bias=biased)
            named = _norm(norm if level in inner else "none", widths[level])
            self.encoder.append(nn.Sequential(OrderedDict(conv=conv, norm=named)))
        self.decoder = nn.ModuleList()
        for level in range(levels, 0, -1):  # (B, C, H, W) -> (B, D, 2H, 2W), see `Decoder`
            inputs = widths[level] if level == levels else 2 * widths[level]  # skip and upsampled
            outputs, bias = widths[level - 1], biased or (level == 1 and not upsamples)
            parts: dict[str, nn.Module] = {}
            if upsamples:
                parts["up"] = nn.Upsample(scale_factor=2.0, mode="nearest")
                parts["conv"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
            else:
                parts["conv"] = nn.ConvTranspose2d(inputs, outputs, 4, 2, padding=1, bias=bias)
            parts["norm"] = _norm(norm if level > 1 else "none", outputs)
            if dropout and FEWEST_LEVELS <= level < levels:
                parts["dropout"] = nn.Dropout(0.5)
            self.decoder.append(nn.Sequential(OrderedDict(parts)))
        self._norms = [m for m in self.modules() if isinstance(m, _Statistics)]
        #: What is rebuilt before anything is learnt, inside the tanh; see `start_from`.
        self.register_buffer("base", torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct images (B, 3, H, W), H and W divisible by 2^L -> (B, 3, H, W) in (-1, 1)."""
        skips: list[Tensor] = []
        features = image
        for down in self.encoder:
            features = down(F.leaky_relu(features, 0.2) if skips else features)
            skips.append(F.relu(features))  # (B, width(l), H / 2^l, W / 2^l)
        features = skips.pop()
        for up in self.decoder:
            features = up(features)  # (B, width(l - 1), H / 2^(l-1), W / 2^(l-1))
            if skips:
                features = torch.cat([skips.pop(), F.relu(features)], dim=1)
        # Losses stay float32 under autocast.
        return torch.tanh(features + self.base).to(image.dtype)

    def set_norm_momentum(self, momentum: float | None) -> None:
        """Weight of the next batch's statistics in the running ones, as torch defines it."""
        for norm in self._norms:
            norm.momentum = momentum

    @torch.no_grad()
    def start_from(self, image: Tensor) -> None:
        """Rebuild this (3, H, W) until more is learnt. ours: short trainings lose no time on it."""
        self.base = image.clamp(-0.99, 0.99).atanh()
        self.get_parameter(f"decoder.{len(self.decoder) - 1}.conv.weight").mul_(FIRST_STEP)

    @torch.no_grad()
    def gather_statistics(self, batches: Iterable[Tensor]) -> None:
        """Running statistics of the norms from these images (B, 3, H, W), each batch alike."""
        self.set_norm_momentum(None)  # torch: the plain mean over batches
        for norm in self._norms:
            norm.reset_running_stats()
        before = self.training
        self.train()
        for batch in batches:
            self(batch)
        self.train(before)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Weights as the official code draws them.

        Convolutions: normal with std sqrt(2 / fan_out), torch taking dimension 0 of a transposed
        kernel (its inputs) for the fan. Batch norm: weight N(1, 0.02), bias 0. Other biases: 0.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                fan_out = module.weight.shape[0] * math.prod(module.weight.shape[2:])
                module.weight.normal_(0.0, math.sqrt(2.0 / fan_out), generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.normal_(1.0, 0.02, generator=generator)
                module.bias.zero_()


def count_levels(image_size: tuple[int, int], max_depth: int) -> int:
    """Levels of a unit: min(floor(log2(side)), max_depth), at least five, for (H, W) in pixels.

    ConfigError when the sides cannot be halved so often.
    """
    levels = min(int(math.log2(min(image_size))), max_depth)
    height, width = image_size
    if levels < FEWEST_LEVELS:
        raise ConfigError(
            f"A competitive unit halves the images at least {FEWEST_LEVELS} times.",
            found=f"{height} x {width} pixels, model.max_depth={max_depth}",
            do="set transform.resize to at least [32,32], and model.max_depth=5 or more: the "
            "official code uses 5 levels for every smaller value, without saying so",
        )
    step = 2**levels
    fitting = [max(1, round(side / step)) * step for side in image_size]
    if fitting != [height, width]:
        raise ConfigError(
            f"The image sides cannot be halved {levels} times.",
            found=f"{height} x {width} pixels",
            do=f"set transform.resize=[{fitting[0]},{fitting[1]}] (multiples of {step}), or a "
            f"smaller model.max_depth (at least {FEWEST_LEVELS})",
        )
    return levels


_Statistics = nn.BatchNorm2d | nn.InstanceNorm2d


def _norm(name: str, channels: int) -> nn.Module:
    if name == "batch":
        return nn.BatchNorm2d(channels, eps=1e-5)
    if name == "instance":
        return nn.InstanceNorm2d(channels, affine=False, track_running_stats=True)
    return nn.Identity()
