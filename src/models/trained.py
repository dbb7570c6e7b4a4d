"""What trained methods share: when to stop, and which weights to keep, without a defect.

At ends of epochs, every `check_every` minibatches or later, the model scores good images that it
does not learn from, and the same with something wrong in them, see `obstruct`. The share of pairs
in which the wrong one scores higher is `val/obstruction_auroc`; it needs no label.

Kept are the latest weights that are not clearly worse than the best: within one standard error of
the highest value (the rule of Breiman et al., Classification and Regression Trees, 1984, Sec. 3.4).
A dozen images cannot rank two good epochs, but they see a training that has gone wrong. Images of
`validation.fraction` choose; they set no threshold, which would flatter it. Where they are too few,
those of the calibration draw the curve, and the last weights are kept.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor

from src.models.base import AnomalyModule
from src.models.map_options import CheckOptions
from src.result import LineChart

OBSTRUCTION = "val/obstruction_auroc"
KINDS = ("negative", "colour", "noise", "pasted")
_BATCHES = 16  # ours: of training images, for what scores of a check rest on; at the end all


class TrainedModule(AnomalyModule):
    """A method with an optimizer; `options` are `CheckOptions` among others."""

    options: CheckOptions
    facts: ClassVar[tuple[str, ...]] = ("history", "chosen_by", "selected")
    #: Further lines of the chart of the training: name and key in `history`.
    curves: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        super().__init__()
        #: The points of the curves, by metric key; saved with the model.
        self.history: list[dict[str, float]] = []
        self.chosen_by = 0  # good images that chose the weights
        #: By each monitored key the highest value, and of the weights kept value, step and epoch.
        self.selected: dict[str, dict[str, float]] = {}
        #: By the same keys those weights: tensors and facts.
        self.kept: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {}
        self._waited, self._checked = 0, 0
        self._losses: list[Tensor] = []

    # --- what a method says ----------------------------------------------------------------------

    def choose(self) -> None:
        """Decide at a check which parts will score, for methods with parts that compete."""

    def settle(self, loader: Iterable[dict[str, Tensor]]) -> None:
        """Take from training images, not augmented, what scores need besides the weights.

        The loader can be iterated more than once.
        """

    def further_checks(self, held_out: Iterable[dict[str, Tensor]], data: Any) -> dict[str, float]:
        """Further numbers of a check, by metric key, in evaluation mode."""
        return {}

    def monitored(self, found: Mapping[str, float]) -> dict[str, float]:
        """Which numbers of a check choose the weights; the first also decides when to stop."""
        return {OBSTRUCTION: found[OBSTRUCTION]} if self.chosen_by else {}

    # --- along the training ----------------------------------------------------------------------

    def on_before_backward(self, loss: Tensor) -> None:
        """Remember it."""
        self._losses.append(loss.detach())

    def on_train_epoch_end(self) -> None:
        """Check when due."""
        step, data = self.trainer.global_step, getattr(self.trainer, "datamodule", None)
        due = step - self._checked >= self.options.check_every
        if not hasattr(data, "calibration_dataloader") or not (
            due or step >= self.trainer.estimated_stepping_batches
        ):
            return
        self._checked = step
        with _evaluating(self), self.trainer.precision_plugin.forward_context():
            found = self._check(data)
        found["train/loss"] = float(torch.stack(self._losses).mean())
        self._losses.clear()
        found = self.trainer.strategy.broadcast(found)  # all processes decide the same
        self.history.append({"step": float(step)} | found)
        self.log_dict({k: v for k, v in found.items() if k != "train/loss"}, sync_dist=True)
        self.keep(self.monitored(found), self.chosen_by)

    @torch.no_grad()
    def _check(self, data: Any) -> dict[str, float]:
        self.choose()
        self.settle(_First(data.ordered_train_dataloader()))
        generator = torch.Generator().manual_seed(0)  # the same obstructions at every point
        self.chosen_by = len(getattr(data, "validation_samples", ()))
        held_out = data.validation_dataloader if self.chosen_by else data.calibration_dataloader
        good, wrong = [], []
        for batch in held_out():
            image = batch["image"]
            good.append(self(image.to(self.device)).score.cpu())
            for kind in KINDS:
                obstructed = obstruct(image, generator, (kind,), sides=(1 / 16, 1 / 4))
                wrong.append(self(obstructed.to(self.device)).score.cpu())
        found = {OBSTRUCTION: auroc(torch.cat(good), torch.cat(wrong))} if good else {}
        found |= self.further_checks(held_out(), data)
        return {key: value for key, value in found.items() if math.isfinite(value)}

    def keep(self, found: Mapping[str, float], images: int = 0) -> None:
        """Keep the weights by each value that is a new highest; maybe stop.

        Of an AUROC from so many `images`: or that is not clearly below the highest.
        """
        for n, (key, value) in enumerate(found.items()):
            highest = self.selected.get(key, {}).get("highest", -math.inf)
            slack = standard_error(highest, images) if images and highest > 0 else 0.0
            good = value >= highest - slack if slack else value > highest
            if good:
                at = {"epoch": self.current_epoch, "step": self.global_step}
                self.selected[key] = {"value": value, **at, "highest": max(value, highest)}
                tensors = self.trained_tensors().items()
                copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors}
                own = self.trained_facts()
                self.kept[key] = copies, {k: own[k] for k in own.keys() - TrainedModule.facts}
            if n == 0:
                self._waited = 0 if good else self._waited + 1
        if self.options.patience is not None and self._waited >= self.options.patience:
            self.trainer.should_stop = True

    @torch.no_grad()
    def after_fit(self, loader: Iterable[dict[str, Tensor]]) -> None:
        """The weights that are kept, and what scores need besides."""
        if self.kept:
            self.restore_tensors(*next(iter(self.kept.values())))
        self.settle(loader)

    def learning_metrics(self) -> dict[str, float]:
        """The numbers of the check whose weights were kept, else of the last one."""
        steps = [chosen["step"] for chosen in self.selected.values()][:1]
        points = [point for point in self.history if not steps or point["step"] == steps[0]]
        if not points:
            return {}
        found = {key: value for key, value in points[-1].items() if "/" in key}
        del found["train/loss"]
        if OBSTRUCTION in found:
            found |= {"val/kept_step": points[-1]["step"], "val/images": float(self.chosen_by)}
        return found

    def diagnostics(self) -> dict[str, LineChart]:
        """Obstruction AUROC along the training, and the loss."""
        if len(self.history) < 2:
            return {}
        steps = [point["step"] for point in self.history]
        named = {"AUROC of obstructed images": OBSTRUCTION, **self.curves}
        known = {name: key for name, key in named.items() if all(key in p for p in self.history)}
        lines = {name: (steps, [p[key] for p in self.history]) for name, key in known.items()}
        loss = {"mean since the last check": (steps, [p["train/loss"] for p in self.history])}
        y = "mean difference of pixels; AUROC" if self.curves else "AUROC"
        charts = {"training": LineChart("minibatches", y, lines)} if lines else {}
        return charts | {"loss": LineChart("minibatches", "training loss", loss)}

    # --- checkpoints: a resumed run decides the same ---------------------------------------------

    _REMEMBERED = ("history", "chosen_by", "selected", "kept", "_waited", "_checked", "_losses")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also what the checks have seen."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["checks"] = {name: getattr(self, name) for name in self._REMEMBERED}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Inverse of `on_save_checkpoint`."""
        super().on_load_checkpoint(checkpoint)
        for name, value in checkpoint["checks"].items():
            setattr(self, name, value)


