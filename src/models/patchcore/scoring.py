"""Patch and image scores from distances to the memory bank (PatchCore Sec. 3.3, Eq. 6 and 7)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from src.errors import ConfigError, did_you_mean

DISTANCES = ("euclidean", "cosine")
REWEIGHTS = ("none", "paper", "scaled")


class Scorer(NamedTuple):
    """How distances become scores."""

    distance: str  # euclidean | cosine
    squared: bool  # report squared Euclidean distances, as the official code does
    reweight: str  # none | paper | scaled

    def check(self) -> Scorer:
        """Refuse unknown names.

        Raises:
            ConfigError: an unknown distance or reweighting.
        """
        if self.distance not in DISTANCES:
            raise ConfigError(
                "Unknown model.distance.",
                found=self.distance,
                do=did_you_mean(self.distance, DISTANCES),
            )
        if self.reweight not in REWEIGHTS:
            raise ConfigError(
                "Unknown model.reweight.",
                found=self.reweight,
                do=did_you_mean(self.reweight, REWEIGHTS),
            )
        return self

    def length(self, gap: Tensor) -> Tensor:
        """Squared Euclidean gaps -> distances, or 1 - cosine for vectors of unit length."""
        return gap / 2.0 if self.distance == "cosine" else gap.sqrt()

    def patch(self, gap: Tensor) -> Tensor:
        """Squared gaps (Q, k) to the k nearest rows -> patch score (Q,): their mean distance."""
        value = gap if self.squared and self.distance == "euclidean" else self.length(gap)
        return value[:, 0] if value.shape[1] == 1 else value.mean(1)


def neighbourhood_weight(reweight: str, nearest: Tensor, neighbours: Tensor, dim: int) -> Tensor:
    """Eq. 7: lower the score of a patch whose match lies in a sparse part of the bank.

    w = 1 - exp(d*) / sum over the b rows m nearest to the match of exp(|q - m|).

    Args:
        reweight: `paper`, the sum includes the match, distances as they are; `scaled`, the common
            ports' variant: distances / sqrt(D), the match left out of the sum.
        nearest: (B,) distance d* of each image's worst patch q to its match.
        neighbours: (B, b) distances of q to the rows nearest to the match, the match first.
        dim: D.

    Returns: (B,) in [0, 1). It depends on the scale of the features: near 1 - 1/b for small
        distances, saturating at 1 for large ones.
    """
    if reweight == "scaled":
        nearest, neighbours = nearest / dim**0.5, neighbours[:, 1:] / dim**0.5
    return -torch.expm1(nearest - torch.logsumexp(neighbours, 1))
