"""One memory of normal patches: filled from feature maps, reduced to a bank, matched.

Held-out scores: a conformal threshold needs scores of normal images that the model has not seen.

* `cross`: the images are dealt into K folds; each fold is scored by a bank whose coreset was
  selected from the other folds, so its images had no part in it. K selections more.
* `leave_one_out`: an image's own rows are skipped when its patches are searched in the one bank.
  That keeps a coreset that was chosen with the image: rows of other images near a skipped row
  were left to it, and scores come out too large (on real sets by 3 to 6 % in the median, and a
  threshold for 10 % false alarms gives under 2 %).
"""

import logging
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import ConfigError
from src.models.patchcore.bank import MemoryBank, cover_places
from src.models.patchcore.coreset import greedy_coreset, select
from src.models.patchcore.foreground import foreground
from src.models.patchcore.options import (
    Backend,
    CoresetMethod,
    Distance,
    HeldOut,
    Normalise,
    PatchCoreOptions,
    Reweight,
)
from src.models.patchcore.patches import PatchEmbedder, fit_normalisation, normalise
from src.models.patchcore.region import Region
from src.models.patchcore.scores import (
    Scored,
    image_score,
    length,
    neighbourhood_weight,
    patch_score,
)
from src.models.patchcore.streaming import FitCost, Rows, StreamingCoreset, patch_origins
from src.processes import leads, whole

log = logging.getLogger(__name__)

_IMAGES = 64  # whose patches are brought to scale together


