"""From scores of normal images to a decision, and what other thresholds would promise and find.

A decision is always `score > threshold`, a mask always `anomaly map > threshold`. The threshold of
the map comes from the same rule applied to the highest map value of each calibration image, so it
bounds the probability that a normal image shows any marked pixel, not the share of such pixels.

Every threshold is a float32 value: torch and exported models compare in float32.
"""

import inspect
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple, Self, cast, get_type_hints

import hydra
import numpy as np
from numpy.typing import ArrayLike, NDArray
from omegaconf import DictConfig

from src.data.samples import DEFECTIVE, NORMAL
from src.errors import ConfigError
from src.evaluation.ranking import Ranking, f1_threshold, finite, rank
from src.result import NormalScores, Threshold

log = logging.getLogger(__name__)

POINTS = "operating_points.csv"  # in a run folder, one row an `OperatingPoint`
#: Shares of false alarms that a table of thresholds shows beside 1 / (n + 1). ours.
ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2)


class Rule:
    """How a threshold is found: the k-th smallest of n scores, and of n map maxima."""

    name: ClassVar[str]
    needs_labels: ClassVar[bool] = False  # True: call `fit_oracle` with test labels instead
    needs_own_mask: ClassVar[bool] = False  # True: models must fill Prediction.mask

    def fit(self, normal: NormalScores | None) -> Threshold | None:
        """The threshold from scores (n,) of normal images the model has not seen, n >= 2.

        Each of several categories has one of its own. None: the rule needs labels. ConfigError:
        there are too few of them. DataError: some are NaN or infinite.
        """
        count = 0 if normal is None else len(normal.image)
        if normal is None or count < 2:
            raise ConfigError(
                "A threshold needs the scores of two normal images at least, better of 100.",
                found=f"{count} calibration image{'s' * (count != 1)}",
                do="give more good images; where the method cannot hold out its own training "
                "images, set calibration.fraction=0.1 to keep a tenth of them for it; with "
                "data.shots=1, calibration.beyond_shots=true, or threshold=f1_oracle to measure "
                "the ranking alone",
            )
        image = np.sort(finite(normal.image.float(), what="calibration scores"))
        map_max = np.sort(finite(normal.map_max.float(), what="calibration map maxima"))
        k, alpha = self._order(image)
        attained = (count + 1 - k) / (count + 1)
        names = dict.fromkeys(normal.categories)
        parts = {name: self.fit(normal.of(name)) for name in names if name and len(names) > 1}
        each = {name: one for name, one in parts.items() if one}
        decisive = float(image[k - 1]), float(map_max[k - 1])
        return Threshold(*decisive, self.name, alpha, attained, count, each=each)

    def _order(self, ordered: NDArray[Any]) -> tuple[int, float]:
        """Which of n sorted scores, 1..n, and the wanted probability of a false alarm."""
        raise NotImplementedError


@dataclass
class Conformal(Rule):
    """Split-conformal threshold: on average, a share `alpha` of good parts or less alarms.

    The k-th smallest of n calibration scores, k = ceil((n + 1)(1 - alpha)). If calibration and
    future normal scores are exchangeable, P(future score > threshold) <= alpha, for any
    distribution, any n and with ties (Vovk et al., Algorithmic Learning in a Random World;
    Papadopoulos 2002). That is an average over calibrations: `Threshold.attained_limit` is what 95
    in 100 of them keep. `src.reporting.wording` says what is known of scores of other ways than a
    held-out share (`src.result.Calibration`).

    n images cannot promise less than 1 / (n + 1). Then the highest score is used, and the level
    that it does promise is stored in `attained` and logged with the number of images needed.
    """

    name = "conformal"
    alpha: float

    def _order(self, ordered: NDArray[Any]) -> tuple[int, float]:
        n = ordered.size
        order = conformal_order(n, self.alpha)
        if order > n:
            log.warning(
                "%d good images: %.3g %% false alarms is not possible; at %.3g %% (1/%d) the "
                "highest of their scores decides alone, threshold %.4g. For %.3g %% use at least "
                "%d images.",
                n, 100 * self.alpha, 100 / (n + 1), n + 1, ordered[-1],
                100 * self.alpha, images_needed(self.alpha),
            )  # fmt: skip
        return min(order, n), self.alpha


@dataclass
class Quantile(Rule):
    """The plain empirical quantile: the smallest score that a share `q` of the normals reaches.

    No correction for n: with few images the false alarm rate exceeds 1 - q on average; `attained`
    says what the same order statistic promises on average.
    """

    name = "quantile"
    q: float

    def _order(self, ordered: NDArray[Any]) -> tuple[int, float]:
        share = Fraction(str(self.q))
        return math.ceil(share * ordered.size), float(1 - share)


class Nfa(Rule):
    """A-contrario decision of U-Flow: a pixel is defective when log10 NFA < 0.

    Less than one such region is expected in an image of pure noise. Nothing is calibrated or
    promised: latents of real images are not independent N(0, 1) (docs/uflow_threshold.md). Both
    thresholds are 0, on -log10 NFA.
    """

    name = "nfa"
    needs_own_mask = True

    def fit(self, normal: NormalScores | None) -> Threshold:
        """The constant threshold."""
        return Threshold(0.0, 0.0, self.name)


