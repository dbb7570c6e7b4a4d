"""Blocks C to E: encoder, decoder, image decoder and classifier.

Channels are explicit: `[width, out, heads, kernel]` for each bottleneck, see `conf/model/haloae`.
Two repairs keep the mathematics of the release: its stride-1 transposed convolutions are ordinary
convolutions (flipped weights, same result, faster kernels), and the second convolution of stride 2
exists only where a stride is used (the release stores 5.8 million such parameters that never run).
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torch.distributed.nn.functional as distributed
import torch.nn.functional as F
from torch import Tensor, nn

from src import processes
from src.errors import ConfigError
from src.models.haloae.halo_attention import HaloAttention
from src.models.haloae.options import (
    FEATURE_STRIDE,
    HEAD_KERNEL,
    Activation,
    AttentionOptions,
    Classifier,
    HaloAEOptions,
    ImageDecoderOptions,
    OutputResize,
    Stage,
)

Grid = tuple[int, int]  # cells
_RIM = HEAD_KERNEL - 1  # cells that the unpadded head convolution takes from each axis


class Output(NamedTuple):
    """What one pass gives."""

    features: Tensor  # (B, C, H/4, W/4) reconstruction
    image: Tensor | None  # (B, 3, H, W) reconstruction, normalised units; None when not asked
    logits: Tensor | None  # (B, 2): original, cut-pasted; None when not asked
    latent: Tensor  # (B, c, h, w)


class SharedBatchNorm(nn.BatchNorm2d):
    """`BatchNorm2d`; in training its statistics are those of all processes' shares together.

    torch.nn.SyncBatchNorm does this on GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if not self.training or processes.count() == 1:
            return super().forward(x)
        total: Any = distributed.all_reduce  # a sum forwards and backwards: all losses count
        wide = x if x.dtype == torch.float64 else x.float()
        cells = total(wide.new_full((), x.numel() // x.shape[1]))
        mean = total(wide.sum((0, 2, 3))) / cells
        centred = wide - mean[:, None, None]
        variance = total(centred.square().sum((0, 2, 3))) / cells
        buffers: Any = (self.running_mean, self.running_var)
        with torch.no_grad():  # the running variance is the unbiased one, as torch has it
            for running, value in zip(buffers, (mean, variance * cells / (cells - 1)), strict=True):
                running.lerp_(value.to(running.dtype), self.momentum or 0.0)
        scale: Tensor = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class Bottleneck(nn.Module):
    """1x1 convolution, halo attention, k x k convolution, with a skip around all three.

    `resize`: grid that leaves, when it differs from the one that comes in; with `up` the grid is
    doubled first (decoder) instead of halved.
    """

    def __init__(
        self,
        channels: int,
        stage: Stage,
        attention: AttentionOptions,
        resize: Grid | None = None,
        up: bool = False,
    ) -> None:
        super().__init__()
        width, out, heads, kernel = cast(list[int], stage)
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.norm1 = SharedBatchNorm(width)
        self.attention = HaloAttention(width, heads, attention)
        self.conv2 = nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=False)
        self.stride = None if resize is None else _strided(out, out, 3, up=up)
        self.norm2 = SharedBatchNorm(out)
        self.skip: nn.Sequential | None = None
        if resize is not None:
            self.skip = nn.Sequential(_strided(channels, out, 1, up=up), SharedBatchNorm(out))
        elif channels != out:
            plain = nn.Conv2d(channels, out, 1, bias=False)
            self.skip = nn.Sequential(plain, SharedBatchNorm(out))
        self.resize, self.activation = resize, Activation.relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, out, h', w')."""
        inner = F.relu(self.norm1(self.conv1(x)))
        inner = F.relu(self.attention(inner))
        inner = self.conv2(inner)
        if self.stride is not None:
            inner = self.stride(inner)
        inner = self.norm2(inner) + (x if self.skip is None else self.skip(x))
        if self.activation == Activation.relu:
            inner = F.relu(inner)
        return inner if self.resize is None else F.interpolate(inner, self.resize, mode="nearest")


class ImageDecoder(nn.Module):
    """Block D: 3x3 convolutions with mirrored borders from features to the image, four times finer.

    The published layers for 704 channels: 380, 190, 95, 47, 23 at the size of the features, then
    3 (x 2), 3 (x 2), each with ReLU. The last ReLU cannot give the negative half of a normalised
    image, and half of all seeds start with a dead channel among the three; `activation: none` takes
    the ReLU out of both tail layers.
    """

    def __init__(self, channels: int, options: ImageDecoderOptions) -> None:
        super().__init__()
        widths = [channels, *(options.first_channels >> n for n in range(options.layers + 1))]
        ends = [widths[-1], *[3] * options.tail]
        self.body = nn.ModuleList(_mirrored(*pair) for pair in pairwise(widths))
        self.tail = nn.ModuleList(_mirrored(*pair) for pair in pairwise(ends))
        self.factor = 4 // options.tail  # two layers of x 2 or one of x 4
        self.rectified = options.activation == Activation.relu

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, 4 h, 4 w)."""
        x = features
        for layer in self.body:
            x = F.relu(layer(x))
        for layer in self.tail:
            x = F.relu(layer(x)) if self.rectified else layer(x)
            x = F.interpolate(x, scale_factor=self.factor, mode="nearest")
        return x


