"""Optimizers and schedules as the configuration gives them: `_target_` with `_partial_: true`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from src.errors import ConfigError


def make(key: str, node: Mapping[str, Any], first: object, **known: object) -> Any:
    """The optimizer of `model.optimizer` for parameters, or the schedule of an optimizer.

    Args:
        key: `optimizer` or `scheduler`.
        node: what stands there.
        first: parameters, groups of them, or the optimizer.
        known: what only the run knows, such as its steps.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        return instantiate(dict(node))(first, **known)
    except (InstantiationException, TypeError, ValueError) as error:
        raise ConfigError(
            f"model.{key} cannot be made.",
            found=f"{node.get('_target_')}: {str(error).splitlines()[0]}",
            do=f"give model.{key}._target_ a class of torch.optim and the numbers that it takes",
        ) from error
