"""Configs of single runs, composed inside the grid's own program."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from typing import Protocol

from omegaconf import DictConfig

from src.composing import CONF, compose_checked
from src.errors import ConfigError


class Compose(Protocol):
    """Overrides of `src.run` -> its composed config."""

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """Compose; ConfigError names the overrides that do not fit."""


@contextlib.contextmanager
def run_composer() -> Iterator[Compose]:
    """A function that composes configs of `src.run`, inside a Hydra program or outside."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    def compose(overrides: Sequence[str]) -> DictConfig:
        try:
            return compose_checked("run", overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(
                "A job of the grid does not compose.",
                found=f"python -m src.run {shlex.join(overrides)}: {_first_line(error)}",
                do="try that command with `--cfg job` added, then repair the file in conf/paper",
            ) from error

    if GlobalHydra.instance().is_initialized():
        yield compose  # the program's own search path is conf/ too
        return
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield compose


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
