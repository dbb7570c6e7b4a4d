"""Scores of training images as if each had not been there: leave one image out.

A conformal threshold needs scores of normal images that the model has not seen. A memory bank
gives them without a hold-out: an image's own rows are skipped when its patches are searched. Only
the bank is reduced, the coreset is not selected again: an approximation that can only make these
scores larger than those of a truly new image, since other images' rows near a skipped row were
left to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from src.models.patchcore.memory_bank import Match, MemoryBank


def match_other_images(
    bank: MemoryBank, patches: Tensor, image: int, k: int, known: Match | None
) -> Match:
    """The k nearest rows of other images for all patches (P, D) of one training image.

    `known`: the nearest row of each patch when the selection found it already; then only patches
    matched by their own image are searched again. Exact either way.
    """
    if known is None or k > 1:
        return bank.search_without_image(patches, k, image)
    own = (bank.origin[known.row[:, 0], 0] == image) | (known.row[:, 0] < 0)
    missing = own.nonzero()[:, 0]
    if not len(missing):
        return known
    found = bank.search_without_image(patches[missing], 1, image)
    distance, row = known.distance.clone(), known.row.clone()
    distance[missing], row[missing] = found.distance, found.row
    return Match(distance, row)


def replace_infinite(scores: Tensor) -> Tensor:
    """Give images without any other image's rows the largest finite score (0 when none is)."""
    finite = torch.isfinite(scores)
    largest = scores[finite].max() if finite.any() else scores.new_zeros(())
    return torch.where(finite, scores, largest)