class PatchMemory(nn.Module):
    """Patch vectors of one backbone, whose maps have `channels`, and their bank.

    `budget_gb`: most memory for patches and coreset; None: no limit.
    """

    basis: Tensor  # of `normalise`, see `fit_normalisation`; empty for none
    radius: Tensor  # (M,) cover radius before each pick; empty unless the selection was greedy

    def __init__(
        self, channels: tuple[int, ...], options: PatchCoreOptions, budget_gb: float | None
    ) -> None:
        super().__init__()
        self.options, self.budget_gb = options, budget_gb
        self.embedder = PatchEmbedder(channels, options)
        self.bank = MemoryBank(options.search)
        self.region = Region()
        for name in ("basis", "radius"):
            self.register_buffer(name, torch.empty(0))
        self._images = 0
        self._grid = (0, 0)  # patches of an image
        self._rows: Rows | StreamingCoreset | None = None
        self._shown: list[Tensor] = []  # (B, h, w) foreground of each batch
        self._tokens: list[Tensor] = []  # (B, C) one vector for each of its images

    # --- filling ------------------------------------------------------------------------------

    def begin(self, images: int) -> None:
        """Expect at most `images` images."""
        self._images, self._rows, self._shown, self._tokens = images, None, [], []

    def add(
        self, maps: list[Tensor], batch: Mapping[str, Tensor], tokens: Tensor | None = None
    ) -> None:
        """Take the feature maps of a batch (B images); the first process takes those of all.

        `tokens` (B, C): what the images are chosen by when only some are remembered.
        """
        raw = self.embedder(maps)
        patches = whole(self.region.cut(raw), batch)  # (B, h, w, D)
        index = whole(batch["index"], batch)
        if self.options.foreground is not None:
            self._shown.append(whole(self._foreground(raw), batch))
        if tokens is not None:
            self._tokens.append(whole(tokens, batch))
        if not leads():
            return
        if self._rows is None:
            self._rows = self._open(patches)
        rows = patches.flatten(0, 2)
        streams = isinstance(self._rows, StreamingCoreset)
        self._rows.add(self.scaled(rows) if streams else rows, patch_origins(index, *self._grid))

    def _open(self, patches: Tensor) -> Rows | StreamingCoreset:
        """Say what will happen, then choose between holding all patches and streaming.

        A stream takes its normalisation from the first batch.
        """
        coreset, cross = self.options.coreset, self.options.held_out == HeldOut.cross
        _, h, w, D = patches.shape
        self._grid, count = (h, w), self._images * h * w
        cost = FitCost.of(count, D, coreset, self.budget_gb, cross)
        plan = f"{self._images:,} images x {h * w:,} patches = {cost.describe()}"
        log.info("PatchCore plan: %s", plan)
        if not cost.streams:
            return Rows(count, patches.flatten(0, 2))
        if self.options.references is not None or self.options.search.window is not None:
            raise ConfigError(
                "References and windows of places need the patches of all images at once.",
                found=f"model.references={self.options.references}, model.search.window="
                f"{self.options.search.window} with {self.budget_gb:g} GB for this memory",
                do=f"allow it {cost.peak_bytes / 1e9:.3g} GB (model.memory_budget_gb), or set both "
                "to null",
            )
        self.fit_basis(patches)
        cost = FitCost.of(count, self.scaled(patches[:1]).shape[3], coreset, self.budget_gb)
        return StreamingCoreset(cost, coreset, self.options.seed, patches.device)

    def finish(self) -> Scored | None:
        """Reduce what was added to the bank.

        Of several grids with one index, the first is the image and the others are turned copies.

        Returns: held-out scores of the training images, not of their copies, in image order; None
            after streaming, when their patches are gone.
        """
        kept, self._rows = self._rows, None
        if isinstance(kept, StreamingCoreset):
            rows, origin = kept.finish()
            self.bank.fill(rows, self.region.origins(origin))
            self.radius = torch.tensor([kept.cover_radius])
            return None
        if kept is None:
            raise RuntimeError("no training images were added")
        grids = kept.values.unflatten(0, (-1, *self._grid))  # type: ignore[no-untyped-call]
        index = kept.origin[:: self._grid[0] * self._grid[1], 0].long()
        order = index.argsort(stable=True)
        if not torch.equal(order, torch.arange(len(index))):
            grids, index = grids[order.to(grids.device)], index[order]
        self.fit_basis(grids)
        grids = self._scaled_in_place(grids)
        tokens = torch.cat(self._tokens)[order.to(grids.device)] if self._tokens else None
        self.radius = self.reduce(self.bank, grids, index, tokens)
        if self.options.search.backend == Backend.ivf:
            error = self.bank.score_error(grids[:64].flatten(1, 2))
            log.info("inverted lists: image scores %.3f %% too high on normal images", 100 * error)
        first = torch.cat([index.new_ones(1), index.diff()]) > 0  # (n,) the images themselves
        if self.options.held_out == HeldOut.cross and first.sum() > 1:
            found = self.cross(grids, index, first, tokens)
        else:
            found = self.held_out(grids[first.to(grids.device)], index[first])
        if not self._shown:
            return found
        return self._hidden(found, torch.cat(self._shown)[order[first].to(grids.device)])

    def reduce(
        self, bank: MemoryBank, grids: Tensor, index: Tensor, tokens: Tensor | None = None
    ) -> Tensor:
        """Fill a bank from the patches (n, h, w, D) of the images with numbers `index` (n,).

        With `tokens` (n, C) only from those images whose tokens cover all others best.

        Returns: the cover radius before each pick, empty unless the selection is greedy.
        """
        if tokens is not None and self.options.references is not None:
            size = max(1, int(self.options.references * len(tokens)))
            cover = greedy_coreset(
                tokens, size, start=self.options.coreset.start, seed=self.options.seed,
                block=self.options.coreset.block,
            ).rows.sort().values  # fmt: skip
            grids, index = grids[cover.to(grids.device)], index[cover]
        n, h, w, D = grids.shape
        features, coreset, radius = grids.reshape(-1, D), self.options.coreset, torch.empty(0)
        origin = self.region.origins(patch_origins(index, h, w))
        if coreset.method == CoresetMethod.none:
            bank.fill(features, origin)
            return radius
        if self.options.search.window is not None:
            rows = cover_places(grids.flatten(1, 2), coreset.size(n))
        else:
            rows, radius, _ = select(features, coreset, self.options.seed)
        bank.fill(features[rows.to(features.device)], origin[rows.to(origin.device)])
        return radius

    def fit_basis(self, grids: Tensor) -> None:
        """Learn `normalise` from raw patches (n, h, w, D) of normal images."""
        kind = self.options.normalise
        if kind != Normalise.none:
            self.basis = fit_normalisation(grids.flatten(0, 2), self.embedder.channels, kind)

    def scaled(self, patches: Tensor) -> Tensor:
        """Raw patches (..., D) of the embedder as they are compared."""
        patches = normalise(patches, self.basis)
        cosine = self.options.distance == Distance.cosine
        return F.normalize(patches, dim=-1) if cosine else patches

    def _scaled_in_place(self, grids: Tensor) -> Tensor:
        """The same of all patches (n, h, w, D), without a second copy of them."""
        width = grids.shape[3]
        for part in torch.split(grids, _IMAGES):
            scaled = self.scaled(part)
            width = scaled.shape[3]
            part[..., :width] = scaled
        return grids[..., :width].contiguous()

    # --- scoring ------------------------------------------------------------------------------

    def patches(self, maps: list[Tensor]) -> Tensor:
        """Patch vectors (B, h, w, D), of a region (B, 1, P, D); unit length for cosine."""
        return self.scaled(self.region.cut(self.embedder(maps)))

    def judge(self, maps: list[Tensor], index: Tensor | None = None) -> Scored:
        """Scores of the images with these maps; with their numbers `index`: without own rows."""
        raw = self.embedder(maps)
        patches = self.scaled(self.region.cut(raw))
        found = self.score(patches) if index is None else self.held_out(patches, index)
        if self.options.foreground is None:
            return found
        return self._hidden(found, self._foreground(raw))

    def _foreground(self, raw: Tensor) -> Tensor:
        """Which of the patches that count show the part, by raw ones (B, h, w, D)."""
        shown = foreground(raw, self.options.foreground or 0.0)
        return self.region.cut(shown[..., None].float())[..., 0]

    def _hidden(self, found: Scored, shown: Tensor) -> Scored:
        """Scores with those of the background (B, h, w) put to 0."""
        grid = found.grid * shown
        return Scored(image_score(grid.flatten(1), self.options), grid)

    def score(
        self, patches: Tensor, without: int | None = None, bank: MemoryBank | None = None
    ) -> Scored:
        """Scores of `patches` (B, h, w, D), in another bank than the memory's own if one is given.

        `without`: the number of an image whose rows are left out.
        """
        B, h, w, D = patches.shape
        bank, options = bank or self.bank, self.options
        match = bank.search(patches.flatten(0, 2), options.neighbors, without)
        grid = patch_score(match.distance, options).view(B, h * w)
        score = image_score(grid, options)
        if options.reweight != Reweight.none:
            at = torch.arange(B, device=grid.device) * (h * w) + grid.argmax(1)
            centre = bank.vectors(match.row[at, 0])  # (B, D)
            near = bank.search(centre, options.reweight_neighbors, without).row  # (B, b)
            gap = (patches.view(-1, 1, D)[at] - bank.vectors(near)).square().sum(2)
            best = length(match.distance[at, 0], options.distance)
            gap = length(gap, options.distance)
            score = score * neighbourhood_weight(options.reweight, best, gap, D)
        return Scored(score, grid.view(B, h, w))

    def cross(
        self,
        grids: Tensor,
        index: Tensor,
        first: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Scored:
        """Scores of n > 1 training images by banks made without their fold.

        Folds are dealt by the seed, the same for every memory. Memory: the patches a second time.

        Args:
            grids: (m, h, w, D) patches of the images and of their turned copies, which belong to
                the fold of their image.
            index: (m,) image of each, ascending.
            first: (m,) bool: the n images themselves, which alone are scored; None: all.
            tokens: (m, C) see `reduce`.
        """
        own = torch.arange(len(index)) if first is None else first.nonzero()[:, 0]
        n, of = len(own), torch.searchsorted(index[own], index)  # (m,) image, 0..n-1
        folds = min(n, self.options.folds or (20 if n < 100 else 10))
        dealt = torch.randperm(n, generator=torch.Generator().manual_seed(self.options.seed))
        image, grid = grids.new_empty(n), grids.new_empty(n, *grids.shape[1:3])
        for fold in range(folds):
            mine = dealt[fold::folds]
            rest = ~torch.isin(of, mine)
            bank = MemoryBank(self.options.search).to(grids.device)
            place = rest.to(grids.device)
            some = None if tokens is None else tokens[place]
            self.reduce(bank, grids[place], index[rest], some)
            for part in torch.split(mine, _IMAGES):
                image[part], grid[part] = self.score(grids[own[part].to(grids.device)], bank=bank)
        return Scored(image, grid)

    def held_out(self, grids: Tensor, index: Tensor) -> Scored:
        """Scores of training images (n, h, w, D), each without its own bank rows; exact."""
        parts = [self.score(grids[i : i + 1], n) for i, n in enumerate(index.tolist())]
        return Scored(*map(_finite, Scored.joined(parts)))


def _finite(scores: Tensor) -> Tensor:
    """Give images without any other image's rows the largest finite score (0 when none is)."""
    finite = torch.isfinite(scores)
    largest = scores[finite].max() if finite.any() else scores.new_zeros(())
    return torch.where(finite, scores, largest)
