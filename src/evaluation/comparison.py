"""Two runs on the same images: what differs, by how much, and whether it could be chance.

Both runs are resampled with the same draws of images (paired bootstrap), so that what makes an
image hard for both cancels. Rows are matched by what is in the image files, not by their names;
images that only one run has are left out.
Percentile intervals of small differences near an AUROC of 1 are conservative: of equally good runs
fewer than one in twenty differ "significantly" (tests/evaluation/test_uncertainty.py measures it).
Of the dozen p-values of a table one in twenty falls below 0.05 by chance alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from src.data.samples import DEFECTIVE, UNKNOWN
from src.errors import DataError
from src.evaluation import uncertainty
from src.evaluation.pixel_statistics import PixelStatistics
from src.evaluation.ranking import Floats
from src.evaluation.uncertainty import Difference
from src.scores_table import ScoreRow

Weights = NDArray[np.int32]


class MetricPair(NamedTuple):
    """A metric of both runs and second minus first."""

    metric: str
    first: float
    second: float
    difference: Difference


@dataclass(frozen=True)
class Matched:
    """The images that both runs have, in one order."""

    first: list[ScoreRow]
    second: list[ScoreRow]
    only_first: int
    only_second: int

    @property
    def same_masks(self) -> list[tuple[str, str]]:
        """Paths in both runs of the images that also have the same mask."""
        pairs = zip(self.first, self.second, strict=True)
        return [(a.path, b.path) for a, b in pairs if a.mask == b.mask]

    @property
    def disagreements(self) -> list[tuple[ScoreRow, ScoreRow]]:
        """Images on which the decisions differ: defective first, then by path."""
        pairs = zip(self.first, self.second, strict=True)
        apart = [(a, b) for a, b in pairs if a.decision != b.decision]
        return sorted(apart, key=lambda pair: (-pair[0].label, pair[0].path))


def match(first: Sequence[ScoreRow], second: Sequence[ScoreRow]) -> Matched:
    """Match the rows of two runs by the contents of their images.

    Raises:
        DataError: they share no image, or label one differently.
    """
    a, b = _by_content(first), _by_content(second)
    shared = sorted(a.keys() & b.keys(), key=lambda key: a[key].path)
    if not shared:
        same = {row.path for row in first} & {row.path for row in second}
        raise DataError(
            "The two runs have no test image in common.",
            found=f"{len(a)} and {len(b)} images, all with other contents"
            + (f", although {len(same)} have the same names" if same else ""),
            do="compare runs on the same images, or evaluate one run on the data of the other "
            "with src.evaluate and compare that",
        )
    relabelled = [a[key].path for key in shared if a[key].label != b[key].label]
    if relabelled:
        raise DataError(
            "The two runs label the same images differently.",
            found=f"{len(relabelled)} images, first: {relabelled[0]}",
            do="evaluate one of them again: the data has changed between the runs",
        )
    return Matched(
        [a[key] for key in shared],
        [b[key] for key in shared],
        len(a) - len(shared),
        len(b) - len(shared),
    )


def _by_content(rows: Sequence[ScoreRow]) -> dict[tuple[str, int], ScoreRow]:
    """Rows by content; the n-th copy of an image is met by the other run's n-th copy."""
    copies: dict[str, int] = {}
    found = {}
    for row in rows:
        copies[row.image] = copies.get(row.image, 0) + 1
        found[row.image, copies[row.image]] = row
    return found


def compare_images(matched: Matched, resamples: int, seed: int) -> list[MetricPair]:
    """Image metrics of both runs on their common labelled images, with paired differences."""
    known = [i for i, row in enumerate(matched.first) if row.label != UNKNOWN]
    sides = [[rows[i] for i in known] for rows in (matched.first, matched.second)]
    defect = np.array([row.label == DEFECTIVE for row in sides[0]], dtype=bool)
    weights = _weights(defect, resamples, seed)
    first, second = (
        uncertainty.image_metrics([row.score for row in rows], defect, weights)
        | decision_rates([row.decision for row in rows], defect, weights)
        for rows in sides
    )
    return _pairs(first, second)


def compare_pixels(
    first: PixelStatistics,
    second: PixelStatistics,
    paths: Sequence[tuple[str, str]],
    limits: Mapping[str, float],
    resamples: int,
    seed: int,
) -> list[MetricPair]:
    """Pixel metrics of both runs on common images, from histograms (off by < 0.001).

    `paths` of an image in the first and in the second run; without statistics it is left out.
    """
    there = set(first.paths), set(second.paths)
    known = [(a, b) for a, b in paths if a in there[0] and b in there[1]]
    if not known:
        return []
    parts = [first.of([a for a, _ in known]), second.of([b for _, b in known])]
    weights = _weights(parts[0].defect.sum(axis=1) > 0, resamples, seed)
    return _pairs(*(uncertainty.pixel_metrics(part, weights, limits) for part in parts))


def decision_rates(
    decisions: Sequence[bool], is_defect: NDArray[np.bool_], weights: Weights
) -> dict[str, Floats]:
    """Recall, false alarm rate and F1 of every resample, values (resamples,)."""
    alarm = np.asarray(decisions, dtype=bool)
    hits, false_alarms = weights @ (alarm & is_defect), weights @ (alarm & ~is_defect)
    defects, normals = weights @ is_defect, weights @ ~is_defect
    with np.errstate(invalid="ignore", divide="ignore"):  # an empty class gives NaN
        return {
            "test/recall": hits / defects,
            "test/false_alarm_rate": false_alarms / normals,
            "test/f1": np.where(defects == 0, np.nan, 2 * hits / (hits + false_alarms + defects)),
        }


def _weights(is_defect: NDArray[np.bool_], resamples: int, seed: int) -> Weights:
    generator = np.random.default_rng(seed)
    drawn = uncertainty.stratified_weights(is_defect, resamples, generator)
    return uncertainty.with_observed(drawn)


def _pairs(first: dict[str, Any], second: dict[str, Any]) -> list[MetricPair]:
    rows = []
    for key, a in first.items():
        observed = float(a[0]), float(second[key][0])
        apart = uncertainty.paired_difference(a[1:], second[key][1:], observed)
        rows.append(MetricPair(key, *observed, apart))
    return rows
