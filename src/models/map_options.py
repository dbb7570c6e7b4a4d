"""Options that several methods share; see residuals.py and trained.py. No torch here."""

from dataclasses import dataclass
from enum import StrEnum

#: What a residual is compared with: nothing (the papers: its mean size over channels is the map),
#: the mean and spread of that size at each place, or those of every signed channel at each place,
#: of which the most unusual one counts.
Standardise = StrEnum("Standardise", ["none", "position", "position_channel"])
#: Image score of a map: its mean, its largest value, or the mean of its largest values.
MapScore = StrEnum("MapScore", ["mean", "max", "top"])


@dataclass
class MapOptions:
    """From an anomaly map to an image score."""

    score: MapScore
    top_share: float  # of the places of a map, for `top`


@dataclass
class ResidualOptions(MapOptions):
    """From residuals to anomaly maps and image scores."""

    standardise: Standardise
    blur: float  # deviation of a Gaussian over the residual, in places; 0: none
    floor: float  # added to every spread, units of the residual: still places do not blow up noise


@dataclass
class CheckOptions:
    """Looks at held-out good images along a training."""

    check_every: int  # minibatches between two of them, at ends of epochs
    patience: int | None  # of them in a row clearly below the best end the training; None: never
