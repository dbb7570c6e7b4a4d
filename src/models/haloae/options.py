"""What HaloAE can be told; the values and their sources are in conf/model/haloae.yaml."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from src.errors import ConfigError
from src.models.map_options import CheckOptions, MapOptions

#: Side of one feature cell in pixels: 256 px give the 64 x 64 map of the paper (spec: DFR).
FEATURE_STRIDE = 4
#: Kernel of the unpadded first convolution; it shortens each side of the map by 4.
HEAD_KERNEL = 5

Alignment = StrEnum("Alignment", ["clean", "padded"])
Scaling = StrEnum("Scaling", ["none", "standard"])
Mask = StrEnum("Mask", ["correct", "inverted", "none"])
Reduction = StrEnum("Reduction", ["s1", "s2", "s4"])
Activation = StrEnum("Activation", ["relu", "none"])
Classifier = StrEnum("Classifier", ["linear", "none"])
OutputResize = StrEnum("OutputResize", ["nearest", "bilinear", "replicate"])
Border = StrEnum("Border", ["zero", "reflect", "valid"])
Curriculum = StrEnum("Curriculum", ["logistic", "constant"])
CutPasteMode = StrEnum("CutPasteMode", ["3way", "normal", "scar", "union"])
MapKind = StrEnum("MapKind", ["feature", "image", "sum"])

Stage = list[int | None]  # [width inside, channels that leave, heads, odd side of the kernel]


@dataclass
class AttentionOptions:
    """Geometry of halo attention, the same in every bottleneck."""

    block: int  # side of the square of queries, in feature cells
    halo: int  # cells that the window of keys reaches beyond the block
    dim_head: int
    mask: Mask


@dataclass
class ImageDecoderOptions:
    """Block D, the image decoder."""

    enabled: bool
    first_channels: int
    layers: int  # halvings after the first layer
    tail: int  # 1 or 2 layers that triple as upsampling
    activation: Activation  # after each tail layer

    def __post_init__(self) -> None:
        if self.tail not in (1, 2):
            raise ConfigError(
                "model.image_decoder.tail is 1 or 2.", found=str(self.tail), do="use 2 (published)"
            )
        if self.first_channels >> self.layers < 1:
            raise ConfigError(
                "model.image_decoder halves its channels to nothing.",
                found=f"first_channels={self.first_channels}, layers={self.layers}",
                do="use fewer layers or more first_channels (published: 4 and 380)",
            )


@dataclass
class SsimOptions:
    """Window of the structural similarity."""

    window: int  # side in cells, odd
    sigma: float  # cells
    border: Border  # zero as HaloAE; reflect as torchmetrics and kornia; valid drops the rim

    def __post_init__(self) -> None:
        if self.window < 1 or self.window % 2 == 0:
            raise ConfigError(
                "model.loss.ssim.window must be odd.", found=str(self.window), do="use 11"
            )


@dataclass
class ScheduleOptions:
    """Weights of the three losses over training; see `losses.loss_weights`."""

    kind: Curriculum
    start: list[float]  # of classification, features, image; so are the others
    end: list[float]
    midpoint: list[float]  # fraction of training in [0, 1]
    slope: list[float]  # per unit fraction
    constant: list[float]  # the weights when kind is constant

    def __post_init__(self) -> None:
        for name in ("start", "end", "midpoint", "slope", "constant"):
            if len(getattr(self, name)) != 3:
                raise ConfigError(
                    f"model.loss.schedule.{name} needs three numbers.",
                    found=str(list(getattr(self, name))),
                    do="give one each for classification, features and image",
                )


@dataclass
class LossOptions:
    """How reconstructions are judged, and how the losses are weighed."""

    ssim: SsimOptions
    schedule: ScheduleOptions


@dataclass
class CutPasteOptions:
    """Ranges of the pasted pieces; sides of the scar are pixels of the network input."""

    mode: CutPasteMode
    jitter: float | None  # strength of brightness, contrast, saturation and hue; null: off
    area: list[float]  # share of the image
    aspect: float  # smallest ratio; the range is [aspect, 1 / aspect]
    scar_width: list[float]
    scar_height: list[float]
    rotation: list[float]  # degrees


@dataclass
class ScoringOptions(MapOptions):
    """From reconstruction errors to the anomaly map and the image score."""

    map: MapKind
    normalise: bool  # distance to the mean error map of normal training images
    spread: bool  # ours: in units of its spread over them at each place, low errors are no evidence
    blur: bool  # binomial 3 x 3


@dataclass
class HaloAEOptions(CheckOptions):
    """All of it; the classes above are groups of the same name."""

    feature_alignment: Alignment  # see `features.MultiScaleFeatures`
    feature_scaling: Scaling  # none as published; standard: see `features.ChannelScaling`
    head: int  # channels behind the head convolution
    encoder: list[Stage]
    decoder: list[Stage]  # the last may give null channels: those of the features
    attention: AttentionOptions
    reduction: Reduction  # s1 keeps the grid; s2, s4 halve it in the second (and third) stage
    image_decoder: ImageDecoderOptions
    classifier: Classifier  # on the reconstructed image (features without block D), or none
    output_resize: OutputResize  # from the head's grid back to the features'
    output_activation: Activation  # relu as published, for features that are not negative
    loss: LossOptions
    cutpaste: CutPasteOptions
    optimizer: dict[str, Any]  # class of torch.optim, see conf/optimizer
    scoring: ScoringOptions
    mean: list[float]  # of the image normalisation, undone and redone around the colour jitter
    std: list[float]
    seed: int  # of jitter and CutPaste

    def __post_init__(self) -> None:
        if self.scoring.map != MapKind.feature and not self.image_decoder.enabled:
            raise ConfigError(
                "An image error map needs the image decoder.",
                found=f"model.scoring.map={self.scoring.map}, model.image_decoder.enabled=false",
                do="set model.scoring.map=feature or model.image_decoder.enabled=true",
            )
        for key, stages in (("encoder", self.encoder), ("decoder", self.decoder)):
            if len(stages) < 3:
                raise ConfigError(
                    f"model.{key} is too short.",
                    found=f"{len(stages)} stages",
                    do="use at least three",
                )
            for stage in stages:
                free = key == "decoder" and stage is stages[-1]
                numbers = [*stage[:1], *stage[2:]] if free else stage
                if len(stage) != 4 or None in numbers or not (stage[3] or 0) % 2:
                    raise ConfigError(
                        f"A stage of model.{key} is [width, out, heads, kernel], kernel odd.",
                        found=str(list(stage)),
                        do="give four numbers; only the last `out` of the decoder may be null "
                        "(the channels of the features)",
                    )
