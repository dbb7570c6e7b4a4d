"""HaloAE: reconstruct the features and the image of normal parts through local self-attention.

Paper: Mathian et al., "HaloAE: An HaloNet based Local Transformer Auto-Encoder for Anomaly
Detection and Localization", arXiv 2208.03486, VISAPP 2023. Original code: IARCbioinfo/HaloAE, no
licence, so nothing of it is used; this is written from a description of its behaviour. Where we
differ, and why:

* the padding mask of the attention is the right way round (`attention.mask: inverted` restores the
  release, whose transformer is in effect a CNN with coarse pooling);
* the mean error map of normal images comes from training images, not from the test set, no label
  enters a score and no AUROC is flipped;
* the loss curriculum follows the share of training done, so that any length keeps its shape;
* colour jitter and CutPaste run batched on the device, after resizing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src import processes
from src.errors import ConfigError
from src.models.build import make
from src.models.haloae.autoencoder import HaloAutoEncoder, Output
from src.models.haloae.cutpaste import draw_jitter, jitter, seeded_generator, views
from src.models.haloae.features import ChannelScaling, MultiScaleFeatures
from src.models.haloae.losses import loss_weights, reconstruction_losses
from src.models.haloae.options import Curriculum, HaloAEOptions, MapKind, Scaling, ScoringOptions
from src.models.residuals import Moments, PositionScale, image_score
from src.models.trained import TrainedModule
from src.result import LineChart, Prediction

LOSSES = ("classification", "features", "image")  # in the order of their weights


class HaloAE(TrainedModule):
    """Auto-encoder on frozen multi-scale features; images have sides of 4 (4 + n x block)."""

    Options = HaloAEOptions
    options: HaloAEOptions

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: nn.Module, image_size: tuple[int, int], options: HaloAEOptions
    ) -> None:
        super().__init__()
        self.options = options
        self.backbone = MultiScaleFeatures(backbone, options.feature_alignment)
        self.scaling = ChannelScaling(self.backbone.channels)
        self.autoencoder = HaloAutoEncoder(self.backbone.channels, image_size, options)
        H, W = image_size
        for name in ("mean", "std"):
            values = torch.tensor(getattr(options, name)).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        #: Error maps of normal training images, by the names of `errors`.
        shapes = {"feature": (1, H // 4, W // 4), "image": (1, H // 2, W // 2)}
        self.normal = nn.ModuleDict({kind: PositionScale(shape) for kind, shape in shapes.items()})

    # --- learning --------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As configured, for everything but the frozen backbone."""
        return make("optimizer", self.options.optimizer, self.autoencoder.parameters())

    def on_train_start(self) -> None:
        """Learn how long training will be, for the curriculum, and how large features are."""
        self._steps = self.trainer.estimated_stepping_batches
        curriculum = self.options.loss.schedule.kind
        if not math.isfinite(self._steps) and curriculum == Curriculum.logistic:
            raise ConfigError(
                "The loss curriculum needs to know how long training lasts.",
                found="neither trainer.max_epochs nor trainer.max_steps is set",
                do="set one of them, or model.loss.schedule.kind=constant",
            )
        if self.options.feature_scaling == Scaling.standard and self.global_step == 0:
            loader = self.trainer.datamodule.ordered_train_dataloader()  # type: ignore[attr-defined]
            self.scaling.fit(self.backbone(b["image"].to(self.device)) for b in loader)

    def features(self, image: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> what the auto-encoder rebuilds (B, C, H/4, W/4)."""
        return self.scaling(self.backbone(image))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One weighted sum of the three losses; reads nothing but the image."""
        # One stream for all processes: each draws for the whole batch and keeps its share.
        generator = seeded_generator(self.options.seed, 0, self.current_epoch, batch_idx)
        images = self.draw_views(processes.whole(batch["image"], batch), generator)
        losses = self.losses(images, originals=len(batch["image"]))
        fraction = min(self.global_step / max(self._steps, 1), 1.0)
        weights = loss_weights(fraction, self.options.loss.schedule)
        total = self.weigh(losses, weights)
        share = processes.weight(batch)
        means = {f"train/{name}": share * value.detach() for name, value in losses.items()}
        self.log_dict(means, sync_dist=True)
        self.log_dict({f"train/weight_{n}": w for n, w in zip(LOSSES, weights, strict=True)})
        self.log("train/loss", share * total.detach(), prog_bar=True, sync_dist=True)
        return share * total

    def plain(self, image: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> RGB in [0, 1]."""
        return (image * self.std + self.mean).clamp(0, 1)

    def draw_views(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Normalised images (B, 3, H, W) -> jittered originals, then pasted ones, (nB, 3, H, W).

        Of a batch that processes share, the views of this process's images.
        Without a classifier pasted images would teach nothing, so there are none.
        """
        plain, options = self.plain(image), self.options.cutpaste
        if self.autoencoder.classifier is None:
            shown = [jitter(plain, draw_jitter(len(plain), options, generator))]
        else:
            shown = views(plain, options, generator)
        return (torch.cat([processes.own(view) for view in shown]) - self.mean) / self.std

    def losses(self, images: Tensor, originals: int) -> dict[str, Tensor]:
        """Losses of normalised views (nB, 3, H, W), of which the first `originals` are whole.

        `mse_features`, `dssim_features` (1 - SSIM), likewise for `image` with block D, both over
        the originals alone; `classification` over all, with a classifier.
        """
        features = self.features(images)
        out: Output = self.autoencoder(features)
        each = self._losses_of_each(out, features, images, originals)
        found = {name: value.mean() for name, value in each.items()}
        if out.logits is not None:  # (nB, 2): originals are class 0, pasted images class 1
            pasted = torch.arange(len(images), device=images.device) >= originals
            found["classification"] = F.cross_entropy(out.logits.float(), pasted.long())
        return found

    def _losses_of_each(
        self, out: Output, features: Tensor, images: Tensor, count: int
    ) -> dict[str, Tensor]:
        """Losses of reconstruction of the first `count` images, (count,) each."""
        found: dict[str, Tensor] = {}
        pairs = {"features": (out.features, features), "image": (out.image, images)}
        for name, (rebuilt, target) in pairs.items():
            if rebuilt is not None:
                found[f"mse_{name}"], found[f"dssim_{name}"] = reconstruction_losses(
                    rebuilt[:count], target[:count], self.options.loss.ssim
                )
        return found

    def weigh(self, losses: Mapping[str, Tensor], weights: Sequence[float]) -> Tensor:
        """a1 classification + a2 (mse + dssim of features) + a3 (mse + dssim of the image).

        A loss that the model does not have drops out; the others keep their weights.
        """
        a1, a2, a3 = weights
        total = a2 * (losses["mse_features"] + losses["dssim_features"])
        if "mse_image" in losses:
            total = total + a3 * (losses["mse_image"] + losses["dssim_image"])
        if "classification" in losses:
            total = total + a1 * losses["classification"]
        return total

    @torch.no_grad()
    def settle(self, loader: Iterable[dict[str, Tensor]]) -> None:
        """Error maps of normal training images."""
        moments: dict[str, Moments] = {}
        for batch in loader:
            image = batch["image"].to(self.device)
            for kind, error in self.errors(image, self.features(image)).items():
                moments.setdefault(kind, Moments(0)).add(error[:, None])
        for kind, found in moments.items():
            cast(PositionScale, self.normal[kind]).take(found)

    # --- scoring ---------------------------------------------------------------------------------

    def forward(self, image: Tensor) -> Prediction:
        """Score normalised images (B, 3, H, W); maps lie on the features' grid or twice that."""
        errors, options = self.errors(image, self.features(image)), self.options.scoring
        scales: Any = self.normal
        normal = {kind: (scales[kind].mean[0], scales[kind].spread[0]) for kind in errors}
        maps = anomaly_maps(errors, normal, options)
        return Prediction(image_score(maps, options), maps)

    def errors(self, image: Tensor, features: Tensor) -> dict[str, Tensor]:
        """Squared errors that the map needs: `feature` (B, h, w), `image` (B, 2 h, 2 w)."""
        kind, found = self.options.scoring.map, {}
        out: Output = self.autoencoder(features, features_only=kind == MapKind.feature)
        if kind != MapKind.image:
            found["feature"] = feature_error(out.features, features)
        if out.image is not None:
            found["image"] = image_error(out.image, image)
        return found

    # --- what there is to show -------------------------------------------------------------------

    def extras(self, image: Tensor) -> dict[str, Tensor]:
        """Reconstruction and error maps, rebuilt features, and every loss as a number of its own.

        The release writes its table of losses with the true label inside (cross-entropy against
        it); here `probability_pasted` is the softmax output.
        """
        features = self.features(image)
        out: Output = self.autoencoder(features)
        shown = {"feature_error": feature_error(out.features, features)}
        if out.image is not None:
            error = image_error(out.image, image)
            shown = {"reconstruction": out.image, **shown, "image_error": error}
        losses, logits = self._losses_of_each(out, features, image, len(image)), {}
        if out.logits is not None:
            losses["probability_pasted"] = out.logits.float().softmax(1)[:, 1]
            logits = {"logit_original": out.logits[:, 0], "logit_pasted": out.logits[:, 1]}
        mean = torch.stack(list(losses.values())).mean(0)
        return shown | losses | {"mean_of_losses": mean} | logits | {"features": out.features}

    def diagnostics(self) -> dict[str, LineChart]:
        """The training, and the weights of its losses."""
        fractions = [n / 500 for n in range(501)]
        table = [loss_weights(fraction, self.options.loss.schedule) for fraction in fractions]
        lines = {name: (fractions, [row[i] for row in table]) for i, name in enumerate(LOSSES)}
        chart = LineChart("share of training done", "weight of the loss", lines)
        return super().diagnostics() | {"loss_weights": chart}


def feature_error(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean over channels of the squared difference, (B, C, h, w) twice -> (B, h, w) float32."""
    return (reconstruction.float() - target.float()).square().mean(1)


def image_error(reconstruction: Tensor, image: Tensor) -> Tensor:
    """The same for images (B, 3, H, W), over 2 x 2 pixels as published -> (B, H/2, W/2)."""
    return F.avg_pool2d(feature_error(reconstruction, image)[:, None], 2)[:, 0]


def anomaly_maps(
    errors: Mapping[str, Tensor],
    normal: Mapping[str, tuple[Tensor, Tensor]],
    options: ScoringOptions,
) -> Tensor:
    """Distance to the error maps of normal images, smoothed by a binomial 3 x 3 filter.

    `errors`: `feature` (B, h, w), `image` (B, 2 h, 2 w) or both. Of both the sum is taken in units
    of the mean normal error (ours: the release never combines the two), on the finer grid.
    `normal`: mean and deviation of the error maps of normal images by the same names, without B.
    ours: the mean deviation of all places is added to that of each.
    """
    maps = {}
    for kind, error in errors.items():
        mean, spread = normal[kind]
        far = (error - mean).abs() if options.normalise else error
        if options.spread:
            far = (error - mean) / (spread + spread.mean())
        maps[kind] = binomial_blur(far) if options.blur else far
    if len(maps) == 1:
        return maps.popitem()[1]
    units = {
        kind: normal[kind][0].mean().clamp(min=torch.finfo(torch.float32).tiny) for kind in maps
    }
    size = maps["image"].shape[-2:]
    fine = F.interpolate(maps["feature"][:, None], size, mode="bilinear")[:, 0]
    return fine / units["feature"] + maps["image"] / units["image"]


def binomial_blur(maps: Tensor) -> Tensor:
    """[1, 2, 1] / 4 along rows and columns, borders mirrored without repeating the edge.

    What `cv2.GaussianBlur(map, (3, 3), 0)` computes. (B, h, w) -> same.
    """
    mirrored = F.pad(maps[:, None], (1, 1, 1, 1), mode="reflect")
    # The mean of 2 x 2 cells, twice.
    return F.avg_pool2d(F.avg_pool2d(mirrored, 2, stride=1), 2, stride=1)[:, 0]
