"""Configs as the command line makes them: words, groups, defaults, all options checked.

A file of conf/backbone or conf/model names its schema first, as in
`defaults: [/BackboneOptions@_here_, _self_]`; what does not fit is refused. Methods declare theirs
beside their code: every `...Options` of src/models/<method>, in its __init__.py or options.py, is a
schema of that name for `model`, with the keys of MethodKeys added. No torch here: `--help` answers
at once.
"""

import contextlib
import importlib.util
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

import src.models
from src.grammar import hydra_words
from src.options import check_options

CONF = Path(__file__).resolve().parent.parent / "conf"
MULTIRUN = {"-m", "--multirun"}


def split_words(arguments: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """Flags with their values, words such as `seed=1`, and whether many runs are asked for."""
    flags: list[str] = []
    words: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        of_flag = before.startswith("-") and before not in MULTIRUN and "=" not in argument
        (flags if argument.startswith("-") or of_flag else words).append(argument)
    return flags, words, bool(MULTIRUN & set(flags))


def compose(config_name: str, words: Sequence[str]) -> DictConfig:
    """The config of a program; works inside a running program too."""
    place: Any = contextlib.nullcontext()
    if not GlobalHydra.instance().is_initialized():
        place = hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF))
    with place:
        return hydra.compose(config_name, overrides=list(words))


def compose_checked(config_name: str, words: Sequence[str]) -> DictConfig:
    """The config that a program would make of these words of its command line."""
    quoted_words = hydra_words(words, many=False)
    cfg = compose(config_name, quoted_words)
    return check_options(cfg, defaults_of(config_name, quoted_words, cfg))


def defaults_of(config_name: str, words: Sequence[str], cfg: DictConfig) -> DictConfig:
    """`cfg` without the values of the command line, with its choices of groups."""
    groups = [word for word in words if is_group(word)]
    return cfg if len(groups) == len(words) else compose(config_name, groups)


def is_group(word: str) -> bool:
    """Whether a word chooses a file of conf/, as `model=uflow` does, instead of setting a value."""
    key = word.lstrip("+~").split("=", 1)[0].split("@", 1)[0]
    return key.startswith("hydra/") or (CONF / key).is_dir()


@dataclass
class BackboneOptions:
    """`backbone`: a network of timm, frozen."""

    _target_: str
    name: str
    stages: list[str] | None
    layers: list[str] | None
    mean: list[float]
    std: list[float]
    weights: str
    padding_mode: str | None
    precision: str
    channels_last: bool
    step: int = 32  # pixels of which sides of images are multiples


@dataclass
class MethodKeys:
    """Keys of `model` that are for the experiment around a method, not for the method."""

    _target_: str
    name: str
    stages: Any = None  # of the backbone, counted from 1
    recipe: Any = None
    backbones: Any = None  # of an ensemble


# Tell Hydra all schemas; each is found under the name of its dataclass.
_STORE = ConfigStore.instance().store
_STORE(name="BackboneOptions", node=BackboneOptions)
for _package in pkgutil.iter_modules(src.models.__path__):
    for _place in ("", ".options") if _package.ispkg else ():
        if importlib.util.find_spec(_path := f"src.models.{_package.name}{_place}"):
            for _name, _kind in vars(importlib.import_module(_path)).items():
                if _name.endswith("Options"):
                    _STORE(name=_name, node=dataclass(type(_name, (MethodKeys, _kind), {})))
