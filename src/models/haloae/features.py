"""Block B: frozen multi-scale features on one grid, a quarter of the image side.

From DFR (Shi et al. 2020) by way of HaloAE: every map is resized to the image by nearest neighbour
and averaged over 4 x 4 patches. Both steps are linear and separable, so a map of N rows needs only
`A X A^T` with A (S/4, N): no copy at image size (185 MB an image for VGG19 in the release).
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import ConfigError
from src.models.haloae.options import FEATURE_STRIDE, Alignment
from src.models.residuals import Moments


class MultiScaleFeatures(nn.Module):
    """Maps of a frozen extractor, aligned and concatenated.

    Alignment `clean` averages the maps themselves. `padded` reproduces the release, whose maps, all
    but the last, still carry the mirrored rim of one pixel that the next convolution wanted; it
    stretches them towards the lower right.
    """

    def __init__(self, extractor: nn.Module, alignment: Alignment) -> None:
        super().__init__()
        channels = getattr(extractor, "channels", None)
        if not channels:
            raise ConfigError(
                "HaloAE compares features of a frozen backbone.",
                found="no backbone",
                do="use backbone=vgg19 (the paper's) or backbone=efficientnet_lite0 (offline)",
            )
        self.extractor, self.padded = extractor, alignment == Alignment.padded
        self.channels = sum(channels)
        self.identity = getattr(extractor, "identity", None)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> features (B, C, H/4, W/4) float32, without gradient."""
        return align(self.extractor(image), tuple(image.shape[-2:]), padded=self.padded)


class ChannelScaling(nn.Module):
    """Brings every channel to mean 0 and spread 1 over normal images; at first it changes nothing.

    ours: the published features of VGG19 are taken as they are. Those of other networks can differ
    a hundredfold between channels; the few largest are then all that MSE sees, and the constants of
    SSIM, made for a range of 1, mean nothing.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("spread", torch.ones(channels, 1, 1))

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Mean and standard deviation of features (B, C, h, w) over all batches and cells."""
        mean, spread = (v[:, None, None] for v in Moments(0, 2, 3, over=batches).result())
        dead = spread <= 1e-6 * (1 + mean.abs())  # a channel that says nothing stays as it is
        self.mean.copy_(mean)
        self.spread.copy_(spread.masked_fill(dead, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return (features - self.mean) / self.spread


def align(maps: list[Tensor], size: tuple[int, ...], *, padded: bool) -> Tensor:
    """Maps [(B, C_l, h_l, w_l)] of images of `size` (H, W) -> (B, sum C_l, H/4, W/4)."""
    grid = (size[0] // FEATURE_STRIDE, size[1] // FEATURE_STRIDE)
    aligned = []
    for position, x in enumerate(maps):
        rim = padded and position < len(maps) - 1
        axes = list(zip(x.shape[-2:], grid, strict=True))
        # Plain average pooling gives the same for whole ratios down to 4.
        if not rim and all(n % side == 0 and FEATURE_STRIDE % (n // side) == 0 for n, side in axes):
            aligned.append(F.adaptive_avg_pool2d(x, grid))
        else:
            rows, columns = (alignment_matrix(n, side, x.device, rim=rim) for n, side in axes)
            aligned.append(rows @ x @ columns.T)
    return torch.cat(aligned, 1)


def alignment_matrix(length: int, side: int, device: torch.device, *, rim: bool) -> Tensor:
    """Nearest resize of `length` cells to 4 `side`, then the mean of four: (side, length).

    With `rim` the axis is first mirrored by one cell at both ends (the release's quirk).
    """
    units = torch.eye(length, device=device)[None]
    if rim:
        units = F.pad(units, (1, 1), mode="reflect")
    fine = F.interpolate(units, FEATURE_STRIDE * side, mode="nearest")
    return F.avg_pool1d(fine, FEATURE_STRIDE)[0].T
