from __future__ import annotations

import shlex

import hydra
import pytest
from omegaconf import OmegaConf

from src.composing import CONF
from src.sweep import name_the_file


def examples(program: str) -> list[str]:
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{program}.yaml"), resolve=False)
    lines = config["hydra"]["help"]["template"].splitlines()
    return [line.strip() for line in lines if line.strip().startswith("python -m")]


@pytest.mark.parametrize(
    ("program", "line"),
    [(program, line) for program in ("reproduce", "sweep") for line in examples(program)],
)
def test_every_example_of_the_help_composes(program, line):
    words = shlex.split(line)[3:]
    if program == "sweep":
        words = name_the_file(words)
    words = [word for word in words if "launcher" not in word]  # plugins need not be installed
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        assert hydra.compose(program, overrides=words)


def test_the_sweep_file_may_stand_first_or_be_named():
    assert name_the_file(["a b.yaml", "count=2"]) == ["file=a b.yaml", "count=2"]
    assert name_the_file(["file=a.yaml"]) == ["file=a.yaml"]
    assert name_the_file(["--help"]) == ["--help"]
    assert name_the_file([]) == []
