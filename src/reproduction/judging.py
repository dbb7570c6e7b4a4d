"""Ours beside the paper's: rows of a table, each with an interval and a verdict.

The tolerance of a number is measured, not chosen. A paper's number and ours differ by the draw of
the test images, by the seeds, and by rounding. So the paper's number is within tolerance when it
lies in

    ours - sqrt(test_low**2 + seeds**2) - rounding
    ..  ours + sqrt(test_high**2 + seeds**2) + rounding

where `test_low` and `test_high` are the distances to the limits of our run's 95 % interval over
test images, `seeds` is the reach of Student's 95 % prediction interval for one more run, t * s *
sqrt(1 + 1/k) from k >= 3 seeds (fewer seeds cannot tell a spread and add nothing), and `rounding`
is half a unit of the paper's last digit. Distances add in squares as in MOVER (Zou and Donner
2008, Statistics in Medicine 27:1693).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import t as student

from src.evaluation.uncertainty import LEVEL, Interval, mean_interval
from src.reproduction.papers import GROUPS, MEAN, Published, Variant

MIN_SEEDS = 3  # ours: Student's t of two seeds spans half the scale
WITHIN, BELOW, ABOVE, UNJUDGED = "within", "below", "above", "not judged"
#: Values are fractions in float64: differences below this are arithmetic, not results.
_TINY = 1e-12
_UNKNOWN = Interval(math.nan, math.nan)


@dataclass(frozen=True)
class Measured:
    """One finished run of a cell."""

    seed: int
    metrics: Mapping[str, float]  # of metrics.json
    intervals: Mapping[str, Interval]  # over test images, by metric key
    config_hash: str
    protocol: str
    seconds: float  # wall time of the whole job; NaN: unknown


@dataclass(frozen=True)
class Row:
    """One line of a table: one metric of one category, or of a mean of categories."""

    table: str
    variant: str
    category: str
    metric: str
    ours: float = math.nan  # mean over seeds
    std: float = math.nan  # over seeds, n - 1
    seeds: int = 0
    over_images: Interval = _UNKNOWN  # 95 % over test images
    interval: Interval = _UNKNOWN  # 95 % over test images and seeds
    column: int = 0  # which of the published columns of this metric
    paper: float | None = None
    tolerance: Interval = _UNKNOWN  # where the paper's number may lie
    verdict: str = UNJUDGED
    source: str = ""
    note: str = ""
    protocol: str = ""
    hashes: tuple[str, ...] = ()
    seconds: float = math.nan  # per run
    of: tuple[int, int] = field(default=(1, 1))  # categories present of all, for means

    @property
    def difference(self) -> float:
        """Ours minus the paper's."""
        return math.nan if self.paper is None else self.ours - self.paper

    @property
    def fails(self) -> bool:
        """Whether the number left its tolerance."""
        return self.verdict in (BELOW, ABOVE)


Cells = Mapping[str, Sequence[Measured]]  # runs by category


def judge_variant(table: str, variant: Variant, cells: Cells) -> list[Row]:
    """Every row of a variant, category rows first, then group and total means."""
    rows: list[Row] = []
    for metric in variant.metrics:
        columns: list[Published | None] = [p for p in variant.published if p.metric == metric]
        base = {c: _measure(table, variant.name, c, metric, cells.get(c, ())) for c in
                variant.categories}  # fmt: skip
        for column, published in enumerate(columns or [None]):
            found = [_judge(row, published) for row in base.values() if row.seeds]
            found += _means(base, published)
            rows += [replace(row, column=column) for row in found]
    return rows


def verdict_line(rows: Sequence[Row], unfinished: int, absent: Sequence[str]) -> str:
    """The outcome in one line; it begins with PARTIAL when runs or data are missing."""
    judged = [row for row in rows if row.verdict != UNJUDGED]
    outside = sum(row.fails for row in judged)
    parts = [f"{len(judged) - outside} of {len(judged)} judged numbers are within tolerance"]
    if unfinished:
        parts.append(f"{unfinished} runs missing")
    if absent:
        parts.append(f"no data for {len(absent)} categories ({', '.join(absent)})")
    partial = bool(unfinished or absent)
    word = "PARTIAL" if partial else "OUTSIDE" if outside else "REPRODUCED" if judged else "DONE"
    return f"{word}: {'; '.join(parts)}."


def tolerance(
    value: float, over_images: Interval, std: float, seeds: int, rounding: float
) -> Interval:
    """Where a paper's number may lie beside ours; see the module's formula."""
    reach = _seed_reach(std, seeds, predict=True)
    down = math.hypot(value - over_images.low, reach) + rounding
    up = math.hypot(over_images.high - value, reach) + rounding
    return Interval(value - down, value + up)


