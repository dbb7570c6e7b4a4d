"""Patch and image scores from distances to the memory bank (PatchCore Sec. 3.3, Eq. 6 and 7)."""

from collections.abc import Iterable
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from src.models.patchcore.nearest import nearest
from src.models.patchcore.options import Distance, ImageScore, PatchCoreOptions, Reweight

# Ours: the unit of a member is the distance from the median to this quantile of held-out scores.
_IMAGE_QUANTILE, _PATCH_QUANTILE = 0.95, 0.99


class Scored(NamedTuple):
    """Scores of B images."""

    image: Tensor  # (B,)
    grid: Tensor  # (B, h, w) patch scores

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """The scores of several batches, one behind the other."""
        return cls(*(torch.cat(values) for values in zip(*parts, strict=True)))


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


def length(gap: Tensor, distance: Distance) -> Tensor:
    """Squared Euclidean gaps -> distances, or 1 - cosine for vectors of unit length."""
    return gap / 2.0 if distance == Distance.cosine else gap.sqrt()


def patch_score(gap: Tensor, options: PatchCoreOptions) -> Tensor:
    """Squared gaps (Q, k) to the k nearest rows -> patch score (Q,): their mean distance."""
    squared = options.squared and options.distance == Distance.euclidean
    value = gap if squared else length(gap, options.distance)
    return value[:, 0] if value.shape[1] == 1 else value.mean(1)


def image_score(grid: Tensor, options: PatchCoreOptions) -> Tensor:
    """Patch scores (B, P) -> image scores (B,): the largest, or the mean of the largest share."""
    if options.score == ImageScore.max:
        return grid.amax(1)
    k = max(1, int(options.top_share * grid.shape[1]))
    return grid.topk(k, dim=1).values.mean(1)


def neighbourhood_weight(reweight: Reweight, match: Tensor, neighbours: Tensor, dim: int) -> Tensor:
    """Eq. 7: lower the score of a patch whose match lies in a sparse part of the bank.

    w = 1 - exp(d*) / sum over the b rows m nearest to the match of exp(|q - m|), (B,) in [0, 1).
    `match` (B,): distance d* of each image's worst patch q to its match; `neighbours` (B, b):
    distances of q to the rows nearest to the match, the match first; `dim`: D. It depends on the
    scale of the features: near 1 - 1/b for small distances, saturating at 1 for large ones.
    """
    if reweight == Reweight.scaled:
        match, neighbours = match / dim**0.5, neighbours[:, 1:] / dim**0.5
    return -torch.expm1(match - torch.logsumexp(neighbours, 1))


def euclidean_and_cosine(patches: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Both distances (h, w) of each patch (h, w, D) to its nearest row (M, D), for figures.

    Cosine is 1 - cos, in 0..2; a patch of length 0 has cosine distance 1 to everything.
    """
    flat = patches.flatten(0, 1)
    euclidean = nearest(flat, rows, 1).distance.sqrt()
    unit = F.normalize(flat)
    gap = nearest(unit, F.normalize(rows), 1).distance[:, 0]  # |unit|^2 + 1 - 2 cos
    cosine = ((1.0 + gap - unit.square().sum(1)) / 2.0).clamp(0.0, 2.0)
    return euclidean.view(patches.shape[:2]), cosine.view(patches.shape[:2])
