"""The files of conf/paper: what is reproduced, and the numbers it is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

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


@dataclass(frozen=True)
class Published:
    """One column of numbers from a paper."""

    metric: str  # our key, such as test/image_auroc
    source: str  # paper, table, or file of an official repository
    values: Mapping[str, float]  # by category, textures, objects, mean; as fractions of 1
    rounding: float  # half a unit of the last printed digit, as a fraction of 1
    judged: bool  # False: shown beside ours, but the definitions differ too much to judge
    note: str


@dataclass(frozen=True)
class Variant:
    """One way to run a method, with the numbers published for it."""

    name: str
    title: str
    overrides: tuple[str, ...]
    metrics: tuple[str, ...]  # columns of its table
    published: tuple[Published, ...]
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Paper:
    """One file of conf/paper."""

    name: str
    title: str
    source: str
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]


_PAPER_KEYS = ("title", "source", "overrides", "categories", "seeds", "metrics", "variants")
_VARIANT_KEYS = ("title", "overrides", "published", "categories", "metrics")
_PUBLISHED_KEYS = ("metric", "source", "unit", "decimals", "values", "judged", "note")
_UNITS = {"percent": 0.01, "fraction": 1.0}


def load_papers(node: DictConfig) -> list[Paper]:
    """The papers of a composed config, `paper.<name>`; ConfigError says what is wrong and where."""
    plain = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    return [_load(f"paper {name}", name, spec) for name, spec in plain.items()]


def _load(file: str, name: str, plain: dict[str, Any]) -> Paper:
    only(file, plain, _PAPER_KEYS)
    _need(file, "the file", plain, ("title", "source", "overrides", "categories", "variants"))
    variants = tuple(
        _variant(file, name, spec or {}, plain) for name, spec in plain["variants"].items()
    )
    seeds = tuple(int(seed) for seed in plain.get("seeds", [0]))
    return Paper(name, plain["title"], plain["source"], seeds, variants)


def _variant(file: str, name: str, spec: dict[str, Any], paper: dict[str, Any]) -> Variant:
    where = f"variant {name}"
    only(f"{file}, {where}", spec, _VARIANT_KEYS)
    categories = tuple(str(c) for c in spec.get("categories", paper["categories"]))
    published = tuple(_published(file, where, p, categories) for p in spec.get("published", []))
    listed = [*spec.get("metrics", paper.get("metrics", [])), *(p.metric for p in published)]
    return Variant(
        name=name,
        title=spec.get("title", name),
        overrides=(*paper["overrides"], *spec.get("overrides", [])),
        metrics=tuple(dict.fromkeys(listed)),
        published=published,
        categories=categories,
    )


def _published(file: str, where: str, spec: dict[str, Any], categories: Sequence[str]) -> Published:
    where = f"{where}, published {spec.get('metric')}"
    only(f"{file}, {where}", spec, _PUBLISHED_KEYS)
    _need(file, where, spec, ("metric", "source", "unit", "decimals", "values"))
    only(f"{file}, {where}, unit", [spec["unit"]], _UNITS)
    only(f"{file}, {where}, category", spec["values"], [*categories, *GROUPS, MEAN])
    scale = _UNITS[spec["unit"]]
    values = {row: float(value) * scale for row, value in spec["values"].items()}
    outside = [row for row, value in values.items() if not 0 <= value <= 1]
    if outside:
        raise ConfigError(
            f"{file}, {where}: values outside 0..1.", found=", ".join(outside), do="check the unit"
        )
    return Published(
        metric=spec["metric"],
        source=spec["source"],
        values=values,
        rounding=0.5 * 10.0 ** -spec["decimals"] * scale,
        judged=bool(spec.get("judged", True)),
        note=str(spec.get("note", "")),
    )


def _need(file: str, where: str, spec: Mapping[str, Any], needed: Sequence[str]) -> None:
    missing = [key for key in needed if key not in spec]
    if missing:
        raise ConfigError(
            f"{file}, {where} is incomplete.", found=f"no {', '.join(missing)}", do="add it"
        )
