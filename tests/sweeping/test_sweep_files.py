"""Every file in sweeps/ is one that W&B accepts and whose trials can run."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from src import composing
from src.commands.sweep import load_sweep

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "sweeps").glob("*.y*ml"))


def compose(words):
    return composing.compose("run", words)


def fixed_words(sweep):
    """The overrides in the command itself."""
    return [word for word in sweep.plain["command"] if "=" in word and not word.startswith("$")]


def name_of(path):
    return path.stem


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_file_follows_the_schema_of_wandb(path):
    [listed] = [f for f in importlib.metadata.files("sweeps") if f.match("config/schema.json")]
    schema = json.loads(listed.locate().read_text())
    config = yaml.safe_load(path.read_text())
    config.pop("run_cap", None)  # newer than the published schema
    jsonschema.validate(config, schema)
    load_sweep(path)  # and our own checks


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_parameter_exists_in_the_config_and_every_value_fits(path):
    definition = load_sweep(path)
    words = fixed_words(definition)
    base = compose(words)
    for name, spec in definition.plain["parameters"].items():
        key = f"model.{name}" if name in ("optimizer", "scheduler") else name  # groups
        assert OmegaConf.select(base, key, default="absent") != "absent", name
        values = spec.get("values", [spec.get("value", spec.get("min"))])
        for value in values:
            cfg = compose([*words, f"{name}={value}"])  # raises for unknown keys
            found = OmegaConf.select(cfg, key)
            if OmegaConf.is_dict(found):  # a group such as backbone: its file was found
                assert (ROOT / "conf" / name / f"{value}.yaml").is_file()
            else:
                wanted = yaml.safe_load(value) if isinstance(value, str) else value  # "[2,3]"
                assert found == wanted, f"{name}={value} became {found!r}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_command_passes_overrides_the_way_hydra_reads_them(path):
    definition = load_sweep(path)
    assert "${args_no_hyphens}" in definition.plain["command"]
    parser = OverridesParser.create()
    for word in fixed_words(definition):
        parser.parse_override(word)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_metric_is_one_that_the_runs_log(path, tmp_path, monkeypatch):
    from src.experiment import run_experiment

    definition = load_sweep(path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("RUNS_DIR", str(tmp_path))
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))
    words = [w for w in fixed_words(definition) if not w.startswith(("data", "logger"))]
    small = [
        "data=synthetic", "data.synthetic.size=64", "data.synthetic.train=12",
        "data.synthetic.test_normal=4", "data.synthetic.test_defective=6",
        "transform.resize=[64,64]", "transform.crop=null", "hardware=cpu", "report.enabled=false",
        "evaluation.bootstrap=0",
    ]  # fmt: skip
    if definition.path.stem.startswith("crn"):
        small += ["model.base_channels=2", "trainer.max_steps=2", "model.must_reconstruct=false"]
    if definition.path.stem.startswith("uflow"):  # its paper backbone wants 448 pixels and the hub
        small += ["backbone=efficientnet_lite0", "trainer.max_epochs=1", "data.synthetic.train=120"]
    if definition.path.stem.startswith("patchcore"):
        small += ["backbone=efficientnet_lite0"]
    if definition.path.stem.startswith("haloae"):
        small += ["transform.resize=[64,64]", "trainer.max_steps=2"]
    result = run_experiment(compose([*words, *small]))
    assert definition.metric in result.metrics
