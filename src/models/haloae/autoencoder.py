"""Blocks C and E: encoder, decoder and classifier around the image decoder.

Channels are explicit: `[width, out, heads, kernel]` for each bottleneck, see `conf/model/haloae`.
Two repairs keep the mathematics of the release: its stride-1 transposed convolutions are ordinary
convolutions (flipped weights, same result, faster kernels), and the second convolution of stride 2
exists only where a stride is used (the release stores 5.8 million such parameters that never run).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import ConfigError
from src.models.haloae.batch_norm import SharedBatchNorm
from src.models.haloae.halo_attention import HaloAttention
from src.models.haloae.image_decoder import ImageDecoder
from src.models.haloae.options import (
    ACTIVATIONS,
    CLASSIFIERS,
    HEAD_KERNEL,
    OUTPUT_RESIZES,
    REDUCTIONS,
    AttentionOptions,
    ImageDecoderOptions,
    Stage,
    choose,
)
from src.models.haloae.sizes import latent_grid, reduced_grid


class Output(NamedTuple):
    """What one pass gives."""

    features: Tensor  # (B, C, H/4, W/4) reconstruction
    image: Tensor | None  # (B, 3, H, W) reconstruction, normalised units; None when not asked
    logits: Tensor | None  # (B, 2): original, cut-pasted; None when not asked
    latent: Tensor  # (B, c, h, w)


class Bottleneck(nn.Module):
    """1x1 convolution, halo attention, k x k convolution, with a skip around all three.

    Args:
        channels: that come in.
        stage: width, out, heads, kernel.
        attention: geometry.
        resize: grid that leaves, when it differs from the one that comes in.
        up: with `resize`, double the grid first (decoder) instead of halving it.
    """

    def __init__(
        self,
        channels: int,
        stage: Stage,
        attention: AttentionOptions,
        resize: tuple[int, int] | None = None,
        *,
        up: bool = False,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        width, out, heads, kernel = stage
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.norm1 = SharedBatchNorm(width)
        self.attention = HaloAttention(width, heads, attention)
        self.conv2 = nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=False)
        self.stride = None if resize is None else _strided(out, out, 3, up=up)
        self.norm2 = SharedBatchNorm(out)
        self.skip: nn.Sequential | None = None
        if channels != out or resize is not None:
            project = (
                nn.Conv2d(channels, out, 1, bias=False)
                if resize is None
                else _strided(channels, out, 1, up=up)
            )
            self.skip = nn.Sequential(project, SharedBatchNorm(out))
        self.resize, self.activation = resize, activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, out, h', w')."""
        inner = F.relu(self.norm1(self.conv1(x)))
        inner = F.relu(self.attention(inner))
        inner = self.conv2(inner)
        if self.stride is not None:
            inner = self.stride(inner)
        inner = self.norm2(inner) + (x if self.skip is None else self.skip(x))
        if self.activation == "relu":
            inner = F.relu(inner)
        return inner if self.resize is None else F.interpolate(inner, self.resize, mode="nearest")


