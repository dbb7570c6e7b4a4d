"""Which patches show the part and which its background, from the features of one image alone.

Paper: Damm et al., "AnomalyDINO", WACV 2025, Sec. 3.3 (dammsi/AnomalyDINO, Apache-2.0; written from
a description). The first principal component of DINOv2 tokens tells part from background; the part
is the side above a threshold. A component has no sign of its own: the paper takes the other side
when at most 35 % of the central region would be kept. As in the original, holes are filled along
the list of patches, row by row: a patch has two neighbours in it, not eight. Ours: the component
comes from squared matrices, which every device and graph format has, its largest weight positive.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_BORDER = 0.2  # official: of each side, outside of the central region
_LEAST_KEPT = 0.35  # official: of the central region
_SQUARINGS = 12  # ours: power 4096; components of 0.99 times the variance keep a share of 1e-18


def foreground(tokens: Tensor, threshold: float) -> Tensor:
    """Where the part is, (B, h, w) bool, by raw features (B, h, w, D) in their own unit."""
    B, h, w, _ = tokens.shape
    projected = first_component(tokens.flatten(1, 2)).view(B, h, w)
    rows, columns = (slice(int(n * _BORDER), int(n * (1 - _BORDER))) for n in (h, w))
    centre = (projected[:, rows, columns] > threshold).float().mean((1, 2))
    side = torch.where(centre > _LEAST_KEPT, 1.0, -1.0)
    kept = (projected * side[:, None, None] > threshold).float().view(B, 1, h * w)
    grown = F.max_pool1d(kept, 5, 1, 2)  # dilated by one, and again by the closing
    return (-F.max_pool1d(-grown, 3, 1, 1)).view(B, h, w) > 0


def first_component(vectors: Tensor) -> Tensor:
    """Centred vectors (B, N, D) along the direction of their largest variance, (B, N)."""
    centred = vectors - vectors.mean(1, keepdim=True)
    power = centred.transpose(1, 2) @ centred  # (B, D, D)
    for _ in range(_SQUARINGS):
        power = power / power.norm(dim=(1, 2), keepdim=True).clamp_min(1e-30)
        power = power @ power
    at = power.diagonal(dim1=1, dim2=2).argmax(1)  # the largest weight: a column without rounding
    direction = F.normalize(power[torch.arange(power.shape[0], device=at.device), at], dim=1)
    return (centred @ direction[:, :, None])[..., 0]
