"""The options of CRN; values and meaning: conf/model/crn.yaml."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from src.errors import ConfigError, only
from src.models.map_options import CheckOptions, ResidualOptions

#: Lengths of a cosine schedule by name; doubled: minibatches count twice, as in the official code.
HORIZONS = ("run", "doubled")
Norm = StrEnum("Norm", ["batch", "instance", "none"])  # instance: running statistics, not affine
#: How a unit doubles the resolution: nearest x2, then 3x3, or 4x4 stride 2: half the work on paper,
#: slower on CPUs.
Decoder = StrEnum("Decoder", ["upsample", "transposed"])
Pairing = StrEnum("Pairing", ["random", "matching"])
Score = StrEnum("Score", ["disc", "cycle", "rec"])
Start = StrEnum("Start", ["noise", "mean"])
#: Statistics of the norms in use: those left by training (images and reconstructions mixed, as
#: official), or gathered afterwards for each role: G on normal images, D on what G makes of them.
Statistics = StrEnum("Statistics", ["running", "per_role"])


@dataclass
class LossWeights:
    """Weights of the three terms of a unit's loss."""

    reconstruction: float  # w_r, image against own reconstruction
    feedback: float  # w_f, own reconstruction against what the partner makes of it
    discrimination: float  # w_d, partner's reconstruction against what the unit makes of it


@dataclass
class CRNOptions(CheckOptions):
    """`model` of CRN."""

    num_units: int  # K, at least 2; at 128 px a unit has 30.2 million parameters
    base_channels: int  # of the outermost level
    max_depth: int  # upper limit of levels; the image may allow fewer
    norm: Norm
    decoder: Decoder
    dropout: bool  # Dropout(0.5) in the inner decoder levels
    weights: LossWeights
    margin: float | None  # most that discrimination earns, units of pixels; None: no limit
    pairing: Pairing
    selection_decay: float  # [0, 1): moving average that finds the best units; 0: last minibatch
    score: Score
    residual: ResidualOptions  # from that difference to the map
    start: Start
    obstructed: float  # share of a minibatch that the units see painted over and rebuild whole
    statistics: Statistics
    must_reconstruct: bool  # refuse to end with G further from images than twice their mean image
    optimizer: dict[str, Any]  # class of torch.optim, see conf/optimizer
    scheduler: dict[str, Any]  # class of torch.optim.lr_scheduler, once an epoch; {}: constant
    oracle_curves: bool  # score the test set there; for curves only, unless protocol=paper
    protocol: str  # honest or paper: the weights that did best on the test set are kept
    channels_last: bool  # memory layout of weights and images
    seed: int  # of initial weights and pairs

    def __post_init__(self) -> None:
        if self.num_units < 2:
            raise ConfigError(
                "Competition needs at least two units.",
                found=f"model.num_units={self.num_units}",
                do="set model.num_units=2 or more; the paper uses 12",
            )
        if not 0.0 <= self.selection_decay < 1.0:
            raise ConfigError(
                "The moving average of unit losses needs a decay in [0, 1).",
                found=f"model.selection_decay={self.selection_decay}",
                do="set model.selection_decay=0.9, or 0 for the last value",
            )
        length = self.scheduler.get("T_max", "run")
        only("model.scheduler.T_max", [length] if isinstance(length, str) else [], HORIZONS)