def verdict(paper: float, allowed: Interval) -> str:
    """within, or on which side ours lies; a NaN limit cannot judge."""
    if math.isnan(allowed.low) or math.isnan(allowed.high):
        return UNJUDGED
    if paper > allowed.high + _TINY:
        return BELOW
    return ABOVE if paper < allowed.low - _TINY else WITHIN


def _measure(table: str, variant: str, category: str, metric: str, runs: Sequence[Measured]) -> Row:
    """Our side of a row."""
    row = Row(table, variant, category, metric)
    having = [run for run in runs if not math.isnan(run.metrics.get(metric, math.nan))]
    if not having:
        return row
    values = np.array([run.metrics[metric] for run in having], dtype=float)
    std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    value = float(values.mean())
    limits = [run.intervals.get(metric, _UNKNOWN) for run in having]
    down = float(np.mean([v - limit.low for v, limit in zip(values, limits, strict=True)]))
    up = float(np.mean([limit.high - v for v, limit in zip(values, limits, strict=True)]))
    reach = _seed_reach(std, len(values), predict=False)
    return replace(
        row,
        ours=value,
        std=std,
        seeds=len(values),
        over_images=Interval(value - down, value + up),
        interval=Interval(value - math.hypot(down, reach), value + math.hypot(up, reach)),
        protocol=", ".join(sorted({run.protocol for run in having})),
        hashes=tuple(run.config_hash for run in having),
        seconds=_mean_known([run.seconds for run in having]),
    )


def _judge(row: Row, published: Published | None) -> Row:
    """Add the paper's side."""
    if published is None or row.category not in published.values:
        return replace(row, tolerance=_widened(row, 0.0))
    paper = published.values[row.category]
    allowed = _widened(row, published.rounding)
    return replace(
        row,
        paper=paper,
        tolerance=allowed,
        verdict=verdict(paper, allowed) if published.judged else UNJUDGED,
        source=published.source,
        note=published.note,
    )


def _widened(row: Row, rounding: float) -> Interval:
    return tolerance(row.ours, row.over_images, row.std, row.seeds, rounding)


def _means(base: Mapping[str, Row], published: Published | None) -> list[Row]:
    """Rows of textures, objects and all categories, where the variant has more than one."""
    groups = {name: members for name, members in GROUPS.items() if set(members) <= set(base)}
    if len(base) > 1:
        groups[MEAN] = tuple(base)
    rows = [_mean_row(name, [base[c] for c in members], published) for name, members in
            groups.items()]  # fmt: skip
    return [row for row in rows if row.seeds]


def _mean_row(name: str, members: Sequence[Row], published: Published | None) -> Row:
    present = [row for row in members if row.seeds]
    if not present:
        return replace(members[0], category=name)
    values = [row.ours for row in present]
    judged = [_judge(row, None) for row in present]
    value = float(np.mean(values))
    row = replace(
        present[0],
        category=name,
        ours=value,
        std=_std_of_mean(present),
        seeds=min(row.seeds for row in present),
        over_images=mean_interval(values, [row.over_images for row in present]),
        interval=mean_interval(values, [row.interval for row in present]),
        tolerance=mean_interval(values, [row.tolerance for row in judged]),
        protocol=", ".join(sorted({row.protocol for row in present})),
        hashes=(),
        seconds=_mean_known([row.seconds for row in present]),
        of=(len(present), len(members)),
    )
    if published is None:
        return row
    return _judge_mean(row, published, [row.category for row in present])


def _judge_mean(row: Row, published: Published, present: Sequence[str]) -> Row:
    """The printed mean judges a complete set; a part is only shown beside the same part."""
    complete = row.of[0] == row.of[1]
    if complete and row.category in published.values:
        paper = published.values[row.category]
        allowed = Interval(
            row.tolerance.low - published.rounding, row.tolerance.high + published.rounding
        )
        said = verdict(paper, allowed) if published.judged else UNJUDGED
        return replace(row, paper=paper, tolerance=allowed, verdict=said, source=published.source,
                       note=published.note)  # fmt: skip
    if all(category in published.values for category in present):
        paper = float(np.mean([published.values[category] for category in present]))
        note = "the paper's mean over the same categories"
        return replace(row, paper=paper, source=published.source, note=note)
    return row


def _mean_known(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _seed_reach(std: float, seeds: int, *, predict: bool) -> float:
    """Half width of Student's interval: of one more run, or of the mean."""
    if seeds < MIN_SEEDS or math.isnan(std):
        return 0.0
    factor = math.sqrt(1 + 1 / seeds) if predict else math.sqrt(1 / seeds)
    return float(student.ppf((1 + LEVEL) / 2, seeds - 1)) * std * factor


def _std_of_mean(rows: Sequence[Row]) -> float:
    """Standard deviation over seeds of a mean of independent categories."""
    if any(math.isnan(row.std) for row in rows):
        return math.nan
    return math.sqrt(sum(row.std**2 for row in rows)) / len(rows)
