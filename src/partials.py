"""Functions that a config names by `_target_`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf


def partial_of(node: DictConfig) -> Callable[..., Any]:
    """The function `_target_` of a node with its other values given; a name may hold `${`.

    Hydra's own `instantiate` reads texts twice, so that it would look for a key of that name.
    """
    values = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    target = hydra.utils.get_method(values.pop("_target_"))
    values.pop("_partial_", None)
    for name, value in values.items():
        if isinstance(value, dict) and "_target_" in value:
            values[name] = hydra.utils.instantiate(value)
    return functools.partial(target, **values)
