"""Numbers along a CRN run: how the held-out images fare, and what an oracle would have seen.

`val/obstruction_auroc` needs no label: normal images that the run has not learnt from must score
lower than the same images with a rectangle painted over. The `auroc/...` curves read test labels
and only report; with `protocol: paper` the weights with the highest `auroc/oracle_paper` are kept,
which is the rule behind the paper's tables.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

if TYPE_CHECKING:
    from src.models.crn.module import CRN

#: Lines of the chart of a training: name and key in `val/...`.
CHECKED = {
    "reconstruction |x - G(x)|": "val/reconstruction",
    "feedback |G(x) - D(G(x))|": "val/feedback",
    "AUROC of painted images": "val/obstruction_auroc",
}


class RunChecks(pl.Callback):
    """Evaluates the best pair at the first end of an epoch after `every` minibatches, and the last.

    Logged: `val/score` mean score of held-out normals, `val/reconstruction` their mean |x - G(x)|
    and `val/feedback` |G(x) - D(G(x))|; `val/obstruction_auroc`; `auroc/last` of this moment, high
    scores anomalous (the number to report); `auroc/oracle_best` its running maximum;
    `auroc/oracle_paper` the running maximum of max(A, 1 - A); `units/<k>/...` of the board.

    With `oracle` the test set is scored, with `keep_best` training ends with what was best on it.
    """

    def __init__(self, every: int, oracle: bool, judge: Callable, keep_best: bool) -> None:
        self.every, self.oracle, self.judge, self.keep_best = every, oracle, judge, keep_best
        #: Minibatches at the last evaluation, running maxima, and what the paper's rule keeps.
        self.seen: dict[str, Any] = {"step": 0, "best": 0.0, "paper": 0.0, "kept": None}

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints, so that a resumed run remembers."""
        return dict(self.seen)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.seen = dict(state_dict)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate when due."""
        step = trainer.global_step
        if step - self.seen["step"] < self.every and step < trainer.estimated_stepping_batches:
            return
        self.seen["step"] = step
        model, data = cast("CRN", pl_module.eval()), cast(Any, trainer).datamodule
        model.choose(data.ordered_train_dataloader())
        if broken := model.board.broken_units():
            warnings.warn(
                f"The loss of unit {', '.join(map(str, broken))} is not a number since step "
                f"{step} or before; lower model.optimizer.lr.",
                stacklevel=2,
            )
        with trainer.precision_plugin.forward_context():  # as the finished model will predict
            model.curves = self._held_out(model, data)
            if self.oracle:
                model.curves |= self._on_test(model, data)
        model.train()
        model.history.append({"step": float(step)} | model.curves)
        model.log_dict(model.curves)
        model.log_dict(model.board.values())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Apply the paper's rule if asked."""
        if self.seen["kept"] is not None:
            model = cast("CRN", pl_module)
            tensors, facts = self.seen["kept"]
            model.restore_tensors(tensors, facts | {"curves": model.curves})

    @torch.inference_mode()
    def _held_out(self, model: CRN, data: Any) -> dict[str, float]:
        """The numbers in `val/...` of held-out normals; {} when there are none."""
        generator = torch.Generator().manual_seed(0)  # the same obstructions at every point
        clean, covered, errors = [], [], []
        for batch in data.calibration_dataloader():
            clean.append(_scores(model, batch["image"]))
            image = batch["image"].to(model.device)
            made, judged = model.reconstruct(image)
            pairs = ((image, made), (made, judged))
            each = [(one - other).abs().mean(dim=(1, 2, 3)) for one, other in pairs]
            errors.append(torch.stack(each, dim=1).cpu())  # (B, 2)
            covered.append(_scores(model, obstruct(batch["image"], generator)))
        if not clean:
            return {}
        scores = torch.cat([*clean, *covered])
        is_covered = torch.arange(len(scores)) >= len(scores) // 2
        reconstruction, feedback = torch.cat(errors).mean(dim=0).tolist()
        values = {
            "val/reconstruction": reconstruction,
            "val/feedback": feedback,
            "val/score": scores[~is_covered].mean().item(),
            "val/obstruction_auroc": self.judge(scores, is_covered),
        }
        return {key: value for key, value in values.items() if math.isfinite(value)}

    def _on_test(self, model: CRN, data: Any) -> dict[str, float]:
        scores, labels = test_scores(model, data.test_dataloader())
        last = self.judge(scores, labels)
        if math.isnan(last):  # one class only: the official code calls this 1.0
            return {}
        turned = max(last, 1 - last)
        if self.keep_best and turned > self.seen["paper"]:
            tensors = {k: v.detach().cpu().clone() for k, v in model.trained_tensors().items()}
            self.seen["kept"] = (tensors, model.trained_facts())
        best, paper = max(self.seen["best"], last), max(self.seen["paper"], turned)
        self.seen |= {"best": best, "paper": paper}
        return {"auroc/last": last, "auroc/oracle_best": best, "auroc/oracle_paper": paper}


def test_scores(model: CRN, batches: Iterable[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Scores (n,) float32 and labels (n,) bool of all labelled images."""
    pairs = [(_scores(model, batch["image"]), batch["label"]) for batch in batches]
    score, label = (torch.cat(column) for column in zip(*pairs, strict=True))
    return score[label >= 0], label[label >= 0] == 1


@torch.inference_mode()
def _scores(model: CRN, image: Tensor) -> Tensor:
    """Scores (B,) on the CPU."""
    return model(image.to(model.device)).score.cpu()


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