class HaloAutoEncoder(nn.Module):
    """Reconstructs features, and from them the image; tells originals from pasted images.

    Args:
        channels: of the features.
        image_size: (H, W) in pixels.
        head: channels behind the 5 x 5 head convolution.
        encoder, decoder: stages `[width, out, heads, kernel]`; the last `out` of the decoder may
            be None for `channels`.
        attention, image_decoder: their options.
        reduction: `s1` keeps the grid; `s2` and `s4` halve it in the second (and third) stage.
        classifier: `linear` on the reconstructed image (features without block D), or `none`.
        output_resize: from the head's grid back to the features': `nearest` as published,
            `bilinear`, or `replicate` (pads the rim that the head convolution took, so that
            nothing is stretched).
        output_activation: `relu` as published, for features that are not negative, or `none`.
    """

    def __init__(
        self,
        channels: int,
        image_size: tuple[int, int],
        head: int,
        encoder: Sequence[Sequence[int]],
        decoder: Sequence[Sequence[int | None]],
        attention: AttentionOptions,
        reduction: str,
        image_decoder: ImageDecoderOptions,
        classifier: str,
        output_resize: str,
        output_activation: str,
    ) -> None:
        super().__init__()
        choose("model.reduction", reduction, REDUCTIONS)
        choose("model.classifier", classifier, CLASSIFIERS)
        choose("model.output_resize", output_resize, OUTPUT_RESIZES)
        choose("model.output_activation", output_activation, ACTIVATIONS)
        self.output_resize = output_resize
        grid = latent_grid(image_size, attention.block)
        down = _stages("model.encoder", encoder, None)
        up = _stages("model.decoder", decoder, channels)
        grids = _reduced_grids(grid, attention.block, reduction)
        self.head = nn.Sequential(
            nn.Conv2d(channels, head, HEAD_KERNEL, bias=False), SharedBatchNorm(head), nn.ReLU()
        )
        self.encoder = _encoder(head, down, attention, grids)
        self.decoder = _decoder(down[-1].out, up, attention, [grid, *grids], output_activation)
        self.image_decoder = (
            ImageDecoder(channels, image_decoder) if image_decoder.enabled else None
        )
        _initialise(self)
        self.classifier: nn.Linear | None = None
        if classifier == "linear":  # keeps torch's own initialisation, as published
            H, W = image_size
            inputs = 3 * H * W if image_decoder.enabled else channels * (H // 4) * (W // 4)
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
        rim = HEAD_KERNEL // 2
        if self.output_resize == "replicate":
            return F.pad(x, (rim,) * 4, mode="replicate")
        size = (x.shape[-2] + 2 * rim, x.shape[-1] + 2 * rim)
        if self.output_resize == "nearest":
            return F.interpolate(x, size, mode="nearest")
        return F.interpolate(x, size, mode="bilinear", align_corners=False)


class _UpConvolution(nn.Module):
    """Transposed convolution of stride 2 that doubles the grid exactly: 2 h - 1, then one mirrored.

    Mirroring one row and column at the far side follows the release.
    """

    def __init__(self, channels: int, out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, out, kernel, 2, kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.conv(x), (0, 1, 0, 1), mode="reflect")


def _strided(channels: int, out: int, kernel: int, *, up: bool) -> nn.Module:
    if up:
        return _UpConvolution(channels, out, kernel)
    return nn.Conv2d(channels, out, kernel, 2, kernel // 2, bias=False)


def _encoder(
    channels: int,
    stages: Sequence[Stage],
    attention: AttentionOptions,
    grids: Sequence[tuple[int, int]],
) -> nn.Sequential:
    """Stage 1 keeps the grid; stage 2 (and 3) may reduce it to `grids`."""
    blocks = []
    for position, stage in enumerate(stages):
        resize = grids[position - 1] if 0 < position <= len(grids) else None
        blocks.append(Bottleneck(channels, stage, attention, resize))
        channels = stage.out
    return nn.Sequential(*blocks)


def _decoder(
    channels: int,
    stages: Sequence[Stage],
    attention: AttentionOptions,
    grids: Sequence[tuple[int, int]],
    output_activation: str,
) -> nn.Sequential:
    """Mirror of the encoder: its stride in stage 2 is undone in the last but one, and so on."""
    blocks, last = [], len(stages) - 1
    for position, stage in enumerate(stages):
        step = last - position  # 1: last but one
        resize = grids[step - 1] if 0 < step < len(grids) else None
        blocks.append(
            Bottleneck(
                channels,
                stage,
                attention,
                resize,
                up=True,
                activation=output_activation if position == last else "relu",
            )
        )
        channels = stage.out
    return nn.Sequential(*blocks)


def _reduced_grids(grid: tuple[int, int], block: int, reduction: str) -> list[tuple[int, int]]:
    """Grids after each reducing stage: none, one or two."""
    half = reduced_grid(grid, block, up=True)
    return {"s1": [], "s2": [half], "s4": [half, reduced_grid(half, block, up=False)]}[reduction]


def _stages(key: str, rows: Sequence[Sequence[int | None]], last_out: int | None) -> list[Stage]:
    stages = []
    for position, row in enumerate(rows):
        if len(row) != 4:
            raise ConfigError(
                f"A stage of {key} is [width, out, heads, kernel].",
                found=str(list(row)),
                do="give four numbers, as conf/model/haloae.yaml does",
            )
        width, out, heads, kernel = row
        if out is None and position == len(rows) - 1:
            out = last_out
        if None in (width, out, heads, kernel) or kernel % 2 == 0:  # type: ignore[operator]
            raise ConfigError(
                f"A stage of {key} needs four numbers and an odd kernel.",
                found=str(list(row)),
                do="only the last `out` of the decoder may be null (the features' channels)",
            )
        stages.append(Stage(width, out, heads, kernel))  # type: ignore[arg-type]
    if len(stages) < 3:
        raise ConfigError(
            f"{key} is too short.", found=f"{len(stages)} stages", do="use at least three"
        )
    if last_out is not None and stages[-1].out != last_out:
        raise ConfigError(
            f"{key} does not end with the channels of the features.",
            found=f"{stages[-1].out} channels; the backbone gives {last_out}",
            do=f"set its last stage to [{stages[-1].width}, null, ...]",
        )
    return stages


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
