"""Two runs on the same images, or several methods on the same categories: what is beyond chance.

Both runs are resampled with the same draws of images (paired bootstrap), so that what makes an
image hard for both cancels. Percentile intervals of small differences near an AUROC of 1 are
conservative: of equally good runs fewer than one in twenty differ "significantly"
(tests/evaluation/test_uncertainty.py). Of the dozen p-values of a table one in twenty falls below
0.05 by chance alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import friedmanchisquare, studentized_range

from src.data.samples import DEFECTIVE, UNKNOWN
from src.errors import DataError
from src.evaluation import uncertainty
from src.evaluation.pixels import PixelHistograms
from src.evaluation.uncertainty import Difference


class MetricPair(NamedTuple):
    """A metric of both runs and second minus first."""

    metric: str
    first: float
    second: float
    difference: Difference


class MethodRanks(NamedTuple):
    """How methods rank over categories: 1 is the best, equal ones share their ranks."""

    mean: pd.Series  # mean rank by method, the best first
    categories: int
    p_value: float  # of "all methods are equally good" (Friedman)
    critical: float  # mean ranks that differ by no more cannot be told apart (Nemenyi)

    @property
    def groups(self) -> list[tuple[int, int]]:
        """First and last of every longest stretch of methods that cannot be told apart."""
        ranks = self.mean.to_numpy()
        last = np.searchsorted(ranks, ranks + self.critical, side="right") - 1
        new = np.diff(last, prepend=-1) > 0
        return [(i, int(end)) for i, end in enumerate(last) if end > i and new[i]]


class Matched(NamedTuple):
    """The images that both runs have: every column of scores.csv twice, ending in _a and _b."""

    images: pd.DataFrame  # by path of the first run
    only_first: int
    only_second: int

    @property
    def same_masks(self) -> list[tuple[str, str]]:
        """Paths in both runs of the images that also have the same mask."""
        same = self.images[self.images.mask_a == self.images.mask_b]
        return list(zip(same.path_a, same.path_b, strict=True))

    @property
    def disagreements(self) -> pd.DataFrame:
        """Images on which the decisions differ: defective first, then by path."""
        apart = self.images[self.images.decision_a != self.images.decision_b]
        return apart.sort_values(["label_a", "path_a"], ascending=[False, True])


def match(first: pd.DataFrame, second: pd.DataFrame) -> Matched:
    """Match the images of two runs by their contents; n-th copies of one image meet.

    DataError: they share no image, or label one differently.
    """
    keyed = [
        run.assign(content=run.image, copy=run.groupby("image").cumcount())
        for run in (first, second)
    ]
    both = keyed[0].merge(keyed[1], on=["content", "copy"], suffixes=("_a", "_b"))
    if both.empty:
        same = len(set(first.path) & set(second.path))
        raise DataError(
            "The two runs have no test image in common.",
            found=f"{len(first)} and {len(second)} images, all with other contents"
            + (f", although {same} have the same names" if same else ""),
            do="compare runs on the same images, or evaluate one run on the data of the other "
            "with src.evaluate and compare that",
        )
    both = both.sort_values("path_a", ignore_index=True)
    relabelled = both.path_a[both.label_a != both.label_b]
    if len(relabelled):
        what = "The two runs label the same images differently."
        do = "evaluate one of them again: the data has changed between the runs"
        raise DataError(what, found=f"{len(relabelled)} images, first: {relabelled.iloc[0]}", do=do)
    return Matched(both, len(first) - len(both), len(second) - len(both))


def compare_images(matched: Matched, resamples: int, seed: int) -> list[MetricPair]:
    """Image metrics of both runs on their common labelled images, with paired differences."""
    known = matched.images[matched.images.label_a != UNKNOWN]
    scores = [known[f"score_{run}"].to_numpy() for run in "ab"]
    defect = (known.label_a == DEFECTIVE).to_numpy()
    weights = uncertainty.drawn_images(defect, resamples, seed)
    first, second = (
        uncertainty.image_metrics(score, defect, weights)
        | uncertainty.decision_rates(known[f"decision_{run}"], defect, weights)
        for score, run in zip(scores, "ab", strict=True)
    )
    rows = _pairs(first, second)
    apart = uncertainty.delong(scores, defect, [-1, 1])
    (area,) = (row for row in rows if row.metric == "test/image_auroc")
    return [*rows, area._replace(metric="test/image_auroc_delong", difference=apart)]


def compare_pixels(
    first: PixelHistograms,
    second: PixelHistograms,
    paths: Sequence[tuple[str, str]],
    limits: Mapping[str, float],
    resamples: int,
    seed: int,
) -> list[MetricPair]:
    """Pixel metrics of both runs on common images, from histograms (off by < 0.001).

    `paths` of an image in the first and in the second run; without statistics it is left out.
    """
    there = set(first.image.tolist()), set(second.image.tolist())
    known = [(a, b) for a, b in paths if a in there[0] and b in there[1]]
    if not known:
        return []
    parts = [first.of([a for a, _ in known]), second.of([b for _, b in known])]
    weights = uncertainty.drawn_images(parts[0].defect.sum(axis=1) > 0, resamples, seed)
    return _pairs(*(uncertainty.pixel_metrics(part, weights, limits) for part in parts))


def rank_methods(table: pd.DataFrame, *, lower_is_better: bool = False) -> MethodRanks:
    """Friedman's test and Nemenyi's critical difference at 0.05 (Demsar 2006, JMLR 7:1, 3.2.2).

    `table`: the metric by category (row) and method (column), complete. DataError: fewer than
    three methods or two categories.
    """
    categories, methods = table.shape
    if methods < 3 or categories < 2:
        found = f"{methods} methods on {categories} categories that all of them have"
        do = "add runs; for two methods compare their runs by run_a=... run_b=..."
        raise DataError("Ranks need three methods on two categories at least.", found=found, do=do)
    spread = studentized_range.ppf(uncertainty.LEVEL, methods, np.inf) / np.sqrt(2)
    return MethodRanks(
        table.rank(axis=1, ascending=lower_is_better).mean().sort_values(kind="stable"),
        categories,
        float(friedmanchisquare(*table.T.to_numpy()).pvalue),
        float(spread * np.sqrt(methods * (methods + 1) / (6 * categories))),
    )


def _pairs(first: dict[str, Any], second: dict[str, Any]) -> list[MetricPair]:
    rows = []
    for key, a in first.items():
        observed = float(a[0]), float(second[key][0])
        apart = uncertainty.paired_difference(a[1:], second[key][1:], observed)
        rows.append(MetricPair(key, *observed, apart))
    return rows
