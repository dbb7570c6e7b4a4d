"""What a detector finds, and what becomes of it: the words that all parts of the house share.

A method makes a `Prediction` of a batch; normal images give `NormalScores`; a rule makes a
`Threshold` of these, which decides. What each number means is in `src.metrics`. No torch here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from src.errors import ConfigError, SavedModelError

if TYPE_CHECKING:
    from torch import Tensor


T = TypeVar("T")


class Prediction(NamedTuple):
    """What a method says of a batch; raw units, float32, higher is more anomalous."""

    score: Tensor  # (B,)
    anomaly_map: Tensor  # (B, h, w), any grid; evaluation resizes it
    mask: Tensor | None = None  # (B, h, w) bool: the method's own decision, where it was asked for
    extra: Mapping[str, Tensor] = {}  # further maps (B, h, w) to show, by name, in powers of ten;
    # above 0 is conspicuous

    def each(self, change: Callable[[Tensor], Tensor]) -> Prediction:
        """The same with `change` made to every tensor."""
        mask = None if self.mask is None else change(self.mask)
        extra = {name: change(value) for name, value in self.extra.items()}
        return Prediction(change(self.score), change(self.anomaly_map), mask, extra)

    def cpu(self) -> Prediction:
        """The same on the CPU, numbers in float32, without gradients."""
        moved = self.each(lambda values: values.detach().cpu())
        return moved._replace(score=moved.score.float(), anomaly_map=moved.anomaly_map.float())


class Calibration(StrEnum):
    """How normal images got scores as if the model had not seen them."""

    held_out = "held_out"  # images kept out of training: split-conformal, an exact promise
    cross = "cross"  # folds, each scored by a model of the others
    leave_one_out = "leave_one_out"  # own rows skipped in one memory bank: scores too high


class NormalScores(NamedTuple):
    """Scores of normal images the model has not seen, one value per image."""

    image: Tensor  # (n,) image scores
    map_max: Tensor  # (n,) highest value of each anomaly map
    way: Calibration = Calibration.held_out
    paths: Sequence[str] = ()  # of the images, below the data root
    categories: Sequence[str] = ()  # of the images

    def of(self, category: str) -> NormalScores:
        """Those of one category."""
        rows = [i for i, name in enumerate(self.categories) if name == category]
        paths, names = [self.paths[i] for i in rows], [category] * len(rows)
        return NormalScores(self.image[rows], self.map_max[rows], self.way, paths, names)


@dataclass(frozen=True)
class Threshold:
    """The operating point of a run, and how it was found."""

    image: float  # alarm when score > image
    pixel: float  # defective pixel when anomaly map > pixel
    rule: str  # "conformal" | "quantile" | "f1_oracle" | "nfa"
    alpha: float | None = None  # wanted probability of a false alarm; None: the rule has none
    attained: float | None = None  # probability that n calibration images promise on average
    n: int = 0  # calibration images
    oracle: bool = False  # True: test labels were used
    each: Mapping[str, Threshold] = field(default_factory=dict, hash=False)  # of several categories

    def of(self, category: str) -> Threshold:
        """That of a category; the one for all where it has none of its own."""
        return self.each.get(category, self)

    @property
    def own_mask(self) -> bool:
        """Whether the method's own mask decides, not the map: the number of false alarms."""
        return self.rule == "nfa"

    def decide(self, prediction: Prediction) -> Tensor:
        """Alarms (B,) bool; of a method's own mask: any marked pixel."""
        if self.own_mask:
            return own(prediction.mask).flatten(1).any(dim=1)
        return prediction.score > self.image

    def mask(self, prediction: Prediction) -> Tensor:
        """Defective pixels (B, h, w) bool on the grid of the map."""
        if self.own_mask:
            return own(prediction.mask)
        return prediction.anomaly_map > self.pixel

    @property
    def attained_limit(self) -> float | None:
        """The false-alarm rate that 95 in 100 calibrations like this one keep."""
        return None if self.attained is None else realised_rate_limit(self.n, self.attained)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values; `from_json` is its inverse."""
        plain = dataclasses.asdict(dataclasses.replace(self, each={}))
        each = {name: one.to_json() for name, one in self.each.items()}
        return plain | {"each": each} if each else {k: v for k, v in plain.items() if k != "each"}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Threshold:
        """Inverse of `to_json`; SavedModelError when keys are missing or unknown."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or {*values, "each"} != names:
            raise SavedModelError(
                "The saved threshold is not usable.",
                found=f"{sorted(values) if isinstance(values, dict) else values!r}",
                do=f"it must have exactly the keys {sorted(names)}; run the experiment again",
            )
        each = {name: cls.from_json(one) for name, one in values.get("each", {}).items()}
        return cls(**values | {"each": each})


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a curve in drawing order, straight lines between them; `kind` names its axes."""

    kind: str  # "roc" | "pr" | "pro"
    x: np.ndarray  # (n,) 0..1
    y: np.ndarray  # (n,) 0..1
    area: float  # the number that is reported for this curve: AUROC, average precision, AUPRO
    limit: float = 1.0  # x beyond this is not integrated (0.3 for PRO)

    def thinned(self, points: int) -> Curve:
        """At most about `points` points: the first and last of each stretch of equal width.

        Widths are measured along both axes, so steep and flat parts keep their shape.
        """
        if len(self.x) <= points:
            return self
        travel = np.cumsum(np.abs(np.diff(self.x, prepend=0)) + np.abs(np.diff(self.y, prepend=0)))
        cell = np.floor((points / 2 - 1) * travel / max(travel[-1], np.finfo(float).tiny))
        turns = np.diff(cell) != 0
        keep = np.r_[True, turns] | np.r_[turns, True]
        return dataclasses.replace(self, x=self.x[keep], y=self.y[keep])


class LineChart(NamedTuple):
    """Lines that a method draws of itself: for each name, places on the x axis and values."""

    x: str  # what the axis is, with its unit
    y: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    log_x: bool = False


class DefectRecall(NamedTuple):
    """Alarms among the images of one defect type, with a 95 % interval of the rate."""

    defect: str
    found: int
    total: int
    low: float
    high: float


def realised_rate_limit(n: int, promised: float, level: float = 0.95) -> float:
    """Upper limit of the false-alarm rate that one calibration on n good parts really has.

    The k-th smallest of n scores promises p = (n + 1 - k) / (n + 1) on average. The rate of a given
    calibration is Beta(n + 1 - k, k) for exchangeable parts (Vovk 2012, Conditional validity of
    inductive conformal predictors); this is its quantile `level`: 0.022 for n = 209 and p = 2/210.
    """
    from scipy.special import betaincinv

    alarms = round(promised * (n + 1))  # n + 1 - k
    return float(betaincinv(alarms, n + 1 - alarms, level)) if 0 < alarms <= n else promised


def own(mask: T | None) -> T:
    """What a method's own mask says, or a ConfigError where it made none."""
    if mask is None:
        what = "threshold=nfa needs a method that computes a number of false alarms."
        do = "use model=uflow, or threshold=conformal with this model"
        raise ConfigError(what, found="predictions without a mask of the method's own", do=do)
    return mask
