"""From papers to jobs: the cross product of variants, categories and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from src.errors import ConfigError, did_you_mean
from src.grammar import quoted
from src.reproduction.jobs import Identify, Job, unique
from src.reproduction.papers import Paper, Variant

HasData = Callable[[Sequence[str], str], bool]  # (overrides, category) -> data are there


@dataclass(frozen=True)
class Choice:
    """What the command line narrows a reproduction to; None: everything."""

    variants: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    overrides: tuple[str, ...] = ()

    def check(self, papers: Sequence[Paper]) -> None:
        """ConfigError when a name fits none of the papers."""
        variants = {variant.name for paper in papers for variant in paper.variants}
        categories = {c for paper in papers for v in paper.variants for c in v.categories}
        for key, wanted, known in (
            ("variants", self.variants, variants),
            ("categories", self.categories, categories),
        ):
            for name in wanted or ():
                if name not in known:
                    raise ConfigError(
                        f"No {key.rstrip('s').replace('ie', 'y')} {name!r} in these papers.",
                        found=f"{key}={name}",
                        do=did_you_mean(name, known),
                    )


@dataclass(frozen=True)
class Cell:
    """A variant of a paper with its jobs."""

    paper: Paper
    variant: Variant
    jobs: tuple[Job, ...]
    absent: tuple[str, ...]  # categories without data


@dataclass(frozen=True)
class Plan:
    """All cells of a reproduction."""

    cells: tuple[Cell, ...]

    @property
    def jobs(self) -> list[Job]:
        """Every run once, in order."""
        return unique(job for cell in self.cells for job in cell.jobs)

    @property
    def absent(self) -> list[str]:
        """Categories without data, sorted."""
        return sorted({category for cell in self.cells for category in cell.absent})


def plan_jobs(
    papers: Sequence[Paper], choice: Choice, identify: Identify, has_data: HasData
) -> Plan:
    """The jobs of `papers` within `choice`; nothing is run."""
    choice.check(papers)
    cells = [
        _cell(paper, variant, choice, identify, has_data)
        for paper in papers
        for variant in paper.variants
        if choice.variants is None or variant.name in choice.variants
    ]
    return Plan(tuple(cells))


def _cell(
    paper: Paper, variant: Variant, choice: Choice, identify: Identify, has_data: HasData
) -> Cell:
    overrides = (*variant.overrides, *choice.overrides)
    jobs, absent = [], []
    for category in variant.categories:
        if choice.categories is not None and category not in choice.categories:
            continue
        if not has_data(overrides, category):
            absent.append(category)
            continue
        for seed in choice.seeds or paper.seeds:
            words = (*overrides, f"data.category={quoted(category)}", f"seed={seed}")
            identity = identify(overrides, category, seed)
            jobs.append(Job(words, identity, paper.name, variant.name, category, seed))
    return Cell(paper, variant, tuple(jobs), tuple(absent))


@contextmanager
def data_finder(*, download: bool) -> Iterator[HasData]:
    """A function that tells whether a run can have the images of a category.

    `download` True: missing sets that can be fetched count as there.
    """
    from src.reproduction.composing import run_composer

    known: dict[tuple[str, str], bool] = {}
    composed: dict[tuple[str, ...], DictConfig] = {}
    with run_composer() as compose:

        def has_data(overrides: Sequence[str], category: str) -> bool:
            key = tuple(overrides)
            if key not in composed:
                composed[key] = compose(overrides).data
            data = composed[key]
            OmegaConf.update(data, "category", category)
            if data.get("prepare") is not None and (download or data.get("download") is None):
                return True  # fetched, or drawn, on first use
            place = str(data.root), category
            if place not in known:
                known[place] = _listed(data)
            return known[place]

        yield has_data


def _listed(data: DictConfig) -> bool:
    """Whether the data set's own lister finds the category."""
    from src.data.record import list_samples
    from src.errors import DataError

    try:
        return bool(list_samples(data))
    except DataError:
        return False
