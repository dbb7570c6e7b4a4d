from __future__ import annotations

import math

import pytest
from omegaconf import OmegaConf

from src.composing import CONF
from src.errors import ConfigError
from src.grammar import quoted
from src.identity import config_hash
from src.reproduction.planning import GROUPS, MEAN, Configs, Paper, load_papers, plan_jobs


def papers_of(*names: str) -> list[Paper]:
    files = {}
    for name in names:
        path = CONF / "paper" / f"{name}.yaml"
        assert path.read_text().startswith(f"# @package paper.{name}\n")
        files[name] = OmegaConf.load(path)
    return load_papers(OmegaConf.create(files))


ALL = (
    "anomaly_dino", "patchcore", "patchcore_vit", "uflow", "haloae", "crn", "mvtec_ad_2", "aupimo",
    "smoke",
)  # fmt: skip
COLUMNS = [
    pytest.param(paper, variant, column, id=f"{paper.name}-{variant.name}-{column.metric}-{i}")
    for paper in papers_of(*ALL)
    for variant in paper.variants
    for i, column in enumerate(variant.published)
]


@pytest.mark.parametrize(("paper", "variant", "column"), COLUMNS)
def test_published_rows_agree_with_the_printed_means(paper, variant, column):
    for name, members in {**GROUPS, MEAN: variant.categories}.items():
        if name not in column.values or not set(members) <= set(column.values):
            continue
        mean = sum(column.values[c] for c in members) / len(members)
        # 3e-4: means that authors took before rounding the rows
        assert abs(mean - column.values[name]) <= 2 * column.rounding + 3e-4, (name, mean)


@pytest.mark.parametrize("name", ALL)
def test_every_published_column_says_which_of_its_numbers_were_reproduced_by_us(name):
    for variant in OmegaConf.load(CONF / "paper" / f"{name}.yaml").variants.values():
        for column in (variant or {}).get("published", []):
            assert set(column.reproduced) <= set(column["values"])
    for variant in papers_of(name)[0].variants:
        assert all("; reproduced by us: " in column.source for column in variant.published)


@pytest.mark.parametrize("name", ALL)
def test_every_variant_of_every_paper_composes_and_is_a_run_of_its_own(name):
    [paper] = papers_of(name)
    configs = Configs()
    keys = {
        config_hash(configs.of(variant.overrides, variant.categories[0], seed))
        for variant in paper.variants
        for seed in paper.seeds
    }
    assert len(keys) == len(paper.variants) * len(paper.seeds)


def test_a_planned_job_has_the_identity_of_the_run_its_overrides_start():
    import hydra

    [paper] = papers_of("patchcore")
    chosen = {"variants": ["wrn50_1"], "categories": ["screw"], "seeds": [2, 3]}
    job, other = plan_jobs([paper], With(), **chosen).jobs
    assert job.locate() != other.locate()  # one composed config serves both
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra.compose("run", overrides=list(job.overrides))
    assert job.key == f"patchcore-mvtec-screw-seed2-{config_hash(cfg)}"
    assert "-".join(job.locate().parts[-4:]) == job.key  # nothing was fetched for it


class With(Configs):
    """Composed configs where the images of the named categories are there, or of all."""

    def __init__(self, *categories: str) -> None:
        super().__init__()
        self.there = categories

    def has_data(self, overrides, category):
        return not self.there or category in self.there


def test_the_grid_is_the_cross_product_of_variants_categories_and_seeds():
    papers = papers_of("uflow", "crn")
    plan = plan_jobs(papers, With())
    assert len(plan.jobs) == 2 * 15 * 3 + 2 * 15 * 3
    some = {"variants": ["honest"], "categories": ["wood", "tile"], "seeds": [7]}
    chosen = plan_jobs(papers, With(), **some)
    assert sorted((job.table, job.category, job.seed) for job in chosen.jobs) == [
        ("crn", "tile", 7), ("crn", "wood", 7), ("uflow", "tile", 7), ("uflow", "wood", 7)
    ]  # fmt: skip


def test_categories_without_data_are_listed_not_run():
    papers = papers_of("crn")
    plan = plan_jobs(papers, With("pill"))
    assert {job.category for job in plan.jobs} == {"pill"}
    assert len(plan.absent) == 14


@pytest.mark.parametrize(
    ("choice", "hint"),
    [
        ({"variants": ["honnest"]}, "Did you mean 'honest'"),
        ({"categories": ["carpte"]}, "Did you mean 'carpet'"),
    ],
)
def test_misspelt_selections_are_answered_with_the_nearest_name(choice, hint):
    papers = papers_of("crn")
    with pytest.raises(ConfigError, match=hint):
        plan_jobs(papers, With(), **choice)


def small(**changes) -> dict:
    column = {
        "metric": "test/image_auroc", "source": "s", "unit": "percent", "decimals": 1,
        "values": {"a": 99.5},
    }  # fmt: skip
    paper = {
        "title": "t", "source": "s", "overrides": [], "categories": ["a"],
        "variants": {"v": {"published": [column | changes.pop("column", {})]}},
    }  # fmt: skip
    return paper | changes


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (small(sources="x"), "Did you mean 'source'"),
        (small(column={"unit": "percents"}), "percents.*not known"),
        (small(column={"values": {"b": 1.0}}), "category: .b. is not known"),
        (small(column={"unit": "fraction"}), "outside 0..1"),
        ({"title": "t"}, "incomplete"),
        (small(column={"decimal": 1}), "Did you mean 'decimals'"),
    ],
)
def test_a_broken_paper_file_says_where_and_what(broken, message):
    with pytest.raises(ConfigError, match=message):
        load_papers(OmegaConf.create({"p": broken}))


def test_percent_and_rounding_become_fractions():
    [column] = load_papers(OmegaConf.create({"p": small()}))[0].variants[0].published
    assert math.isclose(column.values["a"], 0.995)
    assert math.isclose(column.rounding, 0.0005)


@pytest.mark.parametrize(
    "value", ["bottle", "01", "it's", "a b", "true", "x,y", "a\\b", "a\\", "a\\'b", "1e3"]
)
def test_any_category_name_survives_the_command_line(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(f"data.category={quoted(value)}")
    assert str(parsed.value()) == value
    assert not parsed.is_sweep_override()
