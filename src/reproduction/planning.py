"""From the files of conf/paper, with the numbers we are judged by, to jobs."""

import contextlib
import itertools
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.composing import compose_checked
from src.data.record import list_samples
from src.errors import ConfigError, DataError, only
from src.grammar import quoted
from src.identity import config_hash, locate_run, newest_finished
from src.saved_run import SavedRun

MEAN = "mean"  # the row of all categories
GROUPS = {  # rows of the tables besides single categories; Bergmann et al. 2019, Table 1
    "textures": ("carpet", "grid", "leather", "tile", "wood"),
    "objects": (
        "bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush",
        "transistor", "zipper",
    ),
}  # fmt: skip


class Published(NamedTuple):
    """One column of numbers from a paper."""

    metric: str  # our key, such as test/image_auroc
    source: str  # paper, table, or file of an official repository
    values: Mapping[str, float]  # by category, textures, objects, mean; as fractions of 1
    rounding: float  # half a unit of the last printed digit, as a fraction of 1
    judged: bool  # False: shown beside ours, but the definitions differ too much to judge
    note: str


class Variant(NamedTuple):
    """One way to run a method, with the numbers published for it."""

    name: str
    title: str
    overrides: tuple[str, ...]
    metrics: tuple[str, ...]  # columns of its table
    published: tuple[Published, ...]
    categories: tuple[str, ...]


class Paper(NamedTuple):
    """One file of conf/paper."""

    name: str
    title: str
    source: str
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]


_UNITS = {"percent": 0.01, "fraction": 1.0}


def load_papers(node: DictConfig) -> list[Paper]:
    """The papers of a composed config, `paper.<name>`; ConfigError says what is wrong and where."""
    papers = []
    for name, spec in cast(dict[str, Any], OmegaConf.to_container(node, resolve=True)).items():
        needed = ("title", "source", "overrides", "categories", "variants")
        _check(f"paper {name}", spec, needed, ("seeds", "metrics"))
        seeds = tuple(int(seed) for seed in spec.get("seeds", [0]))
        variants = tuple(_variant(v, own or {}, spec) for v, own in spec["variants"].items())
        papers.append(Paper(name, spec["title"], spec["source"], seeds, variants))
    return papers


def _variant(name: str, spec: dict[str, Any], paper: dict[str, Any]) -> Variant:
    where = f"{paper['title']}, variant {name}"
    _check(where, spec, (), ("title", "overrides", "published", "categories", "metrics"))
    categories = tuple(str(c) for c in spec.get("categories", paper["categories"]))
    published = tuple(_published(where, p, categories) for p in spec.get("published", []))
    listed = [*spec.get("metrics", paper.get("metrics", [])), *(p.metric for p in published)]
    return Variant(
        name=name,
        title=spec.get("title", name),
        overrides=(*paper["overrides"], *spec.get("overrides", [])),
        metrics=tuple(dict.fromkeys(listed)),
        published=published,
        categories=categories,
    )


def _published(where: str, spec: dict[str, Any], categories: Sequence[str]) -> Published:
    where = f"{where}, published {spec.get('metric')}"
    needed = ("metric", "source", "unit", "decimals", "values")
    _check(where, spec, needed, ("judged", "note", "reproduced"))
    met = ", ".join(spec.get("reproduced", ())) or "none of these numbers"
    only(f"{where}, unit", [spec["unit"]], _UNITS)
    only(f"{where}, category", spec["values"], [*categories, *GROUPS, MEAN])
    scale = _UNITS[spec["unit"]]
    values = {row: float(value) * scale for row, value in spec["values"].items()}
    if outside := [row for row, value in values.items() if not 0 <= value <= 1]:
        what = f"{where}: values outside 0..1."
        raise ConfigError(what, found=", ".join(outside), do="check the unit")
    return Published(
        metric=spec["metric"],
        source=f"{spec['source']}; reproduced by us: {met}",
        values=values,
        rounding=0.5 * 10.0 ** -spec["decimals"] * scale,
        judged=bool(spec.get("judged", True)),
        note=str(spec.get("note", "")),
    )


def _check(where: str, spec: Mapping[str, Any], needed: Sequence[str], more: Sequence[str]) -> None:
    only(where, spec, (*needed, *more))
    if missing := [key for key in needed if key not in spec]:
        what = f"{where} is incomplete."
        raise ConfigError(what, found=f"no {', '.join(missing)}", do="add it")


class Job(NamedTuple):
    """One run; equal keys mean equal resolved configs, whatever the overrides."""

    overrides: tuple[str, ...]  # for src.run
    key: str  # model, data, category, seed and config hash, fit for a file name
    table: str  # the file of conf/paper it belongs to
    variant: str  # the block of that file
    category: str
    seed: int
    locate: Callable[[], Path]  # the run folder, which may not exist yet

    @property
    def name(self) -> str:
        """For people: 'patchcore/wrn50_1 bottle seed 0'."""
        return f"{self.table}/{self.variant} {self.category} seed {self.seed}"

    @property
    def folder(self) -> Path | None:
        """The folder of the finished run; None: it is not finished."""
        folder = self.locate()
        return folder if SavedRun(folder).finished else None

    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return self.folder is not None


