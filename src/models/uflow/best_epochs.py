"""Which epoch is kept: by held-out normals, or, to repeat the paper, by the test set itself.

`protocol: honest`: the epoch with the lowest negative log-likelihood of normal images that neither
train nor calibrate (`validation.fraction`), the last epoch where these are too few; no defect is
looked at. The threshold has normals of its own: the epoch that suits them best would flatter it.
`protocol: paper`: as the official code, one epoch each for the best pixel AUROC, AUPRO and mIoU at
log NFA = 0 *on the test set*, early stopping on its pixel AUROC; labelled "best on test".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import pytorch_lightning as pl

from src.models.base import AnomalyModule

NLL = "val/nll"
#: Paper protocol: monitored key -> the metric of the test set that it is.
BEST_ON_TEST = {
    "val/pixel_auroc": "test/pixel_auroc",
    "val/aupro": "test/aupro",
    "val/miou": "test/miou",
}


class KeepBest(pl.Callback):
    """Remembers the weights of the best epoch by each monitor and stops when nothing improves.

    After training the module has the weights of the best epoch by the first monitor, which also
    decides when to stop; the others are in `best`. A resumed run decides the same.
    `monitors`: logged key -> "min" or "max".
    """

    def __init__(self, monitors: Mapping[str, str], patience: int | None) -> None:
        self.monitors, self.patience = dict(monitors), patience
        self.best: dict[str, dict[str, Any]] = {}  # value, epoch, weights
        self.waited = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare this epoch with the best so far."""
        logged = {} if trainer.sanity_checking else trainer.callback_metrics
        for n, (monitor, mode) in enumerate(self.monitors.items()):
            if monitor not in logged:
                continue
            value, known = float(logged[monitor]), self.best.get(monitor)
            sign = 1 if mode == "max" else -1
            better = known is None or sign * value > sign * known["value"]
            if improved := better and math.isfinite(value):
                tensors = cast(AnomalyModule, pl_module).trained_tensors()
                weights = {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}
                self.best[monitor] = {
                    "value": value, "epoch": trainer.current_epoch, "weights": weights,
                }  # fmt: skip
            if n == 0:
                self.waited = 0 if improved else self.waited + 1
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the module the best epoch's weights."""
        if not trainer.interrupted:
            self.restore(pl_module)

    def restore(self, module: pl.LightningModule) -> None:
        """Load the best weights by the first monitor, if there are any."""
        first = self.best.get(next(iter(self.monitors)))
        if first is not None:
            module.load_state_dict(first["weights"], strict=False)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: plain values and tensors only."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.best, self.waited = dict(state_dict["best"]), int(state_dict["waited"])
