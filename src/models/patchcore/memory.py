"""One memory of normal patches: filled from feature maps, reduced to a bank, matched."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.patchcore.coreset import Progress
from src.models.patchcore.feature_store import FeatureStore, patch_origins
from src.models.patchcore.held_out import match_other_images, replace_infinite
from src.models.patchcore.memory_bank import Match, MemoryBank
from src.models.patchcore.patches import PatchEmbedder
from src.models.patchcore.plan import Plan
from src.models.patchcore.scoring import Scorer, neighbourhood_weight
from src.models.patchcore.selection import CoresetOptions, select
from src.models.patchcore.streaming import StreamingCoreset
from src.processes import leads, whole

log = logging.getLogger(__name__)

_CHUNK = 32  # images whose held-out scores are computed together


class PatchOptions(NamedTuple):
    """Everything about patches, coreset and search; see conf/model/patchcore.yaml."""

    embedding: str
    patch_size: int
    patch_stride: int
    pretrain_dim: int
    target_dim: int
    coreset: Mapping[str, Any]
    neighbors: int
    distance: str
    search: Mapping[str, Any]
    reweight: str
    reweight_neighbors: int
    squared: bool
    memory_budget_gb: float | None
    seed: int


class Scored(NamedTuple):
    """Scores of B images."""

    image: Tensor  # (B,)
    grid: Tensor  # (B, h, w) patch scores


class PatchMemory(nn.Module):
    """Patch vectors of one backbone and their bank.

    Args:
        channels: channels of the backbone's maps.
        options: the model config.
    """

    def __init__(self, channels: tuple[int, ...], options: PatchOptions) -> None:
        super().__init__()
        self.options = options
        self.coreset = CoresetOptions.read(options.coreset)
        self.scorer = Scorer(options.distance, options.squared, options.reweight).check()
        self.embedder = PatchEmbedder(
            options.embedding, channels, options.patch_size, options.patch_stride,
            options.pretrain_dim, options.target_dim,
        )  # fmt: skip
        self.bank = MemoryBank(**options.search)
        self.radius = torch.empty(0)  # (M,) cover radius before each pick
        self._images = 0
        self._store: FeatureStore | None = None
        self._stream: StreamingCoreset | None = None

    # --- filling ------------------------------------------------------------------------------

    def begin(self, images: int) -> None:
        """Expect at most `images` images."""
        self._images = images
        self._store = self._stream = None

    def add(self, maps: list[Tensor], batch: Mapping[str, Tensor]) -> None:
        """Take the feature maps of a batch (B images); the first process takes those of all."""
        patches = whole(self.patches(maps), batch)  # (B, h, w, D)
        index = whole(batch["index"], batch)
        if not leads():
            return
        if self._store is None and self._stream is None:
            self._open(patches)
        if self._store is not None:
            self._store.add(patches, index)
        elif self._stream is not None:
            origin = patch_origins(index.cpu(), *patches.shape[1:3])
            self._stream.add(patches.flatten(0, 2), origin)

    def _open(self, patches: Tensor) -> None:
        """Say what will happen, then choose between holding all patches and streaming."""
        _, h, w, D = patches.shape
        plan = Plan.make(self._images, (h, w), D, self.coreset, self.options.memory_budget_gb)
        log.info("PatchCore plan: %s", plan.describe())
        if plan.streams:
            self._stream = StreamingCoreset(plan, self.coreset, self.options.seed)
        else:
            self._store = FeatureStore(self._images)

    def finish(self, progress: Progress | None) -> Scored | None:
        """Reduce what was added to the bank.

        Returns: held-out scores of the training images in image order; None after streaming,
            when their patches are gone.
        """
        if self._stream is not None:
            rows, origin = self._stream.finish()
            self.radius = torch.tensor([self._stream.cover_radius])
            order = source_order(origin)
            self.bank.fill(rows[order.to(rows.device)], origin[order].to(rows.device))
            self._stream = None
            return None
        if self._store is None:
            raise RuntimeError("no training images were added")
        grids, index = self._store.collect()
        self._store = None
        return self._build(grids, index, progress)

    def _build(self, grids: Tensor, index: Tensor, progress: Progress | None) -> Scored:
        n, h, w, D = grids.shape
        features = grids.reshape(-1, D)
        chosen = select(features, self.coreset, self.options.seed, progress)
        self.radius = chosen.radius
        origin = patch_origins(index, h, w)[chosen.rows]
        rows = features[chosen.rows.to(features.device)]
        self.bank.fill(rows, origin.to(features.device))
        if self.bank.backend == "ivf":
            error = self.bank.score_error(grids[: 2 * _CHUNK].flatten(1, 2))
            log.info("inverted lists: image scores %.3f %% too high on normal images", 100 * error)
        nearest = None if chosen.nearest is None else chosen.nearest.view(n, -1)
        parts = [
            self.held_out(
                grids[at : at + _CHUNK],
                index[at : at + _CHUNK],
                None if nearest is None else nearest[at : at + _CHUNK],
            )
            for at in range(0, n, _CHUNK)
        ]
        return Scored(*(torch.cat(part) for part in zip(*parts, strict=True)))

    # --- matching -----------------------------------------------------------------------------

    def patches(self, maps: list[Tensor]) -> Tensor:
        """Patch vectors (B, h, w, D), of unit length for the cosine distance."""
        patches = self.embedder(maps)
        return F.normalize(patches, dim=3) if self.options.distance == "cosine" else patches

    def match(self, maps: list[Tensor]) -> Match:
        """The k nearest bank rows of every patch, (B*h*w, k), row-major within an image."""
        return self.bank.search(self.patches(maps).flatten(0, 2), self.options.neighbors)

    def score(self, maps: list[Tensor]) -> Scored:
        """Scores of a batch from its feature maps."""
        patches = self.patches(maps)
        B, h, w, _ = patches.shape
        flat = patches.flatten(0, 2)
        match = self.bank.search(flat, self.options.neighbors)
        grid = self.scorer.patch(match.distance).view(B, -1)
        weight = self._weight(flat.view(B, h * w, -1), match, grid.argmax(1), None)
        return Scored(grid.amax(1) * weight, grid.view(B, h, w))

    def held_out(self, grids: Tensor, index: Tensor, nearest: Tensor | None) -> Scored:
        """Scores of training images (B, h, w, D), each without its own bank rows; exact.

        `nearest` (B, h*w): bank row nearest to each patch when known.
        """
        B, h, w, _ = grids.shape
        flat = grids.flatten(1, 2)  # (B, P, D)
        images, scores = [], []
        for i, image in enumerate(index.tolist()):
            known = None
            if nearest is not None:
                known = self.bank.measure(flat[i], nearest[i][:, None].clamp_min(0))
                known = Match(known.distance, nearest[i][:, None])
            match = match_other_images(self.bank, flat[i], image, self.options.neighbors, known)
            grid = self.scorer.patch(match.distance)
            weight = self._weight(flat[i : i + 1], match, grid.argmax()[None], image)
            images.append(grid.amax()[None] * weight)
            scores.append(grid)
        image_score = replace_infinite(torch.cat(images))
        return Scored(image_score, replace_infinite(torch.stack(scores)).view(B, h, w))

    def _weight(self, patches: Tensor, match: Match, worst: Tensor, left_out: int | None) -> Tensor:
        """Eq. 7 weights (B,) of the worst patch (B,) of each image; ones without reweighting."""
        B, P, D = patches.shape
        if self.scorer.reweight == "none":
            return patches.new_ones(B)
        at = torch.arange(B, device=worst.device) * P + worst
        query = patches.flatten(0, 1)[at]  # (B, D)
        centre = self.bank.vectors(match.row[at, 0])  # (B, D)
        b = self.options.reweight_neighbors
        if left_out is None:
            near = self.bank.search(centre, b).row
        else:
            near = self.bank.search_without_image(centre, b, left_out).row
        gap = (query[:, None] - self.bank.vectors(near)).square().sum(2)  # (B, b)
        length = self.scorer.length
        return neighbourhood_weight(
            self.scorer.reweight, length(match.distance[at, 0]), length(gap), D
        )

    # --- saving -------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Bank rows with centre and sources, and the radius curve of their selection."""
        return {
            "bank.rows": self.bank.rows,
            "bank.centre": self.bank.centre,
            "bank.origin": self.bank.origin,
            "radius": self.radius,
        }

    def restore(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Inverse of `tensors`."""
        rows, centre, origin = (tensors[f"bank.{key}"] for key in ("rows", "centre", "origin"))
        self.bank.restore(rows.to(device), centre.to(device), origin.to(device))
        self.radius = tensors["radius"]


def source_order(origin: Tensor) -> Tensor:
    """Order (M,) that sorts sources (M, 3) by image, row, column."""
    image, row, column = origin.long().cpu().unbind(1)
    width, height = int(column.max()) + 1, int(row.max()) + 1
    return ((image * height + row) * width + column).argsort(stable=True)