class VariantJobs(NamedTuple):
    """A variant of a paper with its jobs."""

    paper: Paper
    variant: Variant
    jobs: tuple[Job, ...]
    absent: tuple[str, ...]  # categories without data


class Plan(NamedTuple):
    """A whole reproduction."""

    variants: tuple[VariantJobs, ...]

    @property
    def jobs(self) -> list[Job]:
        """Every run once, in order."""
        return list({job.key: job for group in self.variants for job in group.jobs}.values())

    @property
    def absent(self) -> list[str]:
        """Categories without data, sorted."""
        return sorted({category for group in self.variants for category in group.absent})


def make_plan(cfg: DictConfig) -> Plan:
    """The jobs that the config of `src.reproduce` selects; DataError when there are none."""
    plan = plan_jobs(
        load_papers(cfg.paper),
        Configs(download=cfg.download),
        variants=listed(cfg.variants),
        categories=listed(cfg.categories),
        seeds=[int(seed) for seed in listed(cfg.seeds)],
        overrides=(*listed(cfg.overrides), f"runs_dir={quoted(str(cfg.runs_dir))}"),
    )
    if not plan.jobs:
        found = f"no data for {', '.join(plan.absent) or 'any category'}"
        do = "set DATA_DIR (in .env) to the folder that holds mvtec/, or use paper=smoke"
        raise DataError("There is nothing to run.", found=found, do=do)
    return plan


def plan_jobs(
    papers: Sequence[Paper], configs: "Configs", *,
    variants: Collection[str] = (), categories: Collection[str] = (), seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
) -> Plan:  # fmt: skip
    """The jobs of `papers`, all or those of these names; ConfigError: a name fits none."""
    every = [(paper, variant) for paper in papers for variant in paper.variants]
    only("variants", variants, {variant.name for _, variant in every})
    only("categories", categories, {c for _, variant in every for c in variant.categories})
    groups = []
    for paper, variant in every:
        if variants and variant.name not in variants:
            continue
        words = (*variant.overrides, *overrides)
        wanted = [c for c in variant.categories if not categories or c in categories]
        there = [category for category in wanted if configs.has_data(words, category)]
        cells = itertools.product(there, seeds or paper.seeds)
        jobs = tuple(configs.job(paper.name, variant.name, words, *cell) for cell in cells)
        absent = tuple(category for category in wanted if category not in there)
        groups.append(VariantJobs(paper, variant, jobs, absent))
    return Plan(tuple(groups))


def listed(value: object) -> tuple[str, ...]:
    """None, one name or a list of names, as a tuple."""
    many = value if isinstance(value, ListConfig | list | tuple) else [value]
    return tuple(str(item) for item in many if item is not None)


class Configs:
    """Composed configs of `src.run`; category and seed, plain values, are put in afterwards."""

    def __init__(self, *, download: bool = False) -> None:
        self._download = download
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._listed: dict[tuple[str, str], bool] = {}
        self._fingerprints: dict[str, str] = {}  # of data sets

    def of(self, overrides: tuple[str, ...], category: str, seed: int = 0) -> DictConfig:
        """The config of one run, good until the next call; ConfigError when it does not compose."""
        if overrides not in self._composed:
            try:
                self._composed[overrides] = compose_checked("run", overrides)
            except (HydraException, OmegaConfBaseException) as error:
                said = next((line for line in str(error).splitlines() if line.strip()), "")
                raise ConfigError(
                    "A job of the grid does not compose.",
                    found=f"python -m src.run {shlex.join(overrides)}: {said}",
                    do="try it with `--cfg job` added, then repair the file in conf/paper",
                ) from error
        cfg = self._composed[overrides]
        OmegaConf.update(cfg, "data.category", category)
        OmegaConf.update(cfg, "seed", seed)
        return cfg

    def job(
        self, table: str, variant: str, overrides: tuple[str, ...], category: str, seed: int
    ) -> Job:
        """The job of one cell; of data that are not here, its folder is what was made elsewhere."""
        cfg = self.of(overrides, category, seed)
        names = cfg.model.name, cfg.data.name, Path(category).name, f"seed{seed}", config_hash(cfg)

        def locate() -> Path:
            cfg = self.of(overrides, category, seed)
            return newest_finished(locate_run(cfg, self._fingerprints))

        words = (*overrides, f"data.category={quoted(category)}", f"seed={seed}")
        return Job(words, "-".join(names), table, variant, category, seed, locate)

    def has_data(self, overrides: tuple[str, ...], category: str) -> bool:
        """Whether a run can have the images of a category."""
        data = self.of(overrides, category).data
        if data.get("prepare") is not None and (self._download or data.get("download") is None):
            return True  # fetched, or drawn, on first use
        place = str(data.root), category
        if place not in self._listed:
            self._listed[place] = False
            with contextlib.suppress(DataError):
                self._listed[place] = bool(list_samples(data))
        return self._listed[place]
