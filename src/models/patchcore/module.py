"""PatchCore: a memory bank of normal patches; the distance to it is the anomaly.

Paper: Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022,
arXiv 2106.08265. Original: amazon-science/patchcore-inspection, Apache-2.0. Written from a
description; patch vectors equal the original's to 3e-7 and the coreset picks its rows.

Where we deviate, and why: scores are distances (the original reports squared ones: `squared`);
several neighbours really are used (the original loses the option when it loads a model); frozen
features never leave evaluation mode (the original moves BatchNorm statistics while it probes
dimensions); every bank row remembers its source, which gives held-out scores and explanations.

Several backbones make an ensemble (Tab. S1): one memory each, scores and maps averaged on a common
scale; so do the layers of one with a memory each (`memories=per_layer`; SuperAD, RAD). The original
scales each member by its range over the whole test set, so a single image cannot be scored
(`normalisation=test_set`); ours scales with held-out scores of normal images; `none` does not.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from src.backbones.features import FeatureExtractor
from src.errors import ConfigError
from src.models.base import AnomalyModule
from src.models.patchcore.memory import PatchMemory
from src.models.patchcore.official_banks import take_official
from src.models.patchcore.options import HeldOut, Memories, Normalisation, PatchCoreOptions
from src.models.patchcore.scores import Scored, held_out_scale, image_score, length
from src.models.patchcore.windows import Windowed
from src.processes import leads
from src.result import Calibration, LineChart, NormalScores, Prediction

_MAP_BATCH = 64  # images whose held-out maps are made together
_RANGE_BATCH = 8  # images a step while the range of a test set is found


class NearestPatches(NamedTuple):
    """The bank rows nearest to the patches of one image, on its patch grid."""

    distance: Tensor  # (h, w) Euclidean distance, or 1 - cosine
    row: Tensor  # (h, w) int64 bank row
    image: Tensor  # (h, w) int32 index of the training image the row stems from
    place: Tensor  # (h, w, 2) int32 grid row and column of the patch in that image


class Backbones(nn.ModuleList):
    """Frozen networks that look at the same images; their maps, for each memory those it takes."""

    def __init__(self, networks: Iterable[nn.Module], memories: Memories) -> None:
        super().__init__(networks)
        self.apart = memories == Memories.per_layer
        self.channels = self._dealt([network.channels for network in self])  # of each memory's maps
        self.identity = " + ".join(str(network.identity) for network in self)

    def forward(self, image: Tensor) -> list[list[Tensor]]:
        """Images (B, 3, H, W) -> the maps of each memory."""
        return self._dealt([network(image) for network in self])

    def _dealt(self, kinds: list[Any]) -> list[Any]:
        """One list for each network -> one for each memory."""
        return [[one] for kind in kinds for one in kind] if self.apart else kinds


class PatchCore(AnomalyModule):
    """A memory of normal patches for each backbone, or for each of its layers, finest map first."""

    Options: ClassVar[type] = PatchCoreOptions
    single_pass = True

    memories: Sequence[PatchMemory]  # in the order of backbones and layers
    scale: Tensor  # (members, image | patch, location | unit); empty without an ensemble
    held_out_image: Tensor  # (n,) see `held_out_scores`
    held_out_map_max: Tensor  # (n,)

    def __init__(
        self,
        backbone: FeatureExtractor | Sequence[FeatureExtractor],
        image_size: tuple[int, int],
        options: PatchCoreOptions,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.image_size, self.options = (image_size[0], image_size[1]), options
        networks = backbone if isinstance(backbone, Sequence) else [backbone]
        seen, budget = options.windows, options.memory_budget_gb
        views = (
            Windowed(one, seen.size, seen.overlap, image_size) if seen and seen.size else one
            for one in networks
        )
        self.backbone = Backbones(views, options.memories)
        channels = self.backbone.channels
        share = None if budget is None else budget / len(channels)
        memories = [PatchMemory(tuple(counts), options, share) for counts in channels]
        self.memories = cast(Sequence[PatchMemory], nn.ModuleList(memories))
        for name in ("scale", "held_out_image", "held_out_map_max"):
            self.register_buffer(name, torch.empty(0))
        self.rotations = angles_of(options.rotations)
        self._way = Calibration.leave_one_out
        # Lightning's distributed strategy insists on a parameter that could be trained.
        self.anchor = nn.Parameter(torch.zeros(()))
        if options.weights is not None:
            take_official(self, options.weights)

    @property
    def memory(self) -> PatchMemory:
        """The only memory, or the first of an ensemble."""
        return self.memories[0]

    def patches(self, image: Tensor) -> list[Tensor]:
        """Patch vectors (B, h, w, D) of images (B, 3, H, W) for each memory."""
        pairs = zip(self.memories, self.backbone(image), strict=True)
        return [memory.patches(maps) for memory, maps in pairs]

    @torch.no_grad()
    def look_at(self, roi: Tensor) -> None:
        """Patches whose centre lies outside are neither remembered nor scored."""
        grids = self.patches(torch.zeros(1, 3, *self.image_size))
        for memory, patches in zip(self.memories, grids, strict=True):
            memory.region.limit(roi, patches.shape[1:3])

    @property
    def roi(self) -> Tensor | None:
        """The pixels that `look_at` was given."""
        return self.memory.region.roi if self.memory.region.limited else None

    # --- learning -----------------------------------------------------------------------------

    def configure_optimizers(self) -> None:
        """None: the banks are filled in one pass."""

    def on_train_epoch_start(self) -> None:
        """Make room for the training images; ConfigError when the banks are given."""
        if self.options.weights is not None:
            raise ConfigError(
                "The memory banks are given: nothing is left to fit.",
                found=f"model.weights={self.options.weights}",
                do="set trainer.max_epochs=0, or model.weights=null",
            )
        loader: Any = self.trainer.train_dataloader
        batches = int(self.trainer.num_training_batches)
        images = min(batches * int(loader.batch_size), len(loader.dataset))
        for memory in self.memories:
            memory.begin(images * (1 + len(self.rotations)))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Remember the patches of a batch of normal images and of their turned copies."""
        for degrees in (0.0, *self.rotations):
            image = turned(batch["image"], degrees)
            tokens = None
            if self.options.references is not None:
                tokens = cast(FeatureExtractor, self.backbone[0]).describe(image)
            for memory, maps in zip(self.memories, self.backbone(image), strict=True):
                memory.add(maps, batch, tokens)

    def on_train_epoch_end(self) -> None:
        """Reduce the patches to the banks and score the training images without themselves."""
        if not leads():
            return
        found = [memory.finish() for memory in self.memories]
        self.log("fit/bank_rows", float(sum(len(memory.bank) for memory in self.memories)))
        if len(self.memory.radius):
            self.log("fit/cover_radius", max(float(m.radius[-1]) for m in self.memories))
        members = [scored for scored in found if scored is not None]
        if len(members) == len(found):
            cross = self.options.held_out == HeldOut.cross and len(members[0].image) > 1
            self._note_held_out(members, Calibration.cross if cross else Calibration.leave_one_out)

    @torch.no_grad()
    def after_fit(self, loader: Iterable[dict[str, Tensor]]) -> None:
        """After streaming, a second pass gives leave-one-out scores; otherwise they are known.

        A given bank does not know which of its rows stem from which image: it has none.
        """
        if len(self.held_out_image) or self.options.weights is not None:
            return
        parts = [self._scores(b["image"].to(self.device), b["index"]) for b in loader]
        members = [Scored.joined(batches) for batches in zip(*parts, strict=True)]
        self._note_held_out(members, Calibration.leave_one_out)

    def _note_held_out(self, members: list[Scored], way: Calibration) -> None:
        """Fix the scale of an ensemble, then keep the held-out scores of all memories together."""
        self._way = way
        if len(members) > 1 and self.options.normalisation != Normalisation.none:
            self.scale = torch.stack([held_out_scale(member) for member in members])
        parts = []
        for at in range(0, len(members[0].image), _MAP_BATCH):
            some = [Scored(*(v[at : at + _MAP_BATCH] for v in member)) for member in members]
            parts.append(self._combined(some, self.image_size))
        self.held_out_image = torch.cat([part.score for part in parts])
        self.held_out_map_max = torch.cat([part.anomaly_map.amax((1, 2)) for part in parts])

    def held_out_scores(self) -> NormalScores | None:
        """Scores of the training images by banks without them, in image order.

        None when the scale depends on the images predicted, or the banks were given.
        """
        fixed = len(self.memories) == 1 or self.options.normalisation != Normalisation.test_set
        if not fixed or not len(self.held_out_image):
            return None
        return NormalScores(self.held_out_image.cpu(), self.held_out_map_max.cpu(), self._way)

    # --- scoring ------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, image: Tensor) -> Prediction:
        """Score images (B, 3, H, W); maps have the size of the images."""
        return self._combined(self._scores(image), (int(image.shape[2]), int(image.shape[3])))

    @torch.no_grad()
    def unseen(self, image: Tensor, index: int) -> Prediction:
        """Without the rows of image `index` in the banks; its score is not that of its fold."""
        number = torch.tensor([index], device=image.device)
        return self._combined(self._scores(image, number), self.image_size)

    def _scores(self, image: Tensor, index: Tensor | None = None) -> list[Scored]:
        pairs = zip(self.memories, self.backbone(image), strict=True)
        return [memory.judge(maps, index) for memory, maps in pairs]

    def _combined(self, members: list[Scored], size: tuple[int, int]) -> Prediction:
        """One prediction from the scores of each memory."""
        plain = len(members) == 1 or self.options.normalisation == Normalisation.none
        scores, maps = [], []
        for number, (memory, (score, grid)) in enumerate(zip(self.memories, members, strict=True)):
            if not plain:
                (image_at, image_unit), (patch_at, patch_unit) = self.scale[number].unbind(0)
                score, grid = (score - image_at) / image_unit, (grid - patch_at) / patch_unit
            scores.append(score)
            maps.append(memory.region.smooth_maps(grid, size, self.options.sigma))
        score = torch.stack(scores).mean(0)
        if plain and len(members) > 1:  # that of the mean patch scores, all on the finest grid
            pairs = zip(self.memories, members, strict=True)
            grids = [memory.region.spread(scored.grid)[:, None] for memory, scored in pairs]
            fine = [F.interpolate(g, size=grids[0].shape[-2:], mode="bilinear") for g in grids]
            score = image_score(torch.cat(fine, 1).mean(1).flatten(1), self.options)
        return Prediction(score, torch.stack(maps).mean(0))

    @torch.no_grad()
    def on_predict_start(self) -> None:
        """`test_set`: one pass over the images to come finds each member's range."""
        if self.options.normalisation != Normalisation.test_set or len(self.memories) == 1:
            return
        loaders: Any = self.trainer.predict_dataloaders
        given = loaders[0] if isinstance(loaders, list) else loaders
        # Lightning's own iteration is already under way and cannot be entered twice.
        images = getattr(given.dataset, "data", given.dataset)  # all, not this process's share
        ends: list[Tensor] = []  # (image | patch, low | high) of each batch and member
        for batch in DataLoader(images, _RANGE_BATCH, collate_fn=given.collate_fn):
            found = self._scores(batch["image"].to(self.device))
            for memory, scored in zip(self.memories, found, strict=True):
                grid, sigma = scored.grid, self.options.sigma
                maps = memory.region.smooth_maps(grid, self.image_size, sigma)
                both = [torch.stack(values.aminmax()) for values in (scored.image, maps)]
                ends.append(torch.stack(both))
        low, high = torch.stack(ends).view(-1, len(self.memories), 2, 2).unbind(3)
        low, high = low.amin(0), high.amax(0)  # (members, image | patch)
        self.scale = torch.stack([low, (high - low).clamp_min(1e-12)], 2)

    @torch.no_grad()
    def nearest_patches(self, image: Tensor) -> NearestPatches:
        """For every patch of one image (3, H, W): its nearest bank row and where that is from.

        An ensemble shows its first member. What lies outside the region has distance 0.
        """
        patches, bank = self.patches(image[None])[0], self.memory.bank
        match, spread = bank.search(patches.flatten(0, 2), 1), self.memory.region.spread
        row = spread(match.row.view(patches.shape[:3]))[0]
        source = bank.origin[row]  # (h, w, 3)
        distance = length(match.distance, self.options.distance)
        distance = spread(distance.view(patches.shape[:3]))[0]
        return NearestPatches(distance, row, source[..., 0], source[..., 1:])

    def export_form(self) -> Self:
        """The method itself; one image makes the matrices of the maps, which a graph holds."""
        self(torch.zeros(1, 3, *self.image_size, device=self.device))
        return self

    def diagnostics(self) -> dict[str, LineChart]:
        """The cover radius over the picks, when the selection was greedy.

        A bend shows where more rows stop paying; `coreset.stop_radius` puts the end there.
        """
        lines = {
            f"member {i}": (range(len(memory.radius)), memory.radius.tolist())
            for i, memory in enumerate(self.memories)
            if len(memory.radius) > 1
        }
        chart = LineChart("rows kept", "distance of the worst covered patch", lines, log_x=True)
        return {"coreset_radius": chart} if lines else {}

    # --- saving -------------------------------------------------------------------------------

    def restore_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take over saved banks, whatever their sizes."""
        for name in set(tensors) & set(dict(self.named_buffers())):
            owner, _, last = name.rpartition(".")
            setattr(self.get_submodule(owner), last, torch.empty_like(tensors[name]))
        super().restore_tensors(tensors, facts)
        self._way = Calibration(facts["held_out"])

    def trained_facts(self) -> dict[str, Any]:
        """How the held-out scores came about."""
        return {"held_out": str(self._way)}


def angles_of(rotations: float | Sequence[float] | None) -> list[float]:
    """Degrees of the copies: those named, or of n evenly spaced turns all but the first."""
    if not isinstance(rotations, int | float):
        return list(map(float, rotations or []))
    return [360.0 * turn / rotations for turn in range(1, int(rotations))]


def turned(image: Tensor, degrees: float) -> Tensor:
    """Images (B, C, H, W) turned counterclockwise about their centre, in the same frame.

    Right angles of square images are exact; otherwise bilinear, and beyond the frame lies its
    mirror image, as in AnomalyDINO (Damm et al., WACV 2025), which turns before it shrinks.
    """
    if degrees == 0:
        return image
    quarter, rest = divmod(degrees, 90.0)
    if rest == 0 and (image.shape[2] == image.shape[3] or quarter % 2 == 0):
        return image.rot90(int(quarter), (2, 3))
    H, W = image.shape[2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # from places in the copy to those in the image, in units of half a width and half a height
    back = torch.tensor([[cos, -sin * H / W, 0.0], [sin * W / H, cos, 0.0]])
    back = back.to(image, non_blocking=True)
    grid = F.affine_grid(back.expand(len(image), 2, 3), list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
