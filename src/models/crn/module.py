"""CRN: competitive reconstruction networks.

Paper: Mattes, Richter, Döllner, "Detecting Anomalies in Road Surfaces with Competitive
Reconstruction Networks", AGILE: GIScience Series 4:7, 2023, doi 10.5194/agile-giss-4-7-2023.
Official code: Snagnar/CompetitiveReconstructionNetworks, MIT; this is a new implementation.

Deviations, all for the same mathematics at less cost or for honest numbers: one optimizer over all
units (idle units have no gradient and do not move), one backward a step, no anomaly detection mode,
a budget in minibatches (the official 20 000 steps count every minibatch twice), images are scored
with running statistics (the official inference leaves batch norm in training mode), high scores are
anomalous (the official AUROC is max(A, 1 - A)), best units by a moving average instead of the last
minibatch. `experiment=crn_parity_mvtec` turns the last ones back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from src.errors import ConfigError, SavedModelError, did_you_mean
from src.models.base import AnomalyModule
from src.models.crn.competition import LossWeights, UnitBoard, pair_loss
from src.models.crn.curves import TrainingCurves
from src.models.crn.schedule import build_optimizer, build_scheduler
from src.models.crn.unit import CompetitiveUnit, count_levels
from src.result import Prediction

SCORES = ("disc", "cycle", "rec")


class CRN(AnomalyModule):
    """Competing U-Nets; the best generator G and the best discriminator D score an image.

    Args:
        backbone: None; units learn from pixels in [-1, 1] (`backbone=none`).
        image_size: (H, W) in pixels.
        num_units: K. At 128 px a unit has 30.2 million parameters.
        base_channels: channels of the outermost level.
        max_depth: upper limit of levels; the image may allow fewer.
        norm: batch, instance or none.
        decoder: upsample or transposed.
        dropout: Dropout(0.5) in the inner decoder levels.
        weights: reconstruction, feedback and discrimination, as in `LossWeights`.
        pairing: random (one pair a step) or matching (all units; disjoint pairs share no
            parameter, so one minibatch serves them all).
        selection_decay: moving average by which the best units are found; 0: last minibatch.
        score: disc |G - D(G)|, cycle |x - D(G)| or rec |x - G|, mean over channels.
        optimizer: name, lr, momentum; see `schedule.py`.
        scheduler: name, horizon, factor, milestones; see `schedule.py`.
        check_every: minibatches between two points of the curves; see `curves.py`.
        oracle_curves: score the test set at each of them; nothing but curves comes of it unless
            `protocol: paper`.
        channels_last: memory layout of weights and images.
        compile_units: torch.compile; the graphs are shared by all units.
        seed: of initial weights and pairs.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module | None,
        image_size: tuple[int, int],
        num_units: int,
        base_channels: int,
        max_depth: int,
        norm: str,
        decoder: str,
        dropout: bool,
        weights: Mapping[str, float],
        pairing: str,
        selection_decay: float,
        score: str,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        check_every: int,
        oracle_curves: bool,
        channels_last: bool,
        compile_units: bool,
        seed: int,
    ) -> None:
        super().__init__()
        _check(backbone, score)
        self.backbone = None
        self.score, self.check_every, self.oracle_curves = score, check_every, oracle_curves
        self.optimizer, self.scheduler = dict(optimizer), dict(scheduler)
        self.weights = LossWeights(**weights)
        self.board = UnitBoard(num_units, pairing, selection_decay, seed)
        levels = count_levels(image_size, max_depth)
        self.units = nn.ModuleList(
            CompetitiveUnit(levels, base_channels, norm, decoder, dropout) for _ in range(num_units)
        )
        generator = torch.Generator().manual_seed(seed)
        for unit in self._chosen(*range(num_units)):
            unit.initialize(generator)
            if compile_units:
                unit.compile(fullgraph=True)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.units.to(memory_format=self.memory_format)
        #: Last values of the curves, by metric key; kept with the saved model.
        self.curve_values: dict[str, float] = {}

    # --- learning ------------------------------------------------------------------------------

    @classmethod
    def check_processes(cls, count: int) -> None:
        """Refuse what would train different units in different processes."""
        raise ConfigError(
            "CRN trains on one device: each step updates two of its units.",
            found=f"{count} processes",
            do="set hardware.devices=1; to use more, spread categories or seeds over them",
        )

    def learning_metrics(self) -> dict[str, float]:
        """Last values of the curves, see `curves.py`."""
        return dict(self.curve_values)

    def callbacks(self) -> list[pl.Callback]:
        """The curves of the run."""
        return [TrainingCurves(self.check_every, self.oracle_curves)]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer over all units; units without a gradient do not move."""
        optimizer = build_optimizer(self.optimizer, self.units.parameters())
        scheduler = build_scheduler(self.scheduler, optimizer, self.trainer)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One meeting of a random pair, or of all units; images (B, 3, H, W)."""
        image = batch["image"].contiguous(memory_format=self.memory_format)
        results = []
        for pair in self.board.draw_pairs():
            result = pair_loss(self._chosen(*pair), image, self.weights)
            self.board.record(pair, result)
            results.append(result)
        for key in ("loss", "reconstruction", "discrimination"):
            self.log(f"train/{key}", torch.cat([getattr(r, key) for r in results]).mean())
        return torch.stack([result.total for result in results]).sum()

    # --- scoring -------------------------------------------------------------------------------

    def forward(self, image: Tensor) -> Prediction:
        """Scores (B,) and maps (B, H, W) of images (B, 3, H, W); the score is the map's mean."""
        made, judged = self.reconstruct(image)
        one, other = {"disc": (made, judged), "cycle": (image, judged), "rec": (image, made)}[
            self.score
        ]
        anomaly_map = (one - other).abs().mean(dim=1).float()
        return Prediction(score=anomaly_map.mean(dim=(1, 2)), anomaly_map=anomaly_map)

    def reconstruct(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(G(x), D(G(x))), each (B, 3, H, W) in (-1, 1), by the best pair in evaluation mode."""
        image = image.contiguous(memory_format=self.memory_format)
        generator, discriminator = self._chosen(*self.board.best)
        with _evaluating(generator, discriminator):
            made = generator(image)
            return made, discriminator(made)

    def _chosen(self, *numbers: int) -> list[CompetitiveUnit]:
        return [cast(CompetitiveUnit, self.units[number]) for number in numbers]

    # --- saving --------------------------------------------------------------------------------

    def trained_tensors(self) -> dict[str, Tensor]:
        """The best pair alone: 242 MB at 128 px instead of 1.45 GB for all twelve units."""
        kept = tuple(f"units.{unit}." for unit in self.board.best)
        return {k: v for k, v in self.state_dict().items() if k.startswith(kept)}

    def trained_facts(self) -> dict[str, Any]:
        """Which units they are, and the last values of the curves."""
        generator, discriminator = self.board.best
        return {
            "generator": generator,
            "discriminator": discriminator,
            "units": self.board.num_units,
            "curves": self.curve_values,
        }

    def restore_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Put the best pair back in its places; the other units stay as initialised."""
        if facts.get("units") != self.board.num_units:
            raise SavedModelError(
                "The saved model has another number of units.",
                found=f"{facts.get('units')}, this model has {self.board.num_units}",
                do="load the model with the config.yaml of the run that saved it",
            )
        self.board.best = (facts["generator"], facts["discriminator"])
        super().restore_tensors(tensors, facts)
        self.curve_values = dict(facts.get("curves", {}))


@contextlib.contextmanager
def _evaluating(*units: nn.Module) -> Iterator[None]:
    """Evaluation mode for these units, whatever the module is doing."""
    before = [unit.training for unit in units]
    for unit, training in zip(units, before, strict=True):
        if training:
            unit.eval()
    try:
        yield
    finally:
        for unit, training in zip(units, before, strict=True):
            if training:
                unit.train()


def _check(backbone: nn.Module | None, score: str) -> None:
    if backbone is not None:
        raise ConfigError(
            "CRN learns from pixels and has no use for a backbone.",
            found=f"backbone {getattr(backbone, 'identity', type(backbone).__name__)}",
            do="set backbone=none",
        )
    if score not in SCORES:
        raise ConfigError(
            f"CRN has no score {score!r}.",
            found=f"model.score={score}",
            do=did_you_mean(score, SCORES),
        )
