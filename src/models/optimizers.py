"""Optimizers and schedules as the configuration gives them: `_target_` with `_partial_: true`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from src.errors import ConfigError

#: What torch calls groups of parameters; a plain iterable is one group.
Parameters = Iterable[Parameter] | Iterable[dict[str, Any]]


def make_optimizer(node: Mapping[str, Any], parameters: Parameters) -> Optimizer:
    """The optimizer of `model.optimizer` for these parameters.

    Raises:
        ConfigError: it cannot be made.
    """
    return cast(Optimizer, _make("model.optimizer", node, parameters))


def make_scheduler(node: Mapping[str, Any], optimizer: Optimizer, **known: object) -> LRScheduler:
    """The schedule of `model.scheduler`; `known`: what only the run knows, such as its steps."""
    return cast(LRScheduler, _make("model.scheduler", node, optimizer, **known))


def _make(key: str, node: Mapping[str, Any], first: object, **known: object) -> Any:
    try:
        return instantiate(dict(node))(first, **known)
    except (InstantiationException, TypeError, ValueError) as error:
        raise ConfigError(
            f"{key} cannot be made.",
            found=f"{node.get('_target_')}: {str(error).splitlines()[0]}",
            do=f"give {key}._target_ a class of torch.optim and the numbers that it takes",
        ) from error