class HaloAutoEncoder(nn.Module):
    """Reconstructs features of `channels`, and from them the image; tells originals from pasted."""

    def __init__(self, channels: int, image_size: tuple[int, int], options: HaloAEOptions) -> None:
        super().__init__()
        self.output_resize = options.output_resize
        attention, head = options.attention, options.head
        grids = reduced_grids(latent_grid(image_size, attention.block), attention.block)
        grids = grids[: {"s1": 1, "s2": 2, "s4": 3}[options.reduction]]
        down, *up = options.encoder, *options.decoder
        width, out, *rest = up[-1]
        if out not in (None, channels):
            raise ConfigError(
                "model.decoder does not end with the channels of the features.",
                found=f"{out} channels; the backbone gives {channels}",
                do=f"set its last stage to [{width}, null, ...]",
            )
        up[-1] = [width, channels, *rest]
        self.head = nn.Sequential(
            nn.Conv2d(channels, head, HEAD_KERNEL, bias=False), SharedBatchNorm(head), nn.ReLU()
        )
        # Stage 1 keeps the grid; stage 2 (and 3) may reduce it. The decoder mirrors that.
        none = [None] * max(len(down), len(up))
        self.encoder = _chain(head, down, attention, [None, *grids[1:], *none])
        mirrored = [None, *grids[:-1], *none][len(up) - 1 :: -1]
        self.decoder = _chain(cast(int, down[-1][1]), up, attention, mirrored, up=True)
        cast(Bottleneck, self.decoder[-1]).activation = options.output_activation
        block_d = options.image_decoder
        self.image_decoder = ImageDecoder(channels, block_d) if block_d.enabled else None
        _initialise(self)
        self.classifier: nn.Linear | None = None
        if options.classifier == Classifier.linear:  # keeps torch's own initialisation
            H, W = image_size
            inputs = 3 * H * W if block_d.enabled else channels * (H // 4) * (W // 4)
            self.classifier = nn.Linear(inputs, 2)

    def forward(self, features: Tensor, *, features_only: bool = False) -> Output:
        """Features (B, C, H/4, W/4) -> reconstructions and class.

        With `features_only` the image decoder and the classifier do not run (a fifth of the work).
        """
        latent = self.encoder(self.head(features))
        rebuilt = self._to_grid(self.decoder(latent))
        if features_only:
            return Output(rebuilt, None, None, latent)
        image = None if self.image_decoder is None else self.image_decoder(rebuilt)
        logits = None
        if self.classifier is not None:
            logits = self.classifier((rebuilt if image is None else image).flatten(1))
        return Output(rebuilt, image, logits, latent)

    def _to_grid(self, x: Tensor) -> Tensor:
        """Undo the 4 cells that the head took: (B, C, h, w) -> (B, C, h + 4, w + 4)."""
        if self.output_resize == OutputResize.replicate:
            return F.pad(x, (_RIM // 2,) * 4, mode="replicate")
        size = (x.shape[-2] + _RIM, x.shape[-1] + _RIM)
        return F.interpolate(x, size, mode=self.output_resize.value)  # nearest or bilinear


def _mirrored(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1, padding_mode="reflect")


def _strided(channels: int, out: int, kernel: int, *, up: bool) -> nn.Module:
    """A convolution of stride 2 that halves the grid, or a transposed one that doubles it.

    That gives 2 h - 1 cells; the far row and column are mirrored, which follows the release.
    """
    if not up:
        return nn.Conv2d(channels, out, kernel, 2, kernel // 2, bias=False)
    conv = nn.ConvTranspose2d(channels, out, kernel, 2, kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, pad=nn.ReflectionPad2d((0, 1, 0, 1))))


def _chain(
    channels: int,
    stages: Sequence[Stage],
    attention: AttentionOptions,
    resizes: Sequence[Grid | None],
    up: bool = False,
) -> nn.Sequential:
    """Bottlenecks one behind the other; `resizes`: of each at least."""
    blocks = nn.Sequential()
    for stage, resize in zip(stages, resizes, strict=False):
        blocks.append(Bottleneck(channels, stage, attention, resize, up))
        channels = cast(int, stage[1])
    return blocks


def _initialise(model: HaloAutoEncoder) -> None:
    """Kaiming normal with gain sqrt(2) everywhere, zero biases (as published).

    The decoder's convolutions are transposed ones in the release, whose fan-in torch counts over
    the output channels: for the ordinary convolution that is the fan-out.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            flipped = name.startswith("decoder.") and isinstance(module, nn.Conv2d)
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out" if flipped else "fan_in", nonlinearity="relu"
            )
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def latent_grid(size: Grid, block: int) -> Grid:
    """Cells of the map behind the head for images of (H, W) pixels; multiples of `block`."""
    nearby = sorted({n for side in size for n in nearest_valid(side, block)})
    if set(nearby) != set(size):
        raise ConfigError(
            f"HaloAE needs image sides of 4 (4 + n x {block}) pixels: n blocks of {block} cells "
            "behind the head convolution.",
            found=f"{size[0]} x {size[1]} pixels",
            do=f"set transform.resize to {' or '.join(f'[{n},{n}]' for n in nearby)}, or change "
            "model.attention.block",
        )
    return size[0] // FEATURE_STRIDE - _RIM, size[1] // FEATURE_STRIDE - _RIM


def nearest_valid(side: int, block: int) -> list[int]:
    """The valid image sides next to `side`: itself, or the one below and the one above."""
    step, least = FEATURE_STRIDE * block, FEATURE_STRIDE * (_RIM + block)
    below, rest = divmod(max(side, least) - least, step)
    return [least + n * step for n in (range(below, below + 2) if rest else [below])]


def reduced_grids(grid: Grid, block: int) -> list[Grid]:
    """`grid`, its half and a quarter, as multiples of `block`: the next above, then below.

    The published sizes for 256 px: 60 -> 30 -> 36 (up), then 36 -> 18 -> 12 (down).
    """
    half = tuple(-(-side // (2 * block)) * block for side in grid)
    quarter = tuple(max(1, -(-side // 2) // block) * block for side in half)
    return [grid, (half[0], half[1]), (quarter[0], quarter[1])]