def standard_error(auroc: float, images: int) -> float:
    """Of an AUROC from so many good images, each with copies of itself; never 0.

    ours: that of a share of `images` independent draws, half a success and half a failure added.
    """
    share = (images * auroc + 0.5) / (images + 1)
    return math.sqrt(share * (1 - share) / images)


def auroc(normal: Tensor, defective: Tensor) -> float:
    """Share of pairs in which the defective one scores higher, ties half; nan without a pair."""
    ordered = normal.sort().values
    beaten = [torch.searchsorted(ordered, defective, right=ties) for ties in (False, True)]
    return float(torch.cat(beaten).double().mean() / len(normal)) if len(normal) else math.nan


def obstruct(
    image: Tensor,
    generator: torch.Generator,
    kinds: tuple[str, ...] = KINDS[:2],
    sides: tuple[float, float] = (1 / 8, 1 / 3),
) -> Tensor:
    """Images (B, 3, H, W), each with one rectangle in which something is wrong.

    `sides` are shares of the image's, drawn between the two. By turns of `kinds` the content is
    negated within the range of the image, replaced by a random colour or by noise from that range,
    or by what another place of the same image shows (as CutPaste, Li et al., CVPR 2021).
    """
    out = image.clone()
    size = torch.tensor(image.shape[-2:])
    for row, picture in enumerate(out):
        share = torch.rand(4, generator=generator)
        extent = (size * (sides[0] + share[:2] * (sides[1] - sides[0]))).int().clamp(1)
        room = size - extent
        (height, width), (top, left) = extent.tolist(), (share[2:] * room).int().tolist()
        patch = picture[:, top : top + height, left : left + width]
        low, high = (edge[:, None, None] for edge in (picture.amin((1, 2)), picture.amax((1, 2))))
        match kinds[row % len(kinds)]:
            case "negative":
                patch.copy_((low + high) - patch)
            case "pasted":
                y, x = (torch.rand(2, generator=generator) * (room + 1)).int().tolist()
                patch.copy_(image[row, :, y : y + height, x : x + width])
            case kind:
                shape = (3, 1, 1) if kind == "colour" else patch.shape
                drawn = torch.rand(shape, generator=generator).to(low)
                patch.copy_((low + drawn * (high - low)).expand_as(patch))
    return out


class _First:
    """The first batches of a loader, each time it is iterated."""

    def __init__(self, loader: Iterable[dict[str, Tensor]]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return islice(self.loader, _BATCHES)


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each part's mode of before: frozen networks stay frozen."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
