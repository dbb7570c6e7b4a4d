"""U-Flow: a U-shaped normalising flow on frozen features, with an unsupervised threshold.

Tailanian, Pardo and Musé, "U-Flow: A U-shaped Normalizing Flow for Anomaly Detection with
Unsupervised Threshold", Journal of Mathematical Imaging and Vision 2024, arXiv 2211.12353.
Official code: github.com/mtailanian/uflow (AGPL-3.0; implemented from a description, not copied).

Reading order is the paper's: features (features.py, src/backbones), flow (flow.py), likelihood
map (here), segmentation by the number of false alarms (nfa.py). Deviations, each with its reason
where it is made: LayerNorm without parameters, standardised channels, the clamped lower tail of the
NFA, learning-rate decay per step. `protocol: honest` keeps the weights by held-out normals
(src/models/trained.py); `paper` as the official code, one epoch each for the best pixel AUROC,
AUPRO and mIoU at log NFA = 0 *on the test set*, early stopping on its pixel AUROC.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from hydra.utils import instantiate
from safetensors.torch import save_file
from torch import Tensor, nn

from src.backbones.cache import FeatureCache
from src.errors import ConfigError
from src.files import atomic
from src.models.base import read_given
from src.models.build import make
from src.models.residuals import blurred, image_score
from src.models.trained import TrainedModule
from src.models.uflow.features import FeatureNorm
from src.models.uflow.flow import Shape, UShapedFlow, negative_log_likelihood
from src.models.uflow.latents import LatentStatistics, latent_chart, warnings_of
from src.models.uflow.nfa import evidence, log_nfa, log_nfa_of, offset_from_normals
from src.models.uflow.options import Likelihood, UFlowOptions
from src.models.uflow.positions import LatentPositions, energies_of, upsampled
from src.processes import weight
from src.result import LineChart, Prediction, Threshold

log = logging.getLogger(__name__)

LOG_NFA = "-log10 NFA"  # name of the map that goes with the mask; high is rare

NLL = "val/nll"
#: Paper protocol: monitored key -> the metric of the test set that it is.
BEST_ON_TEST = {
    "val/pixel_auroc": "test/pixel_auroc",
    "val/aupro": "test/aupro",
    "val/miou": "test/miou",
}
OWN_MASK = Threshold(0.0, 0.0, "nfa")  # at which the official code selects epochs by mIoU


class UFlow(TrainedModule):
    """Frozen features -> normalisation -> flow; trained by exact maximum likelihood.

    Strides of the backbone's maps must double; images are whole multiples of the coarsest one.
    """

    Options: ClassVar[type] = UFlowOptions
    options: UFlowOptions
    facts = (*TrainedModule.facts, "latent_facts", "log_nfa_offset", "nll", "protocol")

    def __init__(
        self, backbone: nn.Module, image_size: tuple[int, int], options: UFlowOptions
    ) -> None:
        super().__init__()
        self.backbone, self.options = backbone, options
        shapes = feature_shapes(backbone, image_size)
        kind = "none" if getattr(backbone, "normalised", False) else options.feature_norm
        self.norm = FeatureNorm(shapes, kind, options.standardise)
        self.flow = UShapedFlow(
            shapes, options.flow_steps, options.kernel_sizes, options.seed, options.apart
        )
        position = options.likelihood == Likelihood.position
        self.positions = LatentPositions(self.flow.latent_shapes) if position else None
        self.dimensions = sum(c * h * w for c, h, w in shapes)
        self.cache = FeatureCache(**asdict(options.cache), identity=str(backbone.identity))
        self.protocol = options.protocol
        self.selects_on_test = options.protocol == "paper"
        self.latent_facts: list[dict[str, Any]] = []
        self.log_nfa_offset = 0.0
        self.nll: float | None = None  # of the validation normals, per dimension
        if options.weights is not None:
            self.restore_tensors(read_given(options.weights, "uflow")[0], {})

    # --- inference ----------------------------------------------------------------------------

    def forward(self, image: Tensor, own_mask: bool = False) -> Prediction:
        """Score images (B, 3, H, W): anomaly map, its score, own mask if asked for."""
        return self.completed(self.traced(image, own_mask))

    def traced(self, image: Tensor, own_mask: bool = False) -> Prediction:
        """Without the own mask; if it is wanted, `extra` has the `evidence` of each scale."""
        latents = self.settled_latents(self.backbone(image))
        size = self.map_shape(image.shape[-2], image.shape[-1])
        scales = anomaly_likelihood if self.positions is None else self.positions.scale_maps
        maps = blurred(scales(latents, size), self.options.blur)
        score = image_score(maps.mean(dim=1), self.options)
        anomaly_map = maps[:, : len(latents) - self.options.apart].mean(dim=1)
        read = evidence(latents, self.options.nfa) if own_mask or self.own_mask else []
        extra = {f"evidence_{scale}": one for scale, one in enumerate(read, start=1)}
        return Prediction(score, anomaly_map, None, extra)

    def completed(self, found: Prediction) -> Prediction:
        """The own mask and log10 NFA from the `evidence`, if there is any."""
        score, heat, _, read = found
        if not read:
            return found
        channels, (h, w) = [shape[0] for shape in self.flow.latent_shapes], heat.shape[-2:]
        value = log_nfa_of([*read.values()], channels, (h, w), self.options.nfa).to(heat.device)
        value += self.log_nfa_offset
        return Prediction(score, heat, value < 0, {LOG_NFA: -value})

    def completion_facts(self) -> dict[str, Any]:
        """How `completed` computes log10 NFA; the own mask is where it is below 0."""
        channels = [shape[0] for shape in self.flow.latent_shapes]
        facts = asdict(self.options.nfa) | {"channels": channels, "offset": self.log_nfa_offset}
        return {"nfa": facts} if self.own_mask else {}

    def latents(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Backbone maps -> latents (B, C, h, w) finest first, log|det| (B,) of flow and norm."""
        normed, norm_log_det = self.norm(maps)
        latents, log_det = self.flow(normed)
        return [z.float() for z in latents], log_det + norm_log_det

    def settled_latents(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Latents as scores and the NFA read them: standardised at each place, if they shall be."""
        latents, _ = self.latents(maps)
        return latents if self.positions is None else self.positions(latents)

    def map_shape(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the anomaly map: `map_size` on the shorter side, the image's aspect."""
        scale = self.options.map_size / min(height, width)
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
        if self.selects_on_test:
            self._judge.update(batch, self(batch["image"], own_mask=True).cpu())
            return
        latents, log_det = self.latents(self._cached_maps(batch))
        nll = negative_log_likelihood(latents, log_det).mean() / self.dimensions
        self.log(NLL, nll, on_epoch=True, batch_size=len(log_det), sync_dist=True, prog_bar=True)
        self._statistics.update(latents)

    def on_validation_epoch_start(self) -> None:
        """Fresh collections."""
        self._statistics = LatentStatistics()
        if self.selects_on_test:
            self._judge = instantiate(self.options.judge)()

    def on_validation_epoch_end(self) -> None:
        """Log what the validation images say."""
        if self.selects_on_test:
            metrics = self._judge.compute(OWN_MASK, None)
            found = {name: float(metrics[k]) for name, k in BEST_ON_TEST.items() if k in metrics}
            if not self.trainer.sanity_checking:
                self.keep(found)
        else:
            found = _latent_metrics(self._statistics.result())
        self.log_dict(found, sync_dist=True)

    def on_train_start(self) -> None:
        """Measure the channels once, over the training images in order; fills the cache."""
        self.cache.forget_positions()
        if self.norm.get_buffer("measured"):
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        loader: Any = data.ordered_train_dataloader() if data else self.trainer.train_dataloader
        self.norm.measure(self._cached_maps(batch) for batch in loader)

    def configure_optimizers(self) -> Any:
        """As configured, for the flow (and the legacy norm); the schedule steps per minibatch."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = make("optimizer", self.options.optimizer, parameters)
        wanted = self.options.scheduler
        if not wanted:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        known = {key: steps for key in ("total_iters", "total_steps") if wanted.get(key) == "run"}
        schedule = make("scheduler", wanted, optimizer, **known)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def settle(self, loader: Iterable[dict[str, Tensor]]) -> None:
        """Latents of training images at each place."""
        if self.positions is not None:
            self.positions.fit(lambda: (self.latents(self._cached_maps(b))[0] for b in loader))

    @torch.no_grad()
    def after_fit(self, loader: Iterable[dict[str, Tensor]]) -> None:
        """Latents of calibration normals: are they N(0, 1), and does log NFA < 0 fire on them?

        None of them chose the weights. Without any, the statistics are of the training images.
        """
        super().after_fit(loader)
        data: Any = getattr(self._trainer, "datamodule", None)
        if self.chosen_by:
            nll = [self._nll(batch) for batch in data.validation_dataloader()]
            self.nll = float(torch.cat(nll).mean() / self.dimensions)
        held_out = data is not None and len(data.calibration_samples) > 0
        statistics, lowest = LatentStatistics(), []
        for batch in data.calibration_dataloader() if held_out else loader:
            latents = self.settled_latents(self._cached_maps(batch))
            statistics.update(latents)
            if held_out and self.options.nfa.calibrate:
                size = self.map_shape(*batch["image"].shape[-2:])
                lowest += log_nfa(latents, size, self.options.nfa).flatten(1).amin(dim=1).tolist()
        self.log_nfa_offset = offset_from_normals(lowest)
        self.latent_facts = statistics.result()
        for warning in warnings_of(self.latent_facts, self.options.nfa.calibrate and bool(lowest)):
            log.warning("%s", warning)

    def _nll(self, batch: dict[str, Tensor]) -> Tensor:
        return negative_log_likelihood(*self.latents(self._cached_maps(batch)))

    def _cached_maps(self, batch: dict[str, Tensor]) -> list[Tensor]:
        image = batch["image"].to(self.device)
        return self.cache.fetch(image, batch.get("index"), self.backbone)

    def learning_metrics(self) -> dict[str, float]:
        """Numbers of the weights that are kept; paper: each metric's best on test.

        In the paper each column comes from the epoch that is best for it; these are those numbers,
        in place of the metrics of the one epoch that the saved model has.
        """
        found = super().learning_metrics() if not self.selects_on_test else {}
        if self.nll is not None:
            found[NLL] = self.nll
        for monitor, best in self.selected.items():
            if self.selects_on_test:
                found[f"{monitor}_epoch"] = float(best["epoch"])
                if monitor != "val/miou" or self.own_mask:
                    found[BEST_ON_TEST[monitor]] = float(best["value"])
        return found | _latent_metrics(self.latent_facts)

    def diagnostics(self) -> dict[str, LineChart]:
        """The training, and the latents of normal images beside the density they should have."""
        latents = {"latents": latent_chart(self.latent_facts)} if self.latent_facts else {}
        return super().diagnostics() | latents

    # --- saving -------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """The model, and for the paper protocol the best weights by each further monitor."""
        super().save(directory)
        for monitor, (tensors, _) in list(self.kept.items())[1:]:
            path = directory / f"best_{monitor.split('/')[-1]}.safetensors"
            with atomic(path) as partial:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)


def _latent_metrics(scales: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Two numbers of the statistics of each scale, by metric key."""
    return {
        f"latents/{name}_{scale}": float(found[name])
        for scale, found in enumerate(scales, start=1)
        for name in ("deviation", "energy_spread")
    }


def anomaly_likelihood(latents: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Maps (B, scales, H, W) in [0, 1): one minus exp(-mean_c z^2 / 2) of each scale.

    Their mean is the anomaly map. Paper Sec. 3.3: the mean over channels, not the sum, so that all
    scales weigh the same and nothing underflows; each scale is upsampled bilinearly.
    """
    return 1.0 - upsampled([torch.exp(-0.5 * energy) for energy in energies_of(latents)], size)


def feature_shapes(backbone: nn.Module, image_size: tuple[int, int]) -> list[Shape]:
    """(C, H, W) of the backbone's maps for images of this size, finest first."""
    maps: Any = zip(backbone.channels, backbone.reductions, strict=True)  # type: ignore[arg-type]
    shapes = [(c, image_size[0] // stride, image_size[1] // stride) for c, stride in maps]
    coarsest = max(cast(Sequence[int], backbone.reductions))
    fitting = [max(1, round(side / coarsest)) * coarsest for side in image_size]
    if fitting != list(image_size):
        raise ConfigError(
            f"U-Flow needs an image size that is a multiple of the coarsest stride, {coarsest}.",
            found=f"images of {image_size[0]}x{image_size[1]}",
            do=f"set transform.resize=[{fitting[0]},{fitting[1]}] transform.crop=null, or choose "
            "finer layers",
        )
    return shapes
