"""Numbers along a CRN run: how the held-out images fare, and what an oracle would have seen.

`val/obstruction_auroc` needs no label: normal images that the run has not learnt from must score
lower than the same images with a rectangle painted over (the official first draft chose units so).
The `auroc/...` curves read test labels and only report; with `protocol: paper` the weights with the
highest `auroc/oracle_paper` are kept, which is the rule behind the paper's tables.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from src.evaluation.ranking import area_under_roc, rank

if TYPE_CHECKING:
    from src.models.crn.module import CRN

Batches = Iterable[dict[str, Tensor]]


class TrainingCurves(pl.Callback):
    """Evaluates the best pair every so many minibatches and, always, after the last one.

    Logged, all in [0, 1] but val/score: `val/score` mean score of held-out normals;
    `val/obstruction_auroc`; `auroc/last` of this moment, high scores anomalous (the number to
    report); `auroc/oracle_best` its running maximum; `auroc/oracle_paper` the running maximum of
    max(A, 1 - A); `units/<k>/{loss,reconstruction,discrimination}`.

    Args:
        every: minibatches between evaluations.
        oracle: whether to score the test set.
    """

    def __init__(self, every: int, oracle: bool) -> None:
        self.every, self.oracle = every, oracle
        self.checked_step = -1
        self.best, self.paper = -math.inf, -math.inf
        self.kept: dict[str, Any] | None = None

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Evaluate when due."""
        if trainer.global_step % self.every == 0 and trainer.global_step != self.checked_step:
            self._check(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last word: evaluate the finished model, then apply the paper's rule if asked."""
        if trainer.global_step != self.checked_step:
            self._check(trainer, pl_module)
        if self.kept is not None:
            model = cast("CRN", pl_module)
            facts = self.kept["facts"] | {"curves": model.curve_values}
            model.restore_tensors(self.kept["tensors"], facts)

    def state_dict(self) -> dict[str, Any]:
        """Running maxima, so that a resumed run remembers them."""
        return {"best": self.best, "paper": self.paper, "kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.best, self.paper = state_dict["best"], state_dict["paper"]
        self.kept = state_dict["kept"]

    def _check(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        model = cast("CRN", module)
        self.checked_step = trainer.global_step
        model.board.choose_best()
        if broken := model.board.broken_units():
            warnings.warn(
                f"The loss of unit {', '.join(map(str, broken))} is not a number since step "
                f"{trainer.global_step} or before; lower model.optimizer.lr.",
                stacklevel=2,
            )
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        with trainer.precision_plugin.forward_context():  # as the finished model will predict
            values = held_out_values(model, data.calibration_dataloader())
            if self.oracle:
                values |= self._oracle_values(model, data)
        model.curve_values = {k: v for k, v in values.items() if math.isfinite(v)}
        logged = {k: v for k, v in board_values(model).items() if math.isfinite(v)}
        for logger in trainer.loggers:
            logger.log_metrics(logged | model.curve_values, step=trainer.global_step)
        trainer.callback_metrics.update(
            {key: torch.tensor(value) for key, value in model.curve_values.items()}
        )

    def _oracle_values(self, model: CRN, data: Any) -> dict[str, float]:
        scores, labels = test_scores(model, data.test_dataloader())
        last = area_under_roc(rank(scores, labels))
        if math.isnan(last):  # one class only: the official code calls this 1.0
            return {}
        self.best = max(self.best, last)
        turned = max(last, 1 - last)
        if data.protocol == "paper" and turned > self.paper:
            tensors = {k: v.detach().cpu().clone() for k, v in model.trained_tensors().items()}
            self.kept = {"tensors": tensors, "facts": model.trained_facts()}
        self.paper = max(self.paper, turned)
        return {
            "auroc/last": last,
            "auroc/oracle_best": self.best,
            "auroc/oracle_paper": self.paper,
        }


@torch.inference_mode()
def test_scores(model: CRN, batches: Batches) -> tuple[Tensor, Tensor]:
    """Scores (n,) float32 and labels (n,) bool of all labelled images."""
    scores, labels = [], []
    for batch in batches:
        scores.append(_scores(model, batch["image"]))
        labels.append(batch["label"])
    label = torch.cat(labels)
    return torch.cat(scores)[label >= 0], label[label >= 0] == 1


@torch.inference_mode()
def held_out_values(model: CRN, batches: Batches) -> dict[str, float]:
    """`val/score` and `val/obstruction_auroc` of normal images; {} when there are none."""
    generator = torch.Generator().manual_seed(0)  # the same obstructions at every point
    clean, covered = [], []
    for batch in batches:
        clean.append(_scores(model, batch["image"]))
        covered.append(_scores(model, obstruct(batch["image"], generator)))
    if not clean:
        return {}
    scores = torch.cat([*clean, *covered])
    is_covered = torch.arange(len(scores)) >= len(scores) // 2
    return {
        "val/score": float(scores[~is_covered].mean()),
        "val/obstruction_auroc": area_under_roc(rank(scores, is_covered)),
    }


def board_values(model: CRN) -> dict[str, float]:
    """Latest losses of every unit that has met another."""
    board = model.board
    rows = {name: getattr(board, name).tolist() for name in _BOARDS}
    return {f"units/{k}/{name}": rows[name][k] for k in range(board.num_units) for name in _BOARDS}


_BOARDS = ("loss", "reconstruction", "discrimination")


def obstruct(image: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 3, H, W), each with one rectangle painted over.

    Sides are 1/8 to 1/3 of the image's. By turns the content is negated within the range of the
    image or replaced by a random colour from that range.
    """
    out = image.clone()
    height, width = image.shape[-2:]
    for row, picture in enumerate(out):
        share = torch.rand(4, generator=generator)
        rows = int(height * (1 / 8 + share[0] * (1 / 3 - 1 / 8)))
        columns = int(width * (1 / 8 + share[1] * (1 / 3 - 1 / 8)))
        top, left = int(share[2] * (height - rows)), int(share[3] * (width - columns))
        patch = picture[:, top : top + rows, left : left + columns]
        low, high = picture.amin(dim=(1, 2)), picture.amax(dim=(1, 2))  # (3,)
        if row % 2:
            colour = torch.rand(3, generator=generator).to(low)
            patch.copy_((low + colour * (high - low))[:, None, None].expand_as(patch))
        else:
            patch.copy_((low + high)[:, None, None] - patch)
    return out


def _scores(model: CRN, image: Tensor) -> Tensor:
    """Scores (B,) on the CPU."""
    return model(image.to(model.device)).score.cpu()
