"""The files of conf/paper: what is reproduced, and the numbers it is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf

from src.errors import ConfigError, only

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
