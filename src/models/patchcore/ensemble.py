"""PatchCore with several backbones: one bank each, scores averaged on a common scale.

Paper: PatchCore Tab. S1 (WideResNet101, ResNeXt101, DenseNet201, 1 %). Original: amazon-science/
patchcore-inspection (Apache-2.0) fits the members one after the other and scales each by its
smallest and largest score over the whole test set, so a single image cannot be scored. Ours reads
every image once for all members and by default scales with held-out scores of normal images,
which are known after the fit and saved with the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from src.backbones.features import FeatureExtractor
from src.errors import ConfigError, did_you_mean
from src.models.base import AnomalyModule
from src.models.patchcore.anomaly_map import smooth_maps
from src.models.patchcore.memory import PatchMemory, PatchOptions, Scored
from src.models.patchcore.module import check_names, coreset_bar, expect_images
from src.processes import leads
from src.result import NormalScores, Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMALISATIONS = ("held_out", "test_set")

# Ours: the unit is the distance from the median to this quantile of held-out scores.
_IMAGE_QUANTILE, _PATCH_QUANTILE = 0.95, 0.99


_RANGE_BATCH = 8  # images a step while the range is found


class Backbones(nn.ModuleList):
    """The frozen networks of an ensemble under one name."""

    @property
    def identity(self) -> str:
        """The members' identities."""
        return " + ".join(str(member.identity) for member in self)


