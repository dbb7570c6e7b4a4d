"""Configs as the command line makes them: words, groups, defaults, all options checked."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from src.grammar import hydra_words
from src.options import check_options
from src.schemas import register

CONF = Path(__file__).resolve().parent.parent / "conf"
MULTIRUN = {"-m", "--multirun"}
register()


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
    running = GlobalHydra.instance().is_initialized()
    place = (
        contextlib.nullcontext()
        if running
        else hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF))
    )
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
