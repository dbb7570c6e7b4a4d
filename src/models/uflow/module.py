"""U-Flow: a U-shaped normalising flow on frozen features, with an unsupervised threshold.

Tailanian, Pardo and Musé, "U-Flow: A U-shaped Normalizing Flow for Anomaly Detection with
Unsupervised Threshold", Journal of Mathematical Imaging and Vision 2024, arXiv 2211.12353.
Official code: github.com/mtailanian/uflow (AGPL-3.0; implemented from a description, not copied).

Reading order is the paper's: features (features.py, src/backbones), flow (flow.py), likelihood
map (here), segmentation by the number of false alarms (nfa.py). Deviations, each with its reason
where it is made: LayerNorm without parameters, optional standardisation of channels, the clamped
lower tail of the NFA, per-step learning-rate decay as an option, selection of the epoch by
normals that neither train nor calibrate (the last epoch where there are too few) unless
`protocol: paper`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from src.backbones.cache import FeatureCache
from src.errors import ConfigError, SavedModelError, did_you_mean
from src.files import atomic
from src.models.base import AnomalyModule
from src.models.uflow import latents as latent_statistics
from src.models.uflow.features import FeatureNorm
from src.models.uflow.flow import Shape, UShapedFlow, negative_log_likelihood
from src.models.uflow.nfa import NfaSettings, log_nfa, offset_from_normals
from src.models.uflow.selection import BEST_ON_TEST, NLL, KeepBest
from src.processes import weight
from src.result import Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

LOG_NFA = "-log10 NFA"  # name of the map that goes with the mask; high is rare

SCHEDULES = ("constant", "linear")


class UFlow(AnomalyModule):
    """Frozen features -> normalisation -> flow; trained by exact maximum likelihood.

    Args:
        backbone: feature extractor; strides of its maps must double.
        image_size: (H, W) of the images in pixels, a multiple of the coarsest stride.
        flow_steps: coupling steps per scale (official: 4).
        kernel_sizes: of the coupling networks, in turn (official: 3, 1).
        feature_norm: `layer`, `layer_affine` (legacy) or `none`; ignored for backbones that
            normalise their maps themselves.
        standardise: bring channels to mean 0 and variance 1 over the training images first.
        map_size: shorter side of the anomaly map in pixels (official: 256).
        optimizer: {lr, weight_decay, schedule, end_factor}: Adam; schedule `constant` or `linear`
            (per step, down to end_factor * lr at the last step).
        patience: validations without improvement before training stops; None: never.
        nfa: fields of `NfaSettings`.
        cache: {place, folder, limit_gb, dtype} of the feature cache used in training.
        weights: safetensors of a flow to start from (src.fetch_models writes them); None: new.
        protocol: `honest` or `paper`, see selection.py.
        seed: of the flow's weights and permutations.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_size: tuple[int, int],
        flow_steps: int,
        kernel_sizes: Sequence[int],
        feature_norm: str,
        standardise: bool,
        map_size: int,
        optimizer: Mapping[str, Any],
        patience: int | None,
        nfa: Mapping[str, Any],
        cache: Mapping[str, Any],
        weights: str | None,
        protocol: str,
        seed: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.image_size, self.map_size = image_size, map_size
        shapes = feature_shapes(backbone, image_size)
        kind = "none" if getattr(backbone, "normalised", False) else feature_norm
        self.norm = FeatureNorm(shapes, kind, standardise)
        self.flow = UShapedFlow(shapes, flow_steps, kernel_sizes, seed)
        self.dimensions = sum(c * h * w for c, h, w in shapes)
        self.optimizer, self.patience, self.protocol = dict(optimizer), patience, protocol
        if self.optimizer["schedule"] not in SCHEDULES:
            raise ConfigError(
                "Unknown model.optimizer.schedule.",
                found=f"{self.optimizer['schedule']!r}",
                do=did_you_mean(str(self.optimizer["schedule"]), SCHEDULES),
            )
        self.nfa = NfaSettings(**nfa)
        self.cache = FeatureCache(**cache, identity=str(backbone.identity))
        self.keep_best = KeepBest(
            {NLL: "min"} if protocol == "honest" else dict.fromkeys(BEST_ON_TEST, "max"), patience
        )
        self.latent_facts: list[dict[str, Any]] = []
        self.log_nfa_offset = 0.0
        self.selected: dict[str, dict[str, Any]] = {}
        self.validation_images = 0
        if weights is not None:
            self.start_from(Path(weights))

    # --- inference ----------------------------------------------------------------------------

    def forward(self, image: Tensor) -> Prediction:
        """Score images (B, 3, H, W): likelihood map in [0, 1), its maximum, own mask."""
        latents, _ = self.latents(self.backbone(image))
        size = self.map_shape(image.shape[-2], image.shape[-1])
        anomaly_map = anomaly_likelihood(latents, size)
        score = anomaly_map.flatten(1).amax(dim=1)
        if not self.own_mask:
            return Prediction(score, anomaly_map)
        found = log_nfa(latents, size, self.nfa).to(image.device) + self.log_nfa_offset
        return Prediction(score, anomaly_map, found < 0, {LOG_NFA: -found})

    def latents(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Backbone maps -> latents (B, C, h, w) finest first, log|det| (B,) of flow and norm."""
        normed, norm_log_det = self.norm(maps)
        latents, log_det = self.flow(normed)
        return [z.float() for z in latents], log_det + norm_log_det

    def map_shape(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the anomaly map: `map_size` on the shorter side, the image's aspect."""
        scale = self.map_size / min(height, width)
        return round(height * scale), round(width * scale)

    # --- training -----------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean over the batch of the negative log-likelihood; not divided by the dimension."""
        nll = self._nll(batch).mean() * weight(batch)
        value = nll.detach() / self.dimensions
        self.log("train/nll", value, on_step=True, on_epoch=False, sync_dist=True)
        return nll

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Validation normals: likelihood and latent statistics. Paper protocol: test metrics."""
        if self.protocol == "paper":
            self._evaluator.update(batch, self._with_own_mask(batch["image"]))
            return
        maps = self.cache.fetch(batch["image"], batch.get("index"), self.backbone)
        latents, log_det = self.latents(maps)
        nll = negative_log_likelihood(latents, log_det).mean() / self.dimensions
        self.log(NLL, nll, on_epoch=True, batch_size=len(maps[0]), sync_dist=True, prog_bar=True)
        self._statistics.update(latents)

    def on_validation_epoch_start(self) -> None:
        """Fresh collections."""
        self._statistics = latent_statistics.LatentStatistics()
        if self.protocol == "paper":
            self._evaluator = _test_evaluator(self.map_size)

    def on_validation_epoch_end(self) -> None:
        """Log what the validation images say."""
        if self.protocol == "paper":
            for monitor, value in _metrics_on_test(self._evaluator).items():
                self.log(monitor, value, sync_dist=True)
            return
        for scale, found in enumerate(self._statistics.result(), start=1):
            self.log(f"latents/deviation_{scale}", found.deviation, sync_dist=True)
            self.log(f"latents/energy_spread_{scale}", found.energy_spread, sync_dist=True)

    def on_train_start(self) -> None:
        """Measure the channels once, over the training images in order; fills the cache."""
        self.cache.forget_positions()
        if self.norm.get_buffer("measured"):
            return
        data = getattr(self.trainer, "datamodule", None)
        loader = data.ordered_train_dataloader() if data else self.trainer.train_dataloader
        batches = cast(Iterable[dict[str, Tensor]], loader)
        self.norm.measure(self._cached_maps(batch) for batch in batches)

    def configure_optimizers(self) -> Any:
        """Adam over flow (and legacy norm); constant rate, or linear decay per step."""
        wanted = self.optimizer
        parameters = [p for p in self.parameters() if p.requires_grad]
        adam = torch.optim.Adam(parameters, lr=wanted["lr"], weight_decay=wanted["weight_decay"])
        if wanted["schedule"] == "constant":
            return adam
        steps = int(self.trainer.estimated_stepping_batches)
        decay = torch.optim.lr_scheduler.LinearLR(adam, 1.0, wanted["end_factor"], steps)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": decay, "interval": "step"}}

    def callbacks(self) -> list[pl.Callback]:
        """The best epoch is kept, see selection.py."""
        return [self.keep_best]

    @torch.no_grad()
    def after_fit(self, loader: Iterable[dict[str, Tensor]]) -> None:
        """Latents of calibration normals: are they N(0, 1), and does log NFA < 0 fire on them?

        None of them chose the epoch. Without any, the statistics are of the training images.
        """
        self.keep_best.restore(self)
        best = self.keep_best.best.items()
        self.selected = {name: {"value": kept.value, "epoch": kept.epoch} for name, kept in best}
        data: Any = getattr(self._trainer, "datamodule", None)
        self.validation_images = 0 if data is None else len(data.validation_samples)
        held_out = data is not None and len(data.calibration_samples) > 0
        statistics, lowest = latent_statistics.LatentStatistics(), []
        for batch in data.calibration_dataloader() if held_out else loader:
            latents = self.latents(self._cached_maps(batch))[0]
            statistics.update(latents)
            if held_out and self.nfa.calibrate:
                size = self.map_shape(*batch["image"].shape[-2:])
                lowest += log_nfa(latents, size, self.nfa).flatten(1).amin(dim=1).tolist()
        self.log_nfa_offset = offset_from_normals(lowest)
        found = statistics.result()
        self.latent_facts = [scale.to_json() for scale in found]
        for warning in latent_statistics.warnings_of(found, self.nfa.calibrate and bool(lowest)):
            log.warning("%s", warning)

    def _nll(self, batch: dict[str, Tensor]) -> Tensor:
        maps = self.cache.fetch(batch["image"], batch.get("index"), self.backbone)
        return negative_log_likelihood(*self.latents(maps))

    def _cached_maps(self, batch: dict[str, Tensor]) -> list[Tensor]:
        image = batch["image"].to(self.device)
        return self.cache.fetch(image, batch.get("index"), self.backbone)

    def _with_own_mask(self, image: Tensor) -> Prediction:
        wanted, self.own_mask = self.own_mask, True
        try:
            return self(image)
        finally:
            self.own_mask = wanted

    def learning_metrics(self) -> dict[str, float]:
        """The kept epoch, its likelihood and on how many images; paper: each metric's best on test.

        In the paper each column comes from the epoch that is best for it; these are those numbers,
        in place of the metrics of the one epoch that the saved model has.
        """
        found: dict[str, float] = {}
        if self.protocol == "honest":
            found["val/images"] = float(self.validation_images)
        for monitor, best in self.selected.items():
            found[f"{monitor}_epoch"] = float(best["epoch"])
            if self.protocol == "honest":
                found[monitor] = float(best["value"])
            elif monitor != "val/miou" or self.own_mask:
                found[BEST_ON_TEST[monitor]] = float(best["value"])
        for scale, statistics in enumerate(self.latent_facts, start=1):
            found[f"latents/deviation_{scale}"] = float(statistics["deviation"])
            found[f"latents/energy_spread_{scale}"] = float(statistics["energy_spread"])
        return found

    def diagnostics(self) -> dict[str, Figure]:
        """Histograms of the latents of normal images."""
        from src.models.uflow.figures import latent_figure  # draws with matplotlib

        return {"latents": latent_figure(self.latent_facts)} if self.latent_facts else {}

    # --- saving -------------------------------------------------------------------------------

    def trained_facts(self) -> dict[str, Any]:
        """Latent statistics, and which epoch was kept by which monitor."""
        return {
            "latents": self.latent_facts,
            "log_nfa_offset": self.log_nfa_offset,
            "selected": self.selected,
            "validation_images": self.validation_images,
            "protocol": self.protocol,
        }

    def restore_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Weights and facts of a saved model."""
        super().restore_tensors(tensors, facts)
        self.latent_facts = list(facts.get("latents", []))
        self.log_nfa_offset = float(facts.get("log_nfa_offset", 0.0))
        self.selected = dict(facts.get("selected", {}))
        self.validation_images = int(facts.get("validation_images", 0))

    def start_from(self, path: Path) -> None:
        """Take flow and norm from a safetensors file, such as converted published weights."""
        try:
            self.restore_tensors(load_file(path), {})
        except (OSError, SafetensorError) as error:
            raise SavedModelError(
                f"model.weights={path} cannot be read.",
                found=str(error),
                do="fetch published weights with python -m src.fetch_models model=uflow",
            ) from error

    def save(self, directory: Path) -> None:
        """The model, and for the paper protocol the best weights by each further monitor."""
        super().save(directory)
        for monitor, best in list(self.keep_best.best.items())[1:]:
            path = directory / f"best_{monitor.split('/')[-1]}.safetensors"
            with atomic(path) as partial:
                save_file({k: v.contiguous() for k, v in best.weights.items()}, partial)


def anomaly_likelihood(latents: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Anomaly map (B, H, W) in [0, 1): one minus the mean over scales of exp(-mean_c z^2 / 2).

    Paper Sec. 3.3: the mean over channels, not the sum, so that all scales weigh the same and
    nothing underflows; each scale is upsampled bilinearly.
    """
    likely = [torch.exp(-0.5 * z.square().mean(dim=1, keepdim=True)) for z in latents]
    fine = [F.interpolate(p, size=size, mode="bilinear", align_corners=False) for p in likely]
    return 1.0 - torch.cat(fine, dim=1).mean(dim=1)


def feature_shapes(backbone: nn.Module, image_size: tuple[int, int]) -> list[Shape]:
    """(C, H, W) of the backbone's maps for images of this size, finest first."""
    channels = cast(Sequence[int], backbone.channels)
    strides = cast(Sequence[int], backbone.reductions)
    coarsest = max(strides)
    if any(side % coarsest for side in image_size):
        raise ConfigError(
            f"U-Flow needs an image size that is a multiple of the coarsest stride, {coarsest}.",
            found=f"images of {image_size[0]}x{image_size[1]}",
            do=f"set transform.resize=[{_near(image_size[0], coarsest)},"
            f"{_near(image_size[1], coarsest)}] transform.crop=null, or choose finer layers",
        )
    return [
        (c, image_size[0] // s, image_size[1] // s) for c, s in zip(channels, strides, strict=True)
    ]


def _near(side: int, multiple: int) -> int:
    return max(1, round(side / multiple)) * multiple


def _test_evaluator(size: int) -> Any:
    from src.evaluation.evaluator import Evaluator
    from src.evaluation.view import View

    return Evaluator(View(size), memory_gb=2.0, resamples=0, limits=[0.3], seed=0)


def _metrics_on_test(evaluator: Any) -> dict[str, float]:
    """The official code's selection metrics, from the evaluation room."""
    from src.evaluation.threshold import Nfa

    metrics = evaluator.compute(Nfa().fit(None), None)
    return {monitor: float(metrics[key]) for monitor, key in BEST_ON_TEST.items() if key in metrics}
