"""Optimizers and learning-rate schedules of CRN, by the names of the official code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import lr_scheduler

from src.errors import ConfigError, did_you_mean

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "radam": torch.optim.RAdam,
    "nadam": torch.optim.NAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
# One pass over weights and moments: 5 times faster than torch's default for a unit on CPU. Not sgd:
# its fused form fails when units meet for the first time at different steps (torch 2.15).
_FUSED = ("adam", "adamw")
SCHEDULERS = ("none", "cosine", "step", "exponential")
HORIZONS = ("run", "doubled")


def build_optimizer(
    options: Mapping[str, Any], parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Optimizer `name` with learning rate `lr`, otherwise torch's defaults, as the official code.

    `momentum` is used by sgd alone.
    """
    name = options["name"]
    if name not in OPTIMIZERS:
        raise ConfigError(
            f"There is no optimizer {name!r}.",
            found=f"model.optimizer.name={name}",
            do=did_you_mean(str(name), OPTIMIZERS),
        )
    extra: dict[str, Any] = {"fused": True} if name in _FUSED else {}
    if name == "sgd":
        extra["momentum"] = options["momentum"]
    return OPTIMIZERS[name](parameters, lr=options["lr"], **extra)  # type: ignore[call-arg]


def build_scheduler(
    options: Mapping[str, Any], optimizer: torch.optim.Optimizer, trainer: pl.Trainer
) -> lr_scheduler.LRScheduler | None:
    """Schedule `name`, stepped once an epoch; None for the constant rate of the paper.

    cosine reaches 0 at its `horizon`: "run" is the last epoch of this run; "doubled" reproduces
    the official code, which counts every minibatch twice, so that the rate ends near half.
    step multiplies by `factor` at the `milestones` (epochs), exponential by `factor` each epoch.
    """
    name = options["name"]
    if name not in SCHEDULERS or options["horizon"] not in HORIZONS:
        key, value, choices = (
            ("name", name, SCHEDULERS)
            if name not in SCHEDULERS
            else ("horizon", options["horizon"], HORIZONS)
        )
        raise ConfigError(
            f"There is no learning-rate schedule with {key} {value!r}.",
            found=f"model.scheduler.{key}={value}",
            do=did_you_mean(str(value), choices),
        )
    if name == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, _epochs(options["horizon"], trainer))
    if name == "step":
        return lr_scheduler.MultiStepLR(optimizer, options["milestones"], options["factor"])
    if name == "exponential":
        return lr_scheduler.ExponentialLR(optimizer, options["factor"])
    return None


def _epochs(horizon: str, trainer: pl.Trainer) -> int:
    """Length of the schedule in epochs."""
    trainer.fit_loop.setup_data()  # the training loader, which is otherwise built later
    minibatches = int(trainer.estimated_stepping_batches)
    if horizon == "run":
        return max(1, -(-minibatches // int(trainer.num_training_batches)))
    loader: Any = trainer.train_dataloader
    return int(2 * minibatches / (len(loader.dataset) / loader.batch_size)) + 1
