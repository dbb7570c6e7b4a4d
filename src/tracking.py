"""Loggers of a run: CSV always, TensorBoard and W&B by config."""

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from src.data.record import place_of
from src.data.transforms import ImageTransform
from src.models.base import AnomalyModule

log = logging.getLogger(__name__)

_SHOWN_WHILE_TRAINING = 4  # rows of the sheet


@contextlib.contextmanager
def open_loggers(cfg: DictConfig, directory: Path) -> Iterator[list[Logger]]:
    """CSV and the loggers named by `logger.names`; on leaving, the run of W&B ends."""
    loggers: list[Logger] = [CSVLogger(directory, name="log")]
    if "tensorboard" in cfg.logger.names:
        loggers.append(TensorBoardLogger(directory, name="tensorboard"))
    to_wandb, exit_code = "wandb" in cfg.logger.names, 1
    if to_wandb:
        loggers.append(_wandb(cfg, directory))
    for logger in loggers:
        logger.log_hyperparams(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True)))
    try:
        yield loggers
        exit_code = 0
    finally:
        if to_wandb:
            import wandb

            wandb.finish(exit_code=exit_code)


def log_results(
    loggers: list[Logger], metrics: Mapping[str, float], pictures: Mapping[str, Path]
) -> None:
    """Final metrics and pictures (PNG files by name) to every logger, then close them."""
    finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
    for logger in loggers:
        logger.log_metrics(finite)
        for name, path in pictures.items():
            with Image.open(path) as picture:
                _log_picture(logger, name, picture, None)
        logger.save()
        logger.finalize("success")


def _wandb(cfg: DictConfig, directory: Path, mode: str | None = None) -> WandbLogger:
    """A W&B logger; without a key, or when the server is out of reach, an offline one."""
    import wandb

    options, netrc = cfg.logger.wandb, Path.home() / ".netrc"
    known = netrc.is_file() and "api.wandb.ai" in netrc.read_text(errors="replace")
    has_key = bool(os.environ.get("WANDB_API_KEY")) or known
    mode = mode or options.mode or ("online" if has_key else "offline")
    logger = WandbLogger(
        project=options.project,
        entity=options.entity,
        group=options.group,
        tags=list(options.tags),
        name=f"{cfg.model.name}-{place_of(cfg.data)[1]}-seed{cfg.seed}",
        save_dir=directory,
        mode=mode,
        log_model=False,
        settings=wandb.Settings(init_timeout=30),
    )
    try:
        _ = logger.experiment  # connects now, so that trouble shows before hours of training
    except wandb.errors.Error as error:
        if mode != "online":
            raise
        log.warning("W&B cannot be reached (%s); logging offline, `wandb sync` later", error)
        return _wandb(cfg, directory, "offline")
    return logger


def _log_picture(logger: Logger, name: str, picture: Image.Image, step: int | None) -> None:
    pixels = np.asarray(picture.convert("RGB"))
    if isinstance(logger, WandbLogger):
        logger.log_image(name, [pixels], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, pixels, step, dataformats="HWC")


class ExtrasWhileTraining(pl.Callback):
    """Every so many epochs: some images of the last batch with what the method shows of them."""

    def __init__(self, every_n_epochs: int, transform: ImageTransform) -> None:
        self.every_n_epochs, self.transform = every_n_epochs, transform
        self._images: Tensor | None = None

    def on_train_batch_end(self, _: Any, __: Any, ___: Any, batch: Any, ____: int) -> None:
        """Remember a few images of the batch."""
        self._images = batch["image"][:_SHOWN_WHILE_TRAINING]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw them in evaluation mode and hand the sheet to every logger that takes pictures."""
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        takers = [x for x in trainer.loggers if isinstance(x, TensorBoardLogger | WandbLogger)]
        if not due or not takers or self._images is None or not trainer.is_global_zero:
            return
        from src.extras import extras_sheet

        names = [str(row) for row in range(len(self._images))]
        pl_module.eval()
        sheet = extras_sheet(cast(AnomalyModule, pl_module), self.transform, self._images, names)
        pl_module.train()
        for logger in takers if sheet is not None else ():
            _log_picture(logger, "extras", cast(Image.Image, sheet), trainer.global_step)
