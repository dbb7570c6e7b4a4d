"""PatchCore: a memory bank of normal patches; the distance to it is the anomaly.

Paper: Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022,
arXiv 2106.08265. Original: amazon-science/patchcore-inspection, Apache-2.0. Written from a
description; patch vectors equal the original's to 3e-7 and the coreset picks its rows.

Where we deviate, and why: scores are distances (the original reports squared ones: `squared`);
several neighbours really are used (the original loses the option when it loads a model); frozen
features never leave evaluation mode (the original moves BatchNorm statistics while it probes
dimensions); every bank row remembers its source, which gives held-out scores and explanations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from tqdm import tqdm

from src.backbones.features import FeatureExtractor
from src.errors import SavedModelError
from src.models.base import AnomalyModule
from src.models.patchcore.anomaly_map import smooth_maps
from src.models.patchcore.coreset import Progress
from src.models.patchcore.memory import PatchMemory, PatchOptions, Scored
from src.processes import leads
from src.result import NormalScores, Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class PatchMatch(NamedTuple):
    """The bank rows nearest to the patches of one image, on its patch grid."""

    distance: Tensor  # (h, w) Euclidean distance, or 1 - cosine
    row: Tensor  # (h, w) int64 bank row
    image: Tensor  # (h, w) int32 index of the training image the row stems from
    place: Tensor  # (h, w, 2) int32 grid row and column of the patch in that image


class PatchCore(AnomalyModule):
    """PatchCore with one backbone; arguments are explained in conf/model/patchcore.yaml.

    Args:
        backbone: frozen features, finest map first.
        image_size: (H, W) in pixels of input images and anomaly maps.
        embedding: `official` or `concat`, see `PatchEmbedder`.
        patch_size: neighbourhood in feature cells.
        patch_stride: step between patches in feature cells.
        pretrain_dim: values per layer.
        target_dim: values per patch.
        coreset: see `CoresetOptions`.
        neighbors: k, bank rows whose mean distance scores a patch.
        distance: `euclidean` or `cosine`.
        search: backend, cells, nprobe, dtype, see `MemoryBank`.
        reweight: `none`, `paper` (Eq. 7) or `scaled`.
        reweight_neighbors: b of Eq. 7.
        squared: report squared distances.
        sigma: Gaussian blur of the map in pixels.
        memory_budget_gb: most memory for patches and coreset; None: no limit.
        seed: of coreset starts and projections.
    """

    single_pass = True

    def __init__(
        self,
        backbone: FeatureExtractor,
        image_size: tuple[int, int],
        embedding: str,
        patch_size: int,
        patch_stride: int,
        pretrain_dim: int,
        target_dim: int,
        coreset: Mapping[str, Any],
        neighbors: int,
        distance: str,
        search: Mapping[str, Any],
        reweight: str,
        reweight_neighbors: int,
        squared: bool,
        sigma: float,
        memory_budget_gb: float | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.backbone = backbone
        self.image_size, self.sigma = (image_size[0], image_size[1]), sigma
        options = PatchOptions(
            embedding, patch_size, patch_stride, pretrain_dim, target_dim, coreset, neighbors,
            distance, search, reweight, reweight_neighbors, squared, memory_budget_gb, seed,
        )  # fmt: skip
        self.memory = PatchMemory(backbone.channels, options)
        self.held_out = NormalScores(torch.empty(0), torch.empty(0))
        # Lightning's distributed strategy insists on a parameter that could be trained.
        self.anchor = nn.Parameter(torch.zeros(()))

    # --- learning -----------------------------------------------------------------------------

    def configure_optimizers(self) -> None:
        """None: the bank is filled in one pass."""

    def on_train_epoch_start(self) -> None:
        """Make room for the training images."""
        self.memory.begin(expect_images(self.trainer))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Remember the patches of a batch of normal images."""
        self.memory.add(self.backbone(batch["image"]), batch)

    def on_train_epoch_end(self) -> None:
        """Reduce the patches to the bank and score the training images without themselves."""
        if not leads():
            return
        with coreset_bar() as progress:
            scored = self.memory.finish(progress)
        self.log("fit/bank_rows", float(len(self.memory.bank)))
        if len(self.memory.radius):
            self.log("fit/cover_radius", float(self.memory.radius[-1]))
        if scored is not None:
            self.held_out = self._normal_scores(scored)

    @torch.no_grad()
    def after_fit(self, loader: Iterable[dict[str, Tensor]]) -> None:
        """After streaming, a second pass gives the held-out scores; otherwise they are known."""
        if len(self.held_out.image):
            return
        parts = []
        for batch in loader:
            grids = self.memory.patches(self.backbone(batch["image"].to(self.device)))
            parts.append(self._normal_scores(self.memory.held_out(grids, batch["index"], None)))
        self.held_out = NormalScores(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _normal_scores(self, scored: Scored) -> NormalScores:
        maps = [
            smooth_maps(scored.grid[at : at + 64], self.image_size, self.sigma).amax((1, 2))
            for at in range(0, len(scored.grid), 64)
        ]
        return NormalScores(scored.image.cpu(), torch.cat(maps).cpu())

    def held_out_scores(self) -> NormalScores | None:
        """Leave-one-image-out scores of the training images, in image order."""
        return self.held_out if len(self.held_out.image) else None

    # --- scoring ------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, image: Tensor) -> Prediction:
        """Score images (B, 3, H, W); maps have the size of the images."""
        scored = self.memory.score(self.backbone(image))
        size = (int(image.shape[2]), int(image.shape[3]))
        return Prediction(scored.image, smooth_maps(scored.grid, size, self.sigma))

    @torch.no_grad()
    def nearest_patches(self, image: Tensor) -> PatchMatch:
        """For every patch of one image (3, H, W): its nearest bank row and where that is from."""
        patches = self.memory.patches(self.backbone(image[None]))
        h, w = patches.shape[1:3]
        match = self.memory.bank.search(patches.flatten(0, 2), 1)
        row = match.row.view(h, w)
        source = self.memory.bank.sources(row)  # (h, w, 3)
        distance = self.memory.scorer.length(match.distance).view(h, w)
        return PatchMatch(distance, row, source[..., 0], source[..., 1:])

    def export_form(self) -> nn.Module:
        """A graph without the tiled search; see `exportable`."""
        from src.models.patchcore.exportable import ExportablePatchCore

        return ExportablePatchCore(self.backbone, self.memory, self.image_size, self.sigma)

    def diagnostics(self) -> dict[str, Figure]:
        """The cover radius over the picks, when the selection was greedy."""
        if len(self.memory.radius) < 2:
            return {}
        from src.models.patchcore.curves import radius_curve

        return {"coreset_radius": radius_curve({"coreset": self.memory.radius})}

    # --- saving -------------------------------------------------------------------------------

    def trained_tensors(self) -> dict[str, Tensor]:
        """Bank rows with centre and sources, the radius curve, and the held-out scores."""
        return self.memory.tensors() | {
            "held_out.image": self.held_out.image,
            "held_out.map_max": self.held_out.map_max,
        }

    def restore_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take over a saved bank."""
        check_names(self, tensors)
        self.memory.restore(tensors, self.device)
        self.held_out = NormalScores(tensors["held_out.image"], tensors["held_out.map_max"])


def expect_images(trainer: pl.Trainer) -> int:
    """Most training images of one epoch."""
    loader: Any = trainer.train_dataloader
    return min(int(trainer.num_training_batches) * int(loader.batch_size), len(loader.dataset))


def check_names(model: AnomalyModule, tensors: dict[str, Tensor]) -> None:
    """Refuse saved tensors of another model.

    Raises:
        SavedModelError: names are missing or unknown.
    """
    wrong = sorted(set(model.trained_tensors()) ^ set(tensors))
    if wrong:
        raise SavedModelError(
            f"The saved tensors do not fit {type(model).__name__}.",
            found=f"{len(wrong)} names differ, first: {', '.join(wrong[:3])}",
            do="load the model with the config.yaml of the run that saved it",
        )


class coreset_bar:  # noqa: N801 - a context manager, used like a function
    """A progress bar for a selection when a person is watching."""

    def __enter__(self) -> Progress:
        self.bar = tqdm(desc="coreset", unit="row", leave=False, disable=not sys.stderr.isatty())
        return self._show

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def _show(self, done: int, wanted: int, radius: float) -> None:
        self.bar.total = wanted
        self.bar.set_postfix(radius=f"{radius:.3g}", refresh=False)
        self.bar.update(done - self.bar.n)
