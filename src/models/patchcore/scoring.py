"""Patch and image scores from distances to the memory bank (PatchCore Sec. 3.3, Eq. 6 and 7)."""

from __future__ import annotations

import torch
from torch import Tensor

REWEIGHTS = ("none", "paper", "scaled")


def patch_scores(squared_distance: Tensor, squared: bool) -> Tensor:
    """Squared distances (Q, k) to the k nearest rows -> score (Q,): their mean.

    `squared=True` averages squared distances, as the official code reports them; otherwise the
    distances themselves, in feature units.
    """
    distance = squared_distance if squared else squared_distance.sqrt()
    return distance[:, 0] if distance.shape[1] == 1 else distance.mean(1)


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
