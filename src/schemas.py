"""What files of conf/ may hold: dataclasses that Hydra knows by name, as schemas of its groups.

A file names its schema first (`defaults: [/HardwareOptions@_here_, _self_]`); names, types and
choices that do not fit are refused when the config is composed. Methods declare theirs beside their
code: every `...Options` of src/models/<method>/options.py is a schema of that name for the node
`model`, with the keys of MethodKeys added. No torch here: `--help` answers at once.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hydra.core.config_store import ConfigStore

import src.models


class Accelerator(StrEnum):
    """What computes."""

    auto = "auto"  # the GPU if there is one
    cpu = "cpu"
    gpu = "gpu"
    cuda = "cuda"
    mps = "mps"
    tpu = "tpu"


class Logger(StrEnum):
    """Who is told the numbers of a run."""

    csv = "csv"
    tensorboard = "tensorboard"
    wandb = "wandb"


class WandbMode(StrEnum):
    """Where Weights & Biases keeps a run."""

    online = "online"
    offline = "offline"
    disabled = "disabled"


class Precision(StrEnum):
    """Of a frozen backbone."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass
class HardwareOptions:
    """`hardware`: where a run computes."""

    accelerator: Accelerator
    devices: Any  # how many, which ones, -1 or auto
    strategy: str  # of Lightning; ddp for several processes
    num_nodes: int
    precision: str  # of Lightning
    num_workers: Any  # processes that decode images, or auto
    threads: int | None  # of torch on the CPU


@dataclass
class LoggerOptions:
    """`logger`; `wandb` only where it is used."""

    names: list[Logger]
    wandb: WandbOptions | None = None


@dataclass
class WandbOptions:
    """What Weights & Biases is told about a run."""

    project: str
    entity: str | None
    group: str | None
    tags: list[str]
    mode: WandbMode | None  # None: online with a key, offline without


@dataclass
class ThresholdOptions:
    """`threshold`: a rule; it passes over a number of another one, which an experiment may set."""

    _target_: str
    alpha: Any = None  # conformal: the promised share of false alarms
    q: Any = None  # quantile of the normal scores


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
    precision: Precision
    channels_last: bool


@dataclass
class MethodKeys:
    """Keys of `model` that are for the experiment around a method, not for the method."""

    _target_: str
    name: str
    stages: Any = None  # of the backbone, counted from 1
    recipe: Any = None
    backbones: Any = None  # of an ensemble


def register() -> None:
    """Tell Hydra all schemas; each is found under the name of its dataclass."""
    store = ConfigStore.instance().store
    for kind in (HardwareOptions, LoggerOptions, ThresholdOptions, BackboneOptions):
        store(name=kind.__name__, node=kind)
    for package in pkgutil.iter_modules(src.models.__path__):
        if package.ispkg and importlib.util.find_spec(f"src.models.{package.name}.options"):
            module = importlib.import_module(f"src.models.{package.name}.options")
            for name, kind in vars(module).items():
                if name.endswith("Options"):
                    store(name=name, node=dataclass(type(name, (MethodKeys, kind), {})))