class PatchCoreEnsemble(AnomalyModule):
    """Several PatchCores on the same images; further arguments as for `PatchCore`.

    Args:
        backbone: the frozen networks.
        normalisation: `held_out`, scale members by held-out scores of normal images; `test_set`,
            the official protocol: by the range of all images predicted in one go, labels unread.
        memory_budget_gb: shared equally by the members.
    """

    single_pass = True

    def __init__(
        self,
        backbone: Sequence[FeatureExtractor],
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
        normalisation: str,
        seed: int,
    ) -> None:
        super().__init__()
        if normalisation not in NORMALISATIONS:
            raise ConfigError(
                "Unknown model.normalisation.",
                found=normalisation,
                do=did_you_mean(normalisation, NORMALISATIONS),
            )
        self.automatic_optimization = False
        self.backbone = Backbones(backbone)
        self.image_size, self.sigma = (image_size[0], image_size[1]), sigma
        self.normalisation = normalisation
        share = None if memory_budget_gb is None else memory_budget_gb / len(backbone)
        options = PatchOptions(
            embedding, patch_size, patch_stride, pretrain_dim, target_dim, coreset, neighbors,
            distance, search, reweight, reweight_neighbors, squared, share, seed,
        )  # fmt: skip
        self.memories = nn.ModuleList(PatchMemory(m.channels, options) for m in backbone)
        # (members, image | patch, location | unit)
        self.register_buffer("scale", torch.tensor([0.0, 1.0]).repeat(len(backbone), 2, 1))
        self.scale: Tensor
        self.held_out = NormalScores(torch.empty(0), torch.empty(0))
        self.anchor = nn.Parameter(torch.zeros(()))  # see PatchCore

    # --- learning -----------------------------------------------------------------------------

    def configure_optimizers(self) -> None:
        """None: the banks are filled in one pass."""

    def on_train_epoch_start(self) -> None:
        """Make room for the training images."""
        for memory in self.memories:
            memory.begin(expect_images(self.trainer))  # type: ignore[operator]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Remember the patches of a batch of normal images, once for each member."""
        for network, memory in self._members():
            memory.add(network(batch["image"]), batch)

    def on_train_epoch_end(self) -> None:
        """Reduce the patches to one bank a member."""
        if not leads():
            return
        scored = []
        for _, memory in self._members():
            with coreset_bar() as progress:
                scored.append(memory.finish(progress))
        if all(part is not None for part in scored):
            self._calibrate([part for part in scored if part is not None])

    @torch.no_grad()
    def after_fit(self, loader: Iterable[dict[str, Tensor]]) -> None:
        """After streaming, a second pass gives the held-out scores; otherwise they are known."""
        if len(self.held_out.image):
            return
        parts: list[list[Scored]] = [[] for _ in self.memories]
        for batch in loader:
            image = batch["image"].to(self.device)
            for (network, memory), part in zip(self._members(), parts, strict=True):
                part.append(memory.held_out(memory.patches(network(image)), batch["index"], None))
        self._calibrate(
            [Scored(*(torch.cat(v) for v in zip(*part, strict=True))) for part in parts]
        )

    def _calibrate(self, members: list[Scored]) -> None:
        """Fix the members' scales, then the ensemble's own held-out scores."""
        self.scale = torch.stack([held_out_scale(member) for member in members])
        count = len(members[0].image)
        parts = [
            self._combine([Scored(m.image[at : at + 32], m.grid[at : at + 32]) for m in members])
            for at in range(0, count, 32)
        ]
        self.held_out = NormalScores(
            torch.cat([part.score for part in parts]).cpu(),
            torch.cat([part.anomaly_map.amax((1, 2)) for part in parts]).cpu(),
        )

    def held_out_scores(self) -> NormalScores | None:
        """Leave-one-image-out scores; None when the scale depends on the images predicted."""
        known = len(self.held_out.image) and self.normalisation == "held_out"
        return self.held_out if known else None

    # --- scoring ------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, image: Tensor) -> Prediction:
        """Mean of the members' scaled scores for images (B, 3, H, W); maps likewise."""
        return self._combine([memory.score(network(image)) for network, memory in self._members()])

    def _combine(self, members: list[Scored]) -> Prediction:
        scores, maps = [], []
        for scored, scale in zip(members, self.scale, strict=True):
            (image_at, image_unit), (patch_at, patch_unit) = scale.unbind(0)
            scores.append((scored.image - image_at) / image_unit)
            grid = (scored.grid - patch_at) / patch_unit
            maps.append(smooth_maps(grid, self.image_size, self.sigma))
        return Prediction(torch.stack(scores).mean(0), torch.stack(maps).mean(0))

    @torch.no_grad()
    def on_predict_start(self) -> None:
        """`test_set`: one pass over the images to come finds each member's range."""
        if self.normalisation != "test_set":
            return
        loaders: Any = self.trainer.predict_dataloaders
        given = loaders[0] if isinstance(loaders, list) else loaders
        # Lightning's own iteration is already under way and cannot be entered twice.
        images = getattr(given.dataset, "data", given.dataset)  # all, not this process's share
        loader = DataLoader(images, _RANGE_BATCH, collate_fn=given.collate_fn)
        low = torch.full(self.scale.shape[:2], torch.inf, device=self.device)
        high = -low
        for batch in loader:
            image = batch["image"].to(self.device)
            for i, (network, memory) in enumerate(self._members()):
                scored = memory.score(network(image))
                for j, values in enumerate((scored.image, self._maps(scored.grid))):
                    low[i, j] = torch.minimum(low[i, j], values.min())
                    high[i, j] = torch.maximum(high[i, j], values.max())
        self.scale = torch.stack([low, (high - low).clamp_min(1e-12)], 2)

    def export_form(self) -> nn.Module:
        """The members in one graph without the tiled search; see `exportable`."""
        from src.models.patchcore.exportable import ExportableEnsemble, ExportablePatchCore

        parts = [
            ExportablePatchCore(network, memory, self.image_size, self.sigma)
            for network, memory in self._members()
        ]
        return ExportableEnsemble(parts, self.scale)

    def _maps(self, grid: Tensor) -> Tensor:
        return smooth_maps(grid, self.image_size, self.sigma)

    def _members(self) -> Iterable[tuple[FeatureExtractor, PatchMemory]]:
        return zip(self.backbone, self.memories, strict=True)  # type: ignore[arg-type]

    def diagnostics(self) -> dict[str, Figure]:
        """The cover radius of each member over its picks."""
        radii = {
            f"member {i}": memory.radius
            for i, (_, memory) in enumerate(self._members())
            if len(memory.radius) > 1
        }
        if not radii:
            return {}
        from src.models.patchcore.curves import radius_curve

        return {"coreset_radius": radius_curve(radii)}

    # --- saving -------------------------------------------------------------------------------

    def trained_tensors(self) -> dict[str, Tensor]:
        """Banks and scales of all members, and the held-out scores."""
        tensors = {
            "scale": self.scale,
            "held_out.image": self.held_out.image,
            "held_out.map_max": self.held_out.map_max,
        }
        for i, (_, memory) in enumerate(self._members()):
            tensors |= {f"member{i}.{key}": value for key, value in memory.tensors().items()}
        return tensors

    def restore_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take over saved banks."""
        check_names(self, tensors)
        self.scale = tensors["scale"].to(self.device)
        self.held_out = NormalScores(tensors["held_out.image"], tensors["held_out.map_max"])
        for i, (_, memory) in enumerate(self._members()):
            own = f"member{i}."
            memory.restore(
                {key.removeprefix(own): v for key, v in tensors.items() if key.startswith(own)},
                self.device,
            )


def held_out_scale(scored: Scored) -> Tensor:
    """Location and unit (2, 2) of image scores and of patch scores of normal images."""
    rows = []
    for values, high in ((scored.image, _IMAGE_QUANTILE), (scored.grid, _PATCH_QUANTILE)):
        ordered = values.flatten().sort().values
        median = ordered[len(ordered) // 2]
        top = ordered[min(len(ordered) - 1, int(high * len(ordered)))]
        unit = top - median
        rows.append(torch.stack([median, unit if unit > 0 else torch.ones_like(unit)]))
    return torch.stack(rows)
