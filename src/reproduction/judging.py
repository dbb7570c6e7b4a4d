"""Ours beside the paper's: rows of a table, each with an interval and a verdict.

A paper's number and ours come from the same test images, so two faithful runs may differ by seed
and rounding only. The spread over seeds `s` is pooled: the residuals of all runs of a variant from
the mean of their category, with one degree of freedom less a category. Ours, a mean of n seeds, is
within tolerance of the paper's number, taken as one run, when

    |ours - paper| <= t * s * sqrt(1 + 1/n) + half a unit of the paper's last digit

and the mean of m categories likewise with s / sqrt(m). Where there is more room, s grows with
sqrt(x (1 - x)) of the value x as rates do, and never is below what the category's own seeds show.
Student's `t` shares an error of 5 % among the numbers of the variant (Bonferroni), half of it among
its means, half among its categories: a faithful variant keeps all its numbers with a probability of
about 95 % or more (measured in tests/reproduction/test_judging.py). Without MIN_FREEDOM degrees of
freedom there is no spread to judge by, and nothing is judged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from src.evaluation.uncertainty import LEVEL, Interval, mean_interval
from src.metrics import HIGH, LOW
from src.reproduction.planning import GROUPS, MEAN, Job, Published, Variant
from src.saved_run import SavedRun

MIN_FREEDOM = 2  # ours: three seeds of one category; with 1, t spans half the scale
WITHIN, BELOW, ABOVE = "within", "below", "above"
UNJUDGED, NO_SPREAD, MISSING = "not judged", "too few seeds", "not measured"
#: Values are fractions in float64: differences below this are arithmetic, not results.
_TINY = 1e-12
_UNKNOWN = Interval(math.nan, math.nan)


class Measured(NamedTuple):
    """One finished run of a cell."""

    seed: int
    metrics: Mapping[str, float]  # of metrics.json
    intervals: Mapping[str, Interval]  # over test images, by metric key
    config_hash: str
    protocol: str
    seconds: float  # of learning; NaN: unknown


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
    interval: Interval = _UNKNOWN  # 95 % over test images and seeds
    error: float = math.nan  # standard deviation of ours minus a faithful run; NaN: not known
    pooled: float = math.nan  # the same by the pooled spread alone, of which means are made
    freedom: int = 0  # degrees of freedom behind `error`
    column: int = 0  # which of the published columns of this metric
    paper: float = math.nan
    rounding: float = 0.0  # half a unit of the paper's last digit
    tolerance: Interval = _UNKNOWN  # where the paper's number may lie
    verdict: str = UNJUDGED
    source: str = ""
    note: str = ""
    protocol: str = ""
    hashes: tuple[str, ...] = ()
    seconds: float = math.nan  # per run
    of: tuple[int, int] = (1, 1)  # categories present of all, for means
    members: tuple[str, ...] = ()  # those of a mean

    @property
    def difference(self) -> float:
        """Ours minus the paper's."""
        return self.ours - self.paper

    @property
    def judged(self) -> bool:
        """Whether there is a verdict for or against the number."""
        return self.verdict in (WITHIN, BELOW, ABOVE, MISSING)

    @property
    def fails(self) -> bool:
        """Whether the number left its tolerance, or was not measured although published."""
        return self.judged and self.verdict != WITHIN


def judge_variant(
    table: str, variant: Variant, runs: Mapping[str, Sequence[Measured]]
) -> list[Row]:
    """Rows of a variant, categories first, then means; `runs` are those of each category."""
    rows: list[Row] = []
    for metric in variant.metrics:
        columns: list[Published | None] = [p for p in variant.published if p.metric == metric]
        names = [category for category in variant.categories if runs.get(category)]
        base = _with_errors([_measure(table, variant.name, c, metric, runs[c]) for c in names])
        for column, published in enumerate(columns or [None]):
            found = [*base, *_means(base, variant.categories)]
            rows += [replace(_beside(row, published), column=column) for row in found]
    return _with_verdicts(rows)


def verdict_line(rows: Sequence[Row], unfinished: int, absent: Sequence[str]) -> str:
    """The outcome in one line; it begins with PARTIAL when runs or data are missing."""
    judged = [row for row in rows if row.judged]
    outside = sum(row.fails for row in judged)
    spreadless = sum(row.verdict == NO_SPREAD for row in rows)
    parts = [f"{len(judged) - outside} of {len(judged)} judged numbers are within tolerance"]
    if spreadless:
        parts.append(f"{spreadless} not judged: their spread needs more seeds, as seeds=[0,1,2]")
    if unfinished:
        parts.append(f"{unfinished} runs missing")
    if absent:
        parts.append(f"no data for {len(absent)} categories ({', '.join(absent)})")
    partial = bool(unfinished or absent)
    word = "PARTIAL" if partial else "OUTSIDE" if outside else "REPRODUCED" if judged else "DONE"
    return f"{word}: {'; '.join(parts)}."


