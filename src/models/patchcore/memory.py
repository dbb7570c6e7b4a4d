"""One memory of normal patches: filled from feature maps, reduced to a bank, matched.

Held-out scores: a conformal threshold needs scores of normal images that the model has not seen. A
memory gives them without a hold-out: an image's own rows are skipped when its patches are searched.
Only the bank is reduced, the coreset is not selected again: an approximation that can only make
these scores larger than those of a truly new image, since other images' rows near a skipped row
were left to it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.patchcore.bank import MemoryBank
from src.models.patchcore.coreset import Progress, select
from src.models.patchcore.feature_store import FeatureStore, patch_origins
from src.models.patchcore.fit_cost import FitCost
from src.models.patchcore.nearest import Match
from src.models.patchcore.options import Backend, Distance, PatchCoreOptions, Reweight
from src.models.patchcore.patches import PatchEmbedder
from src.models.patchcore.scores import Scored, length, neighbourhood_weight, patch_score
from src.models.patchcore.streaming import StreamingCoreset
from src.processes import leads, whole

log = logging.getLogger(__name__)


class PatchMemory(nn.Module):
    """Patch vectors of one backbone and their bank.

    Args:
        channels: channels of the backbone's maps.
        options: the model config.
        budget_gb: most memory for patches and coreset; None: no limit.
    """

    radius: Tensor  # (M,) cover radius before each pick; empty unless the selection was greedy

    def __init__(
        self, channels: tuple[int, ...], options: PatchCoreOptions, budget_gb: float | None
    ) -> None:
        super().__init__()
        self.options, self.budget_gb = options, budget_gb
        self.embedder = PatchEmbedder(channels, options)
        self.bank = MemoryBank(options.search)
        self.register_buffer("radius", torch.empty(0))
        self._images = 0
        self._patches: FeatureStore | StreamingCoreset | None = None

    # --- filling ------------------------------------------------------------------------------

    def begin(self, images: int) -> None:
        """Expect at most `images` images."""
        self._images, self._patches = images, None

    def add(self, maps: list[Tensor], batch: Mapping[str, Tensor]) -> None:
        """Take the feature maps of a batch (B images); the first process takes those of all."""
        patches = whole(self.patches(maps), batch)  # (B, h, w, D)
        index = whole(batch["index"], batch)
        if not leads():
            return
        if self._patches is None:
            self._patches = self._open(patches)
        self._patches.add(patches, index)

    def _open(self, patches: Tensor) -> FeatureStore | StreamingCoreset:
        """Say what will happen, then choose between holding all patches and streaming."""
        _, h, w, D = patches.shape
        cost = FitCost.of(self._images, (h, w), D, self.options.coreset, self.budget_gb)
        log.info("PatchCore plan: %s", cost.describe())
        if cost.streams:
            return StreamingCoreset(cost, self.options.coreset, self.options.seed)
        return FeatureStore(self._images)

    def finish(self, progress: Progress | None = None) -> Scored | None:
        """Reduce what was added to the bank.

        Returns: held-out scores of the training images in image order; None after streaming,
            when their patches are gone.
        """
        patches, self._patches = self._patches, None
        if isinstance(patches, StreamingCoreset):
            self.bank.fill(*patches.finish())
            self.radius = torch.tensor([patches.cover_radius])
            return None
        if patches is None:
            raise RuntimeError("no training images were added")
        grids, index = patches.collect()
        nearest = self.reduce(grids, index, progress)
        return self.held_out(grids, index, nearest)

    def reduce(
        self, grids: Tensor, index: Tensor, progress: Progress | None = None
    ) -> Tensor | None:
        """Fill the bank from the patches (n, h, w, D) of the images with numbers `index` (n,).

        Returns: the bank row nearest to each patch (n, h*w), -1 where it is unknown, if the
            selection found that on its way.
        """
        n, h, w, D = grids.shape
        features = grids.reshape(-1, D)
        chosen = select(features, self.options.coreset, self.options.seed, progress)
        self.radius = chosen.radius
        rows = features[chosen.rows.to(features.device)]
        self.bank.fill(rows, patch_origins(index, h, w)[chosen.rows])
        if self.options.search.backend == Backend.ivf:
            error = self.bank.score_error(grids[:64].flatten(1, 2))
            log.info("inverted lists: image scores %.3f %% too high on normal images", 100 * error)
        return None if chosen.nearest is None else chosen.nearest.view(n, -1)

    # --- scoring ------------------------------------------------------------------------------

    def patches(self, maps: list[Tensor]) -> Tensor:
        """Patch vectors (B, h, w, D), of unit length for the cosine distance."""
        patches: Tensor = self.embedder(maps)
        cosine = self.options.distance == Distance.cosine
        return F.normalize(patches, dim=3) if cosine else patches

    def score(self, patches: Tensor, without: int | None = None) -> Scored:
        """Scores of patches (B, h, w, D); `without`: the number of an image to leave out."""
        match = self.bank.search(patches.flatten(0, 2), self.options.neighbors, without)
        return self._scored(patches, match, without)

    def held_out(self, grids: Tensor, index: Tensor, nearest: Tensor | None = None) -> Scored:
        """Scores of training images (n, h, w, D), each without its own bank rows; exact.

        `nearest` (n, h*w): bank row nearest to each patch, or -1, when known; then only patches
        matched by their own image are searched again.
        """
        parts = []
        for i, image in enumerate(index.tolist()):
            grid = grids[i : i + 1]
            if nearest is None or self.options.neighbors > 1:
                parts.append(self.score(grid, image))
                continue
            flat, row = grid.flatten(0, 2), nearest[i]
            again = ((self.bank.origin[row, 0] == image) | (row < 0)).nonzero()[:, 0]
            distance, row = self.bank.measure(flat, row[:, None].clamp_min(0))
            if len(again):
                distance[again], row[again] = self.bank.search(flat[again], 1, image)
            parts.append(self._scored(grid, Match(distance, row), image))
        return Scored(*(_finite(torch.cat(values)) for values in zip(*parts, strict=True)))

    def _scored(self, patches: Tensor, match: Match, without: int | None) -> Scored:
        """Image and patch scores from the matches of patches (B, h, w, D)."""
        B, h, w, D = patches.shape
        options = self.options
        grid = patch_score(match.distance, options).view(B, h * w)
        score, worst = grid.max(1)
        if options.reweight != Reweight.none:
            at = torch.arange(B, device=worst.device) * (h * w) + worst
            centre = self.bank.vectors(match.row[at, 0])  # (B, D)
            near = self.bank.search(centre, options.reweight_neighbors, without).row  # (B, b)
            gap = (patches.view(-1, 1, D)[at] - self.bank.vectors(near)).square().sum(2)
            best = length(match.distance[at, 0], options.distance)
            gap = length(gap, options.distance)
            score = score * neighbourhood_weight(options.reweight, best, gap, D)
        return Scored(score, grid.view(B, h, w))


def _finite(scores: Tensor) -> Tensor:
    """Give images without any other image's rows the largest finite score (0 when none is)."""
    finite = torch.isfinite(scores)
    largest = scores[finite].max() if finite.any() else scores.new_zeros(())
    return torch.where(finite, scores, largest)