class F1Oracle(Rule):
    """The threshold with the best F1 on the test set itself: an upper bound, not a deployable rule.

    An exact sweep over the sorted scores. Masks give the pixel threshold by pixel F1; without masks
    it is the F1-optimal threshold of the highest map values.
    """

    name = "f1_oracle"
    needs_labels = True

    def fit(self, normal: NormalScores | None) -> None:
        """None: normal images say nothing of it."""

    def fit_oracle(
        self, scores: ArrayLike, is_defect: ArrayLike, map_max: ArrayLike, pixels: Ranking | None
    ) -> Threshold:
        """The threshold from labelled scores (n,), map maxima (n,) and the pixel table, if any.

        ConfigError: normal or defective images are missing.
        """
        images = rank(finite(scores).astype(np.float32), is_defect)
        if images.empty:
            raise ConfigError(
                "threshold=f1_oracle needs normal and defective test images.",
                found=f"{images.normals} normal, {int(images.defects)} defective",
                do="use threshold=conformal, which needs normal images only",
            )
        if pixels is None or pixels.empty:
            pixels = rank(finite(map_max).astype(np.float32), is_defect)
        return Threshold(f1_threshold(images), f1_threshold(pixels), self.name, oracle=True)


def conformal_order(n: int, alpha: float) -> int:
    """Which of n sorted scores promises `alpha`: ceil((n + 1)(1 - alpha)); n + 1: none does."""
    # Fractions: 100 * (1 - 0.01) is 99.00000000000001 in floating point, one rank too many.
    return math.ceil((n + 1) * (1 - Fraction(str(alpha))))


def images_needed(alpha: float) -> int:
    """The least number of calibration images that can promise `alpha`."""
    return math.ceil(1 / Fraction(str(alpha))) - 1


def build_rule(cfg: DictConfig) -> Rule:
    """The rule of the config group `threshold`; options of another rule are passed over.

    An experiment that sets `threshold.alpha` must not forbid `threshold=quantile` on the command
    line.
    """
    rule = hydra.utils.get_class(cfg["_target_"])
    known = inspect.signature(rule).parameters
    return cast(Rule, rule(**{str(key): cfg[key] for key in cfg if key in known}))


class OperatingPoint(NamedTuple):
    """A threshold that was possible, and its decisions on the test images."""

    alpha: float  # wanted share of false alarms
    threshold: float  # alarm when score > threshold
    attained: float  # share that n calibration scores promise at this threshold on average
    found: int  # alarms among the defective test images
    defective: int
    false_alarms: int  # alarms among the normal test images
    normal: int

    @property
    def possible(self) -> bool:
        """Whether n calibration scores can promise `alpha`."""
        return self.attained <= self.alpha * (1 + 1e-9)  # 1 / (n + 1) is rounded

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """From a row of `POINTS`."""
        kinds = get_type_hints(cls)
        return cls(**{name: kinds[name](row[name]) for name in cls._fields})


class Deciding(NamedTuple):
    """The picture that set the threshold, what would hold without it, and those above."""

    path: str
    score: float
    lower: float | None  # the next lower score; None: there is none
    attained: float  # share of false alarms that `lower` promises, the picture being one of them
    above: Sequence[tuple[str, float]]  # pictures with higher scores, the highest first


def promised(normal: NormalScores, threshold: float) -> float:
    """(1 + scores above the threshold) / (n + 1): false alarms that it promises on average."""
    return (1 + int((normal.image > threshold).sum())) / (len(normal.image) + 1)


def operating_points(
    normal: NormalScores, scores: ArrayLike, labels: ArrayLike
) -> list[OperatingPoint]:
    """The conformal thresholds of `ALPHAS` and of 1 / (n + 1), the least that n scores promise.

    `scores`, `labels`: of the test images (m,); those without a known label are not counted.
    """
    ordered, n = np.sort(normal.image.float().numpy()), len(normal.image)
    scores, labels = np.asarray(scores, dtype=np.float32), np.asarray(labels)
    points = []
    for alpha in sorted({*ALPHAS, 1 / (n + 1)}):
        threshold = ordered[min(conformal_order(n, alpha), n) - 1].item()
        counts = [
            int(of.sum())
            for kind in (DEFECTIVE, NORMAL)
            for of in (scores[labels == kind] > threshold, labels == kind)
        ]
        points.append(OperatingPoint(alpha, threshold, promised(normal, threshold), *counts))
    return points


def deciding(normal: NormalScores | None, threshold: Threshold) -> Deciding | None:
    """Which calibration picture set the threshold; None: none did, or their names are unknown."""
    if normal is None or not normal.paths or threshold.own_mask:
        return None
    ranked = sorted(zip(normal.image.tolist(), normal.paths, strict=True), reverse=True)
    setter = next((path for score, path in ranked if score == threshold.image), None)
    if setter is None:
        return None
    above = [(path, score) for score, path in ranked if score > threshold.image]
    lower = next((score for score, _ in ranked if score < threshold.image), None)
    level = 1.0 if lower is None else promised(normal, lower)
    return Deciding(setter, threshold.image, lower, level, above)


def conformal_p(normal: NormalScores, scores: ArrayLike) -> NDArray[np.float64]:
    """P-value (m,) of each score (m,): of "this is a part like the calibration images".

    (1 + calibration scores at least as high) / (n + 1) (Vovk et al. 2005; Bates et al. 2023, Annals
    of Statistics 51:149).
    """
    ordered = np.sort(normal.image.double().numpy())
    reached = np.searchsorted(ordered, np.asarray(scores, dtype=np.float64))
    return (1 + ordered.size - reached) / (ordered.size + 1)


def suspicion(normal: NormalScores) -> list[tuple[str, float, float]]:
    """(path, score, p) of calibration pictures, the most conspicuous first.

    p is the share of all n pictures that score at least as high, 1 / n for the highest alone.
    """
    values = normal.image.float().numpy()
    ordered = np.sort(values)
    p = 1 - np.searchsorted(ordered, values) / len(values)
    order = np.argsort(-values, kind="stable")
    return [(normal.paths[i], float(values[i]), float(p[i])) for i in order]
