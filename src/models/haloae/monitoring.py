"""Pictures of reconstructions during training, for TensorBoard and W&B."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

if TYPE_CHECKING:
    from src.models.haloae.module import HaloAE

_IMAGES = 4  # rows of the sheet


class ReconstructionPictures(pl.Callback):
    """Every so many epochs: the last training batch, un-augmented, with what was rebuilt of it."""

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs
        self._images: Tensor | None = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Remember a few images of the batch."""
        self._images = batch["image"][:_IMAGES]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw them in evaluation mode and hand the picture to every logger that takes one."""
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        takers = [x for x in trainer.loggers if isinstance(x, TensorBoardLogger | WandbLogger)]
        if not due or not takers or self._images is None or not trainer.is_global_zero:
            return
        from src.models.haloae.records import sheet  # draws with matplotlib

        names = [f"{row}" for row in range(len(self._images))]
        figure = sheet(cast("HaloAE", pl_module), self._images, names)
        pl_module.train()
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
        for logger in takers:
            if isinstance(logger, WandbLogger):
                logger.log_image("reconstructions", [pixels], step=trainer.global_step)
            else:
                logger.experiment.add_image(
                    "reconstructions", pixels, trainer.global_step, dataformats="HWC"
                )