def _measure(table: str, variant: str, category: str, metric: str, runs: Sequence[Measured]) -> Row:
    """A row of one category; without a value when no run measured the metric."""
    protocols = ", ".join(sorted({run.protocol for run in runs}))
    row = Row(table, variant, category, metric, protocol=protocols)
    having = [run for run in runs if not math.isnan(run.metrics.get(metric, math.nan))]
    if not having:
        return row
    values = np.array([run.metrics[metric] for run in having], dtype=float)
    std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    value = float(values.mean())
    limits = np.array([run.intervals.get(metric, _UNKNOWN) for run in having])
    down, up = np.abs(limits - values[:, None]).mean(axis=0)
    # The interval of the mean over seeds; two seeds cannot tell a spread and add nothing.
    factor = float(student.ppf((1 + LEVEL) / 2, len(values) - 1)) if len(values) > 2 else 0.0
    reach = factor * std / math.sqrt(len(values)) if factor else 0.0
    return replace(
        row,
        ours=value,
        std=std,
        seeds=len(values),
        interval=Interval(value - math.hypot(down, reach), value + math.hypot(up, reach)),
        hashes=tuple(run.config_hash for run in having),
        seconds=float(pd.Series([run.seconds for run in having]).mean()),  # of those known
    )


def _with_errors(base: Sequence[Row]) -> list[Row]:
    """Add to each category how far a faithful run may be, from the seeds of all."""
    repeated = [row for row in base if row.seeds > 1]
    freedom = sum(row.seeds - 1 for row in repeated)
    if freedom < MIN_FREEDOM:
        return list(base)
    pooled = math.sqrt(sum((row.seeds - 1) * row.std**2 for row in repeated) / freedom)
    room = {row.category: max(row.ours * (1 - row.ours), 0.0) for row in base}
    mean = float(np.mean([room[row.category] for row in repeated]))  # where the pool comes from
    rows = []
    for row in base:
        scaled = pooled * math.sqrt(room[row.category] / mean) if row.seeds and mean else pooled
        spread = max(pooled, scaled, row.std if row.seeds > 1 else 0.0)
        apart = math.sqrt(1 + 1 / max(row.seeds, 1))
        more = replace(row, error=spread * apart, pooled=pooled * apart, freedom=freedom)
        rows.append(more if row.seeds else row)
    return rows


def _means(base: Sequence[Row], categories: Sequence[str]) -> list[Row]:
    """Rows of textures, objects and all categories, where at least two were measured."""
    groups = {name: members for name, members in GROUPS.items() if set(members) <= set(categories)}
    rows = []
    for name, members in {**groups, MEAN: tuple(categories)}.items():
        present = [row for row in base if row.category in members and row.seeds]
        if len(present) < 2:
            continue
        values, count = [row.ours for row in present], len(present)
        mean = replace(
            present[0],
            category=name,
            ours=float(np.mean(values)),
            std=math.hypot(*(row.std for row in present)) / count,
            seeds=min(row.seeds for row in present),
            interval=mean_interval(values, [row.interval for row in present]),
            error=math.hypot(*(row.pooled for row in present)) / count,
            protocol=", ".join(sorted({row.protocol for row in present})),
            hashes=(),
            seconds=float(pd.Series([row.seconds for row in present]).mean()),
            of=(count, len(members)),
            members=tuple(row.category for row in present),
        )
        rows.append(mean)
    return rows


def _beside(row: Row, published: Published | None) -> Row:
    """Add the paper's number, if it prints one: of a category, or of a mean over the same ones."""
    if published is None:
        return row
    values, note, whole = published.values, published.note, row.of[0] == row.of[1]
    if row.category in values and whole:
        paper = values[row.category]
    elif row.members and all(member in values for member in row.members):
        paper = float(np.mean([values[member] for member in row.members]))
        note = "the paper's mean over the same categories"
    else:
        return row
    verdict = UNJUDGED
    if published.judged:
        verdict = NO_SPREAD if math.isnan(row.error) else WITHIN  # settled by _with_verdicts
        verdict = verdict if row.seeds else MISSING
    return replace(row, paper=paper, rounding=published.rounding, verdict=verdict,
                   source=published.source, note=note)  # fmt: skip


def _with_verdicts(rows: Sequence[Row]) -> list[Row]:
    """Judge all numbers of a variant together, so that each gets its part of the error."""
    kinds = [bool(row.members) for row in rows if row.verdict == WITHIN]
    judged = []
    for row in rows:
        if row.verdict == WITHIN:
            error = (1 - LEVEL) / len(set(kinds)) / kinds.count(bool(row.members))
            reach = float(student.ppf(1 - error / 2, row.freedom)) * row.error + row.rounding
            allowed = Interval(row.ours - reach, row.ours + reach)
            above = ABOVE if row.paper < allowed.low - _TINY else WITHIN
            verdict = BELOW if row.paper > allowed.high + _TINY else above
            row = replace(row, tolerance=allowed, verdict=verdict)
        judged.append(row)
    return judged


def measurements(jobs: Sequence[Job]) -> dict[str, list[Measured]]:
    """What finished jobs measured, by category."""
    found: dict[str, list[Measured]] = {}
    for job in jobs:
        if (folder := job.folder) is not None:
            run = SavedRun(folder)
            metrics, protocol = run.metrics(), str(run.config().get("protocol", ""))
            facts = stored_intervals(metrics), job.key.rpartition("-")[2], protocol
            seconds = metrics.get("fit/seconds", math.nan)
            found.setdefault(job.category, []).append(Measured(job.seed, metrics, *facts, seconds))
    return found


def stored_intervals(metrics: dict[str, float]) -> dict[str, Interval]:
    """Intervals of metrics that lie in them; under a paper's protocol some may not."""
    found = {}
    for name in [key.removesuffix(LOW) for key in metrics if key.endswith(LOW)]:
        interval = Interval(metrics[name + LOW], metrics[name + HIGH])
        if interval.low <= metrics.get(name, math.nan) <= interval.high:
            found[name] = interval
    return found
