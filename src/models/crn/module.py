"""CRN: competitive reconstruction networks.

Paper: Mattes, Richter, Döllner, "Detecting Anomalies in Road Surfaces with Competitive
Reconstruction Networks", AGILE: GIScience Series 4:7, 2023, doi 10.5194/agile-giss-4-7-2023.
Official code: Snagnar/CompetitiveReconstructionNetworks, MIT; this is a new implementation.

Deviations, all for the same mathematics at less cost or for honest numbers: one optimizer over all
units (idle units have no gradient and do not move), one backward a step, no anomaly detection mode,
a budget in minibatches (the official 20 000 steps count every minibatch twice), images are scored
with running statistics (the official inference leaves batch norm in training mode), high scores are
anomalous (the official AUROC is max(A, 1 - A)), best units by a moving average instead of the last
minibatch, norms with statistics of their role (`experiment=crn_parity_mvtec` turns these back).

For small budgets (`experiment=crn_small`, all ours): units start from the mean image, rebuild
images that are shown partly painted over, earn no more than a margin for discrimination, and the
map is the residual standardised by what normal images leave. Measured: docs/trained_methods.md.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, cast

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from src.errors import ConfigError, SavedModelError, TrainingError
from src.models.build import make
from src.models.crn.competition import UnitBoard, pair_loss
from src.models.crn.options import CRNOptions, Start, Statistics
from src.models.crn.unit import CompetitiveUnit, count_levels
from src.models.residuals import ResidualStatistics, image_score, refuse_backbone
from src.models.trained import TrainedModule, auroc, obstruct
from src.result import Prediction


class CRN(TrainedModule):
    """Competing U-Nets of pixels in [-1, 1]; the best generator G and discriminator D score."""

    Options: ClassVar[type] = CRNOptions
    options: CRNOptions
    facts = (*TrainedModule.facts, "errors")
    curves: ClassVar = {
        "reconstruction |x - G(x)|": "val/reconstruction",
        "feedback |G(x) - D(G(x))|": "val/feedback",
    }

    def __init__(
        self, backbone: nn.Module | None, image_size: tuple[int, int], options: CRNOptions
    ) -> None:
        super().__init__()
        refuse_backbone("CRN", backbone)
        self.backbone = None
        self.options = options
        self.board = UnitBoard(
            options.num_units, options.pairing, options.selection_decay, options.seed
        )
        levels = count_levels(image_size, options.max_depth)
        shape = (levels, options.base_channels, options.norm, options.decoder, options.dropout)
        self.units = nn.ModuleList(CompetitiveUnit(*shape) for _ in range(options.num_units))
        generator = torch.Generator().manual_seed(options.seed)
        for unit in self._chosen(*range(options.num_units)):
            unit.initialize(generator)
            if options.start == Start.mean:
                unit.base = torch.zeros(3, *image_size)
        last = options.channels_last
        self.memory_format = torch.channels_last if last else torch.contiguous_format
        self.units.to(memory_format=self.memory_format)
        self.residuals = ResidualStatistics(3, image_size, options.residual)
        #: Mean errors of the generator and of the mean image after the fit, by metric key.
        self.errors: dict[str, float] = {}

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
        """Values of the curves, and of `errors`."""
        return super().learning_metrics() | self.errors

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer over all units; units without a gradient do not move."""
        optimizer = make("optimizer", self.options.optimizer, self.units.parameters())
        wanted = self.options.scheduler
        if not wanted:
            return optimizer
        known = {}
        if isinstance(length := wanted.get("T_max"), str):  # one of `HORIZONS`
            minibatches = int(self.trainer.estimated_stepping_batches)
            loader: Any = self.trainer.train_dataloader
            known["T_max"] = max(1, -(-minibatches // int(self.trainer.num_training_batches)))
            if length == "doubled":
                epoch = len(loader.dataset) / loader.batch_size
                known["T_max"] = int(2 * minibatches / epoch) + 1
        schedule = make("scheduler", wanted, optimizer, **known)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule}}

    def on_train_start(self) -> None:
        """Let untrained units begin at the mean image, if they shall."""
        if self.options.start == Start.mean and self.global_step == 0:
            loader = cast(Any, self.trainer).datamodule.ordered_train_dataloader()
            mean = mean_image(batch["image"] for batch in loader).to(self.device)
            for unit in self._chosen(*range(self.options.num_units)):
                unit.start_from(mean)

    def choose(self) -> None:
        """Choose the best pair so far; per role of two units, each with statistics of its role."""
        self.board.choose_best(distinct=self.options.statistics == Statistics.per_role)
        if broken := self.board.broken_units():
            warnings.warn(
                f"The loss of unit {', '.join(map(str, broken))} is not a number since step "
                f"{self.global_step} or before; lower model.optimizer.lr.",
                stacklevel=2,
            )
        self.log_dict(self.board.values())

    @torch.no_grad()
    def settle(self, loader: Iterable[dict[str, Tensor]]) -> None:
        """Per role: statistics of the chosen pair's norms; residuals of normal images."""
        if self.options.statistics == Statistics.per_role:
            generator, discriminator = self._chosen(*self.board.best)
            generator.gather_statistics(self._images(loader))
            discriminator.gather_statistics(generator(image) for image in self._images(loader))
        self.residuals.fit(self.difference(image) for image in self._images(loader))

    @torch.no_grad()
    def after_fit(self, loader: Iterable[dict[str, Tensor]]) -> None:
        """The pair of the check that is kept; TrainingError when G has not learnt to rebuild.

        That is when it is further from the images than twice their mean image.
        """
        super().after_fit(loader)
        mean = mean_image(self._images(loader))
        distances = [
            torch.stack(
                [(x - other).abs().mean((1, 2, 3)) for other in (self.reconstruct(x)[0], mean)]
            )
            for x in self._images(loader)
        ]
        error, floor = torch.cat(distances, dim=1).mean(dim=1).tolist()
        self.errors = {"train/generator_error": error, "train/mean_image_error": floor}
        if self.options.must_reconstruct and not error <= 2 * floor:
            raise TrainingError(
                "The generator has not learnt to rebuild normal images.",
                found=f"mean error {error:.3f}; the mean image alone has {floor:.3f}",
                do="train longer (trainer.max_steps), or start from experiment=crn_small; "
                "model.margin and model.start=mean keep short trainings together",
            )

    def _images(self, loader: Iterable[dict[str, Tensor]]) -> Iterator[Tensor]:
        return (batch["image"].to(self.device) for batch in loader)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One meeting of a random pair, or of all units; images (B, 3, H, W)."""
        options = self.options
        image = batch["image"].contiguous(memory_format=self.memory_format)
        shown, painted = image, round(options.obstructed * len(image))
        if painted:
            shown = torch.cat([obstruct(image[:painted], self.board.generator), image[painted:]])
            shown = shown.contiguous(memory_format=self.memory_format)
        results = []
        for pair in self.board.draw_pairs():
            units = self._chosen(*pair)
            results.append(pair_loss(units, image, options.weights, shown, options.margin))
            self.board.record(pair, results[-1])
        for key in ("loss", "reconstruction", "discrimination"):
            self.log(f"train/{key}", torch.cat([getattr(r, key) for r in results]).mean())
        return torch.stack([result.total for result in results]).sum()

    # --- curves along the training --------------------------------------------------------------

    def further_checks(self, held_out: Iterable[dict[str, Tensor]], data: Any) -> dict[str, float]:
        """Mean |x - G(x)|, |G(x) - D(G(x))| and score of held-out normals; curves of the test set.

        `auroc/last` of this moment, high scores anomalous; `auroc/oracle_best` its running maximum;
        `auroc/oracle_paper` the running maximum of max(A, 1 - A). They read test labels and only
        report, unless `protocol: paper` keeps the weights of the last one.
        """
        rows = []
        for image in self._images(held_out):
            made, judged = self.reconstruct(image)
            terms = [(a - b).abs().mean((1, 2, 3)) for a, b in ((image, made), (made, judged))]
            rows.append(torch.stack([*terms, self(image).score]))
        means = torch.cat(rows, dim=1).mean(dim=1).tolist() if rows else ()
        found = dict(zip(("val/reconstruction", "val/feedback", "val/score"), means, strict=False))
        if not self.options.oracle_curves:
            return found
        scores, labels = self.labelled_scores(data.test_dataloader())
        last = auroc(scores[~labels], scores[labels])
        if math.isnan(last):  # one class only: the official code calls this 1.0
            return found
        seen = [*(p["auroc/last"] for p in self.history), last]
        turned = max(max(value, 1 - value) for value in seen)
        oracle = {"auroc/oracle_best": max(seen), "auroc/oracle_paper": turned}
        return found | {"auroc/last": last} | oracle

    def monitored(self, found: Mapping[str, float]) -> dict[str, float]:
        """The paper's rule, or what trained methods share."""
        rule = "auroc/oracle_paper"
        if self.options.protocol == "paper":
            return {rule: found[rule]} if rule in found else {}
        return super().monitored(found)

    @torch.no_grad()
    def labelled_scores(self, batches: Iterable[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """Scores (n,) float32 and labels (n,) bool of all labelled images, on the CPU."""
        pairs = [(self(b["image"].to(self.device)).score.cpu(), b["label"]) for b in batches]
        score, label = (torch.cat(column) for column in zip(*pairs, strict=True))
        return score[label >= 0], label[label >= 0] == 1

    # --- scoring -------------------------------------------------------------------------------

    def forward(self, image: Tensor) -> Prediction:
        """Scores (B,) and maps (B, H, W) of images (B, 3, H, W)."""
        anomaly_map = self.residuals(self.difference(image))
        return Prediction(image_score(anomaly_map, self.options.residual), anomaly_map)

    def difference(self, image: Tensor) -> Tensor:
        """What the map is made of, (B, 3, H, W); see `Score`."""
        made, judged = self.reconstruct(image)
        pairs = {"disc": (made, judged), "cycle": (image, judged), "rec": (image, made)}
        one, other = pairs[self.options.score]
        return one - other

    def extras(self, image: Tensor) -> dict[str, Tensor]:
        """What the units make of images, and the other differences that could be the map."""
        made, judged = self.reconstruct(image)
        return {
            "generated": made,
            "discriminated": judged,
            "rec": (image - made).abs().mean(dim=1),
            "cycle": (image - judged).abs().mean(dim=1),
        }

    def reconstruct(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(G(x), D(G(x))), each (B, 3, H, W) in (-1, 1), by the best pair in evaluation mode."""
        if self.training:
            found = self.eval().reconstruct(image)
            self.train()
            return found
        generator, discriminator = self._chosen(*self.board.best)
        made = generator(image.contiguous(memory_format=self.memory_format))
        return made, discriminator(made)

    def _chosen(self, *numbers: int) -> list[CompetitiveUnit]:
        return [cast(CompetitiveUnit, self.units[number]) for number in numbers]

    # --- saving --------------------------------------------------------------------------------

    def trained_tensors(self) -> dict[str, Tensor]:
        """The best pair alone: 242 MB at 128 px instead of 1.45 GB for all twelve units."""
        kept = ("residuals.", *(f"units.{unit}." for unit in self.board.best))
        return {k: v for k, v in self.state_dict().items() if k.startswith(kept)}

    def trained_facts(self) -> dict[str, Any]:
        """Which units they are, and the curves."""
        pair = dict(zip(("generator", "discriminator"), self.board.best, strict=True))
        return super().trained_facts() | pair | {"units": self.board.num_units}

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


@torch.no_grad()
def mean_image(images: Iterable[Tensor]) -> Tensor:
    """Batches (B, 3, H, W) -> their mean (3, H, W)."""
    total, count = torch.zeros(()), 0
    for batch in images:
        total, count = total.to(batch) + batch.sum(dim=0), count + len(batch)
    return total / max(count, 1)
