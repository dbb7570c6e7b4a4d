"""The configuration of HaloAE as typed, checked values; `conf/model/haloae.yaml` holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple, TypeVar

from src.errors import ConfigError, did_you_mean

#: Side of one feature cell in pixels: 256 px give the 64 x 64 map of the paper (spec: DFR).
FEATURE_STRIDE = 4
#: Kernel of the unpadded first convolution; it shortens each side of the map by 4.
HEAD_KERNEL = 5

MASKS = ("correct", "inverted", "none")
PATHS = ("bias", "folded")
REDUCTIONS = ("s1", "s2", "s4")
ACTIVATIONS = ("relu", "none")
CLASSIFIERS = ("linear", "none")
OUTPUT_RESIZES = ("nearest", "bilinear", "replicate")
ALIGNMENTS = ("clean", "padded")
SCALINGS = ("none", "standard")
BORDERS = ("zero", "reflect", "valid")
SCHEDULES = ("logistic", "constant")
CUTPASTE_MODES = ("3way", "normal", "scar", "union")
MAPS = ("feature", "image", "sum")
IMAGE_SCORES = ("mean", "max")


class Stage(NamedTuple):
    """One bottleneck: `[width, out, heads, kernel]` in the configuration."""

    width: int  # channels inside, what the attention sees
    out: int  # channels that leave
    heads: int
    kernel: int  # side of the second convolution, odd


@dataclass(frozen=True)
class AttentionOptions:
    """Geometry of halo attention, the same in every bottleneck."""

    block: int  # side of the square of queries, in feature cells
    halo: int  # cells that the window of keys reaches beyond the block
    dim_head: int
    mask: str  # one of MASKS
    path: str  # one of PATHS

    def __post_init__(self) -> None:
        choose("model.attention.mask", self.mask, MASKS)
        choose("model.attention.path", self.path, PATHS)


@dataclass(frozen=True)
class ImageDecoderOptions:
    """Block D, the image decoder."""

    enabled: bool
    first_channels: int
    layers: int  # halvings after the first layer
    tail: int  # 1 or 2 layers that triple as upsampling
    activation: str  # one of ACTIVATIONS, after each tail layer

    def __post_init__(self) -> None:
        choose("model.image_decoder.activation", self.activation, ACTIVATIONS)
        choose("model.image_decoder.tail", self.tail, (1, 2))


@dataclass(frozen=True)
class ScheduleOptions:
    """Weights of the three losses over training; see `losses.loss_weights`."""

    kind: str  # one of SCHEDULES
    start: Sequence[float]  # classification, features, image
    end: Sequence[float]
    midpoint: Sequence[float]  # fraction of training in [0, 1]
    slope: Sequence[float]  # per unit fraction
    constant: Sequence[float]  # the weights when kind is constant

    def __post_init__(self) -> None:
        choose("model.loss.schedule.kind", self.kind, SCHEDULES)
        for name in ("start", "end", "midpoint", "slope", "constant"):
            if len(getattr(self, name)) != 3:
                raise ConfigError(
                    f"model.loss.schedule.{name} needs three numbers.",
                    found=str(list(getattr(self, name))),
                    do="give one each for classification, features and image",
                )


@dataclass(frozen=True)
class SsimOptions:
    """Window of the structural similarity."""

    window: int  # side in cells, odd
    sigma: float  # cells
    border: str  # one of BORDERS

    def __post_init__(self) -> None:
        choose("model.loss.ssim.border", self.border, BORDERS)
        if self.window < 1 or self.window % 2 == 0:
            raise ConfigError(
                "model.loss.ssim.window must be odd.", found=str(self.window), do="use 11"
            )


@dataclass(frozen=True)
class CutPasteOptions:
    """Ranges of the pasted pieces; sides of the scar are pixels of the network input."""

    mode: str  # one of CUTPASTE_MODES
    jitter: float | None  # strength of brightness, contrast, saturation and hue; null: off
    area: Sequence[float]  # share of the image
    aspect: float  # smallest ratio; the range is [aspect, 1 / aspect]
    scar_width: Sequence[float]
    scar_height: Sequence[float]
    rotation: Sequence[float]  # degrees

    def __post_init__(self) -> None:
        choose("model.cutpaste.mode", self.mode, CUTPASTE_MODES)


@dataclass(frozen=True)
class ScoringOptions:
    """From reconstruction errors to the anomaly map and the image score."""

    map: str  # one of MAPS
    normalise: bool  # distance to the mean error map of normal training images
    blur: bool  # binomial 3 x 3
    score: str  # one of IMAGE_SCORES

    def __post_init__(self) -> None:
        choose("model.scoring.map", self.map, MAPS)
        choose("model.scoring.score", self.score, IMAGE_SCORES)


T = TypeVar("T")


def read_options(kind: type[T], values: Mapping[str, Any] | T, key: str) -> T:
    """The dataclass `kind` filled from a mapping with exactly its fields.

    Args:
        kind: one of the dataclasses above.
        values: the mapping of the configuration, or an already built `kind`.
        key: where it stands in the configuration, for the error message.

    Raises:
        ConfigError: a key is missing or unknown.
    """
    if isinstance(values, kind):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{key} is a group of keys.", found=repr(values), do="see conf/model/haloae.yaml"
        )
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    required = [f.name for f in fields(kind) if f.default is MISSING]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise ConfigError(
                f"Unknown key {key}.{name}.", found=str(name), do=did_you_mean(str(name), names)
            )
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigError(
            f"{key} is incomplete.",
            found=f"no {', '.join(missing)}",
            do="see conf/model/haloae.yaml",
        )
    return kind(**values)


def choose(key: str, value: object, options: Sequence[object]) -> None:
    """Raise ConfigError unless `value` is one of `options`."""
    if value not in options:
        raise ConfigError(
            f"Unknown {key}.",
            found=repr(value),
            do=did_you_mean(str(value), [str(option) for option in options]),
        )
