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

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from src import processes
from src.errors import ConfigError
from src.models.base import AnomalyModule, LineChart
from src.models.haloae import scoring
from src.models.haloae.autoencoder import HaloAutoEncoder, Output
from src.models.haloae.cutpaste import draw_jitter, jitter, seeded_generator, views
from src.models.haloae.features import ChannelScaling, MultiScaleFeatures
from src.models.haloae.losses import (
    classification_loss,
    loss_weights,
    reconstruction_losses,
)
from src.models.haloae.normal_images import cutpaste_auroc, mean_errors
from src.models.haloae.options import (
    SCALINGS,
    AttentionOptions,
    CutPasteOptions,
    ImageDecoderOptions,
    ScheduleOptions,
    ScoringOptions,
    SsimOptions,
    choose,
    read_options,
)
from src.models.optimizers import make_optimizer
from src.result import Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES = ("classification", "features", "image")  # in the order of their weights


class HaloAE(AnomalyModule):
    """Auto-encoder on frozen multi-scale features; see `conf/model/haloae.yaml` for every number.

    Args:
        backbone: frozen extractor of feature maps.
        image_size: (H, W) in pixels; 4 (4 + n x block) each.
        mean: of the image normalisation, undone and redone around the colour jitter.
        std: likewise.
        seed: of jitter and CutPaste.
        feature_alignment: `clean` or `padded`, see `MultiScaleFeatures`.
        feature_scaling: `none` as published, or `standard`, see `ChannelScaling`.
        head: this and the next seven: see `HaloAutoEncoder`.
        encoder: stages.
        decoder: stages.
        attention: geometry, mask and path.
        reduction: s1, s2 or s4.
        image_decoder: block D.
        classifier: linear or none.
        output_resize: nearest, bilinear or replicate.
        output_activation: relu or none.
        loss: `ssim` and `schedule`.
        cutpaste: ranges of the pasted pieces.
        optimizer: made by `make_optimizer`.
        scoring: which error makes the map and the score.
    """

    mean: Tensor
    std: Tensor
    normal_features: Tensor
    normal_image: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        image_size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
        feature_alignment: str,
        feature_scaling: str,
        head: int,
        encoder: Sequence[Sequence[int]],
        decoder: Sequence[Sequence[int | None]],
        attention: Mapping[str, Any],
        reduction: str,
        image_decoder: Mapping[str, Any],
        classifier: str,
        output_resize: str,
        output_activation: str,
        loss: Mapping[str, Any],
        cutpaste: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        scoring: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.ssim = read_options(SsimOptions, loss["ssim"], "model.loss.ssim")
        self.schedule = read_options(ScheduleOptions, loss["schedule"], "model.loss.schedule")
        self.cutpaste = read_options(CutPasteOptions, cutpaste, "model.cutpaste")
        self.scoring = read_options(ScoringOptions, scoring, "model.scoring")
        self.optimizer, self.seed = optimizer, seed
        self.backbone = MultiScaleFeatures(backbone, feature_alignment)
        choose("model.feature_scaling", feature_scaling, SCALINGS)
        self.feature_scaling = feature_scaling
        self.scaling = ChannelScaling(self.backbone.channels)
        self.autoencoder = HaloAutoEncoder(
            self.backbone.channels,
            image_size,
            head,
            encoder,
            decoder,
            read_options(AttentionOptions, attention, "model.attention"),
            reduction,
            read_options(ImageDecoderOptions, image_decoder, "model.image_decoder"),
            classifier,
            output_resize,
            output_activation,
        )
        self._check_parts()
        self.grade: float | None = None
        H, W = image_size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        # Mean error maps of normal training images; zero until `after_fit`.
        self.register_buffer("normal_features", torch.zeros(H // 4, W // 4))
        self.register_buffer("normal_image", torch.zeros(H // 2, W // 2))

    # --- learning --------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As configured, for everything but the frozen backbone."""
        return make_optimizer(self.optimizer, self.autoencoder.parameters())

    def on_train_start(self) -> None:
        """Learn how long training will be, for the curriculum, and how large features are."""
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps) and self.schedule.kind == "logistic":
            raise ConfigError(
                "The loss curriculum needs to know how long training lasts.",
                found="neither trainer.max_epochs nor trainer.max_steps is set",
                do="set one of them, or model.loss.schedule.kind=constant",
            )
        self._steps = steps
        if self.feature_scaling == "standard" and self.global_step == 0:
            loader = self.trainer.datamodule.ordered_train_dataloader()  # type: ignore[attr-defined]
            self.scaling.fit(self.backbone(b["image"].to(self.device)) for b in loader)

    def features(self, image: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> what the auto-encoder rebuilds (B, C, H/4, W/4)."""
        return self.scaling(self.backbone(image))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """One weighted sum of the three losses; reads nothing but the image."""
        # One stream for all processes: each draws for the whole batch and keeps its share.
        generator = seeded_generator(self.seed, 0, self.current_epoch, batch_idx)
        images = self.draw_views(processes.whole(batch["image"], batch), generator)
        losses = self.losses(images, originals=len(batch["image"]))
        fraction = min(self.global_step / max(self._steps, 1), 1.0)
        weights = loss_weights(fraction, self.schedule)
        total = self.weigh(losses, weights)
        share = processes.weight(batch)
        means = {f"train/{name}": share * value.detach() for name, value in losses.items()}
        self.log_dict(means, sync_dist=True)
        self.log_dict({f"train/weight_{n}": w for n, w in zip(LOSSES, weights, strict=True)})
        self.log("train/loss", share * total.detach(), prog_bar=True, sync_dist=True)
        return share * total

    def draw_views(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Normalised images (B, 3, H, W) -> jittered originals, then pasted ones, (nB, 3, H, W).

        Of a batch that processes share, the views of this process's images.
        Without a classifier pasted images would teach nothing, so there are none.
        """
        plain = (image * self.std + self.mean).clamp(0, 1)
        if self.autoencoder.classifier is None:
            shown = [jitter(plain, draw_jitter(len(plain), self.cutpaste, generator))]
        else:
            shown = views(plain, self.cutpaste, generator)
        return (torch.cat([processes.own(view) for view in shown]) - self.mean) / self.std

    def losses(self, images: Tensor, originals: int) -> dict[str, Tensor]:
        """Losses of normalised views (nB, 3, H, W), of which the first `originals` are whole.

        Returns:
            `mse_features`, `dssim_features` (1 - SSIM), likewise for `image` with block D, both
            over the originals alone; `classification` over all, with a classifier.
        """
        features = self.features(images)
        out: Output = self.autoencoder(features)
        each = self._losses_of_each(out, features, images, originals)
        found = {name: value.mean() for name, value in each.items()}
        if out.logits is not None:
            found["classification"] = classification_loss(out.logits, originals)
        return found

    def _losses_of_each(
        self, out: Output, features: Tensor, images: Tensor, count: int
    ) -> dict[str, Tensor]:
        """Losses of reconstruction of the first `count` images, (count,) each."""
        found: dict[str, Tensor] = {}
        for name, rebuilt, target in (
            ("features", out.features, features), ("image", out.image, images),
        ):  # fmt: skip
            if rebuilt is not None:
                found[f"mse_{name}"], found[f"dssim_{name}"] = reconstruction_losses(
                    rebuilt[:count], target[:count], self.ssim
                )
        return found

    def weigh(self, losses: Mapping[str, Tensor], weights: tuple[float, float, float]) -> Tensor:
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

    def after_fit(self, loader: Iterable[dict[str, Tensor]]) -> None:
        """Mean error maps of normal training images, and a grade from held-out ones."""
        self.eval()
        self.normal_features, self.normal_image = mean_errors(
            self, (batch["image"] for batch in loader)
        )
        data: Any = getattr(self._trainer, "datamodule", None)
        if hasattr(data, "calibration_dataloader"):
            held_out = data.calibration_dataloader()
            self.grade = cutpaste_auroc(self, (batch["image"] for batch in held_out))

    def learning_metrics(self) -> dict[str, float]:
        """`val/cutpaste_auroc`, when training images were held out; see `cutpaste_auroc`."""
        return {} if self.grade is None else {"val/cutpaste_auroc": self.grade}

    def trained_facts(self) -> dict[str, Any]:
        """The grade, which is no tensor."""
        return {"cutpaste_auroc": self.grade}

    def restore_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """What was saved, the grade included."""
        super().restore_tensors(tensors, facts)
        self.grade = facts.get("cutpaste_auroc")

    # --- scoring ---------------------------------------------------------------------------------

    def forward(self, image: Tensor) -> Prediction:
        """Score normalised images (B, 3, H, W); maps lie on the features' grid or twice that."""
        return self.score(image, self.features(image))

    def score(self, image: Tensor, features: Tensor) -> Prediction:
        """Prediction from images and their features, which several checkpoints may share."""
        from_features, from_image = self.errors(image, features)
        if from_features is not None:
            from_features = scoring.deviation(from_features, self.normal_features, self.scoring)
        if from_image is not None:
            from_image = scoring.deviation(from_image, self.normal_image, self.scoring)
        scales = torch.stack((self.normal_features.mean(), self.normal_image.mean()))
        maps = scoring.combine(from_features, from_image, scales, self.scoring)
        return Prediction(scoring.image_score(maps, self.scoring), maps)

    def errors(self, image: Tensor, features: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Squared errors (B, h, w) of features and (B, 2 h, 2 w) of the image, as the map needs."""
        kind = self.scoring.map
        out: Output = self.autoencoder(features, features_only=kind == "feature")
        return (
            None if kind == "image" else scoring.feature_error(out.features, features),
            None if out.image is None else scoring.image_error(out.image, image),
        )

    # --- what there is to show --------------------------------------------------------------------

    def extras(self, image: Tensor) -> dict[str, Tensor]:
        """Reconstruction and error maps, rebuilt features, and every loss as a number of its own.

        The release writes its table of losses with the true label inside (cross-entropy against
        it); here `probability_pasted` is the softmax output.
        """
        features = self.features(image)
        out: Output = self.autoencoder(features)
        shown = {"feature_error": scoring.feature_error(out.features, features)}
        if out.image is not None:
            error = scoring.image_error(out.image, image)
            shown = {"reconstruction": out.image, **shown, "image_error": error}
        losses = self._losses_of_each(out, features, image, len(image))
        if out.logits is not None:
            losses["probability_pasted"] = out.logits.float().softmax(1)[:, 1]
        shown |= losses | {"mean_of_losses": torch.stack(list(losses.values())).mean(0)}
        if out.logits is not None:
            shown |= {"logit_original": out.logits[:, 0], "logit_pasted": out.logits[:, 1]}
        return shown | {"features": out.features}

    def diagnostics(self) -> dict[str, LineChart | Figure]:
        """The weights of the losses over training."""
        fractions = [n / 500 for n in range(501)]
        weights = zip(*(loss_weights(f, self.schedule) for f in fractions), strict=True)
        lines = {name: (fractions, w) for name, w in zip(LOSSES, weights, strict=True)}
        return {"loss_weights": LineChart("share of training done", "weight of the loss", lines)}

    def _check_parts(self) -> None:
        if self.scoring.map != "feature" and self.autoencoder.image_decoder is None:
            raise ConfigError(
                "An image error map needs the image decoder.",
                found=f"model.scoring.map={self.scoring.map}, model.image_decoder.enabled=false",
                do="set model.scoring.map=feature or model.image_decoder.enabled=true",
            )
