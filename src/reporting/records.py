"""What a report is made of. H, W: pixels of the picture that is shown; h, w: of an anomaly map."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from src.evaluation.threshold import Deciding, OperatingPoint
from src.reporting.colour_scale import ColourScale
from src.result import Calibration, Curve, DefectRecall, Threshold
from src.saved_run import ScoreRow


class Box(NamedTuple):
    """A rectangle in pixels of the shown picture; bottom and right are exclusive."""

    top: int
    left: int
    bottom: int
    right: int


class PatchMatch(NamedTuple):
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


class ProtocolFacts(NamedTuple):
    """Which images and labels were used for what."""

    name: str  # "honest" | "paper"
    train_images: int
    calibration: Calibration | None = None  # None: an oracle, or nothing was calibrated
    held_out: int = 0  # normal images kept out of training
    selection: str = ""  # how the checkpoint was chosen; empty: nothing to choose
    pixels: str = ""  # what pixel metrics were measured on; empty: none were


@dataclass(frozen=True, slots=True)
class ReportData:
    """The content of report.html; `threshold` decides, unless a method marks regions itself."""

    title: str
    subtitle: str
    metrics: Mapping[str, float]  # as in metrics.json
    threshold: Threshold
    protocol: ProtocolFacts
    images: Sequence[ScoreRow]  # their paths as they are shown and searched
    pictures: Mapping[int, Callable[[], Picture]]  # by number of the image, made one at a time
    scale: ColourScale  # shared by all pictures of the run
    recalls: Sequence[DefectRecall]
    curves: Sequence[Curve]
    config_yaml: str
    manifest: Mapping[str, Any]
    command: str  # reproduces the run
    notes: Sequence[str]  # warnings that belong at the top
    normal_scores: Sequence[float] = ()  # of the calibration images, rising
    points: Sequence[OperatingPoint] = ()  # other thresholds that were possible
    deciding: Deciding | None = None
    deciders: Sequence[tuple[str, float, Picture]] = ()  # path, calibration score, as unseen


def choose_pictures(images: Sequence[ScoreRow], threshold: float, count: int) -> list[int]:
    """Rows whose pictures are most worth showing, at most `count`, best first.

    Wrong decisions (misses by lowest score and false alarms by highest, in turn), then the closest
    calls, one of each defect type in turn, so that no type is left out.
    """

    def in_turn(groups: Iterable[list[int]]) -> list[int]:
        return [i for row in itertools.zip_longest(*groups) for i in row if i is not None]

    by_score = sorted(range(len(images)), key=lambda i: images[i].score)
    misses = [i for i in by_score if images[i].outcome == "miss"]
    alarms = [i for i in reversed(by_score) if images[i].outcome == "false alarm"]
    right: dict[str, list[int]] = {}
    others = set(by_score) - {*misses, *alarms}
    for index in sorted(others, key=lambda i: margin(images[i], threshold)):
        right.setdefault(images[index].defect, []).append(index)
    return [*in_turn([misses, alarms]), *in_turn(right[name] for name in sorted(right))][:count]


def margin(row: ScoreRow, threshold: float) -> float:
    """How far a score is from the threshold; infinite where that cannot be told."""
    distance = abs(row.score - threshold)
    return distance if math.isfinite(distance) else math.inf
