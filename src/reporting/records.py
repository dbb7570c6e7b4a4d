"""What a report is made of: plain data, independent of models, metrics and files.

Alphabet: H, W pixels of the picture that is shown; h, w cells of an anomaly map, any grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from src.data.samples import DEFECTIVE, NORMAL

if TYPE_CHECKING:
    from src.reporting.colour_scale import ColourScale

#: What a decision turned out to be. "Pass" and "alarm" describe images without a label.
OUTCOMES = ("miss", "false alarm", "hit", "correct pass", "alarm", "pass")


class Box(NamedTuple):
    """A rectangle in pixels of the shown picture; bottom and right are exclusive."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True, slots=True)
class PatchMatch:
    """The most anomalous patch of an image and the normal patch it was compared with."""

    distance: float  # feature distance, >= 0
    metric: str  # "euclidean" | "cosine"
    box: Box  # of the patch in the test picture
    source: str  # file name of the normal image
    source_display: np.ndarray  # (H, W, 3) uint8
    source_box: Box


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything that is drawn of one image."""

    display: np.ndarray  # (H, W, 3) uint8, RGB as a person should see it
    anomaly_map: np.ndarray  # (h, w) float32, raw units, higher is more anomalous
    mask: np.ndarray | None = None  # (H, W) bool, ground truth; None: not known
    segmentation: np.ndarray | None = None  # bool, any grid; None: anomaly_map > pixel threshold
    match: PatchMatch | None = None
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)  # further maps (h, w) by name


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One row of scores.csv and, if wanted, its picture.

    `picture` may be a function, so that a large test set is decoded one image at a time.
    """

    path: str  # shown and searched, for example "broken_large/003.png"
    label: int  # 0 normal, 1 defective, -1 unknown
    defect: str  # folder of the defect type, "good" for normal images
    score: float  # raw units; higher is more anomalous
    decision: bool  # True: the run raised an alarm
    picture: Picture | Callable[[], Picture] | None = None

    @property
    def outcome(self) -> str:
        """One of OUTCOMES."""
        return outcome(self.label, self.decision)

    def load_picture(self) -> Picture | None:
        """The picture, decoded now when it was given as a function."""
        return self.picture() if callable(self.picture) else self.picture


@dataclass(frozen=True, slots=True)
class ThresholdFacts:
    """The operating point; the fields of `src.evaluation.threshold.Threshold`."""

    image: float  # alarm when score > image
    pixel: float  # defective pixel when anomaly map > pixel
    rule: str  # "conformal" | "quantile" | "f1_oracle" | "nfa" | ...
    alpha: float | None = None  # wanted false-alarm level, 0..1
    attained: float | None = None  # level that n calibration images promise on average
    n: int = 0  # calibration images
    oracle: bool = False  # True: test labels were used


@dataclass(frozen=True, slots=True)
class ProtocolFacts:
    """Which images and labels were used for what."""

    name: str  # "honest" | "paper"
    train_images: int
    calibration: str = ""  # "leave-one-image-out", "held-out normal images", ...
    selection: str = ""  # how the checkpoint was chosen; empty: nothing to choose
    pixels: str = ""  # what pixel metrics were measured on; empty: none were
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve of an evaluation; `kind` is "roc", "pr" or "pro"."""

    kind: str
    x: np.ndarray  # (n,) 0..1
    y: np.ndarray  # (n,) 0..1
    area: float  # the number that is reported for this curve
    limit: float = 1.0  # x beyond this is not integrated (0.3 for PRO)


@dataclass(frozen=True, slots=True)
class DefectRecall:
    """How many images of one defect type raised an alarm; low..high is a 95 % interval."""

    defect: str
    found: int
    total: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ReportData:
    """The whole content of report.html. Arrays follow the classes above.

    `images[i].score > threshold.image` should equal `images[i].decision`. For the rule `nfa` that
    holds when scores are the highest -log10 NFA of each image and maps are -log10 NFA.
    """

    title: str
    metrics: Mapping[str, float]  # keys of DESIGN, "test/image_auroc"
    threshold: ThresholdFacts
    protocol: ProtocolFacts
    images: Sequence[ImageResult]
    scale: ColourScale  # shared by all pictures of the run
    extra_scales: Mapping[str, ColourScale] = field(default_factory=dict)  # of further maps
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # 95 %, same keys
    recalls: Sequence[DefectRecall] = ()
    curves: Sequence[Curve] = ()
    subtitle: str = ""
    score_name: str = "anomaly score"  # what ImageResult.score is; rule nfa: "-log10 NFA"
    config_yaml: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""  # reproduces the run
    notes: tuple[str, ...] = ()  # warnings that belong at the top


def outcome(label: int, decision: bool) -> str:
    """Name of a decision in the light of the label; one of OUTCOMES."""
    if label == DEFECTIVE:
        return "hit" if decision else "miss"
    if label == NORMAL:
        return "false alarm" if decision else "correct pass"
    return "alarm" if decision else "pass"


def choose_pictures(images: Sequence[ImageResult], threshold: float, count: int) -> list[int]:
    """Rows whose pictures are most worth showing, at most `count`, best first.

    Wrong decisions come first (misses by lowest score and false alarms by highest, in turn); then
    the closest calls, one of each defect type in turn, so that no type is left out.
    """
    misses = _ordered(images, "miss", lambda row: row.score)
    false_alarms = _ordered(images, "false alarm", lambda row: -row.score)
    chosen = _in_turn([misses, false_alarms])
    rest: dict[str, list[int]] = {}
    close = sorted(
        set(range(len(images))) - set(chosen), key=lambda i: _margin(images[i], threshold)
    )
    for index in close:
        rest.setdefault(images[index].defect, []).append(index)
    chosen += _in_turn([rest[name] for name in sorted(rest)])
    return chosen[:count]


def _ordered(
    images: Sequence[ImageResult], wanted: str, key: Callable[[ImageResult], float]
) -> list[int]:
    rows = [index for index, row in enumerate(images) if row.outcome == wanted]
    return sorted(rows, key=lambda index: key(images[index]))


def _margin(row: ImageResult, threshold: float) -> float:
    distance = abs(row.score - threshold)
    return distance if math.isfinite(distance) else math.inf


def _in_turn(groups: list[list[int]]) -> list[int]:
    longest = max((len(group) for group in groups), default=0)
    return [group[k] for k in range(longest) for group in groups if k < len(group)]
