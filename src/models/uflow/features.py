"""What stands between the frozen backbone and the flow: normalisation of the feature maps.

U-Flow, official code: maps of convolutional networks go through one LayerNorm over (C, H, W) per
scale; MS-CaiT brings its own. The official LayerNorm is trainable, but its scale has no Jacobian
term, so the likelihood grows without bound while the features shrink (600 steps: scale 1 ->
0.002); hence `layer` here has no parameters, and `layer_affine` is kept for parity only.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.residuals import Moments
from src.models.uflow.flow import Shape


class FeatureNorm(nn.Module):
    """LayerNorm per scale (`FeatureNormKind`), then optionally a fixed affine map per channel.

    `standardise` brings each channel to mean 0 and variance 1 over the training images, an affine
    bijection whose log-determinant is counted. ours: the channels of convolutional networks differ
    in variance by factors of hundreds, and the flow's per-channel scale needs thousands of Adam
    steps to get there. `shapes` are (C, H, W) of each scale, finest first.
    """

    def __init__(self, shapes: Sequence[Shape], kind: str, standardise: bool) -> None:
        super().__init__()
        self.kind, self.standardise = kind, standardise
        affine = shapes if kind == "layer_affine" else ()
        self.layers = nn.ModuleList(nn.LayerNorm(list(shape)) for shape in affine)
        self.pixels = [h * w for _, h, w in shapes]
        for scale, (channels, _, _) in enumerate(shapes if standardise else ()):
            self.register_buffer(f"mean_{scale}", torch.zeros(channels, 1, 1))
            self.register_buffer(f"std_{scale}", torch.ones(channels, 1, 1))
        self.register_buffer("measured", torch.tensor(not standardise), persistent=standardise)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | float]:
        """Maps (B, C, h, w) per scale -> normalised maps, log|det| of the standardisation."""
        normed = [self._layer_norm(x, scale) for scale, x in enumerate(maps)]
        log_det: Tensor | float = 0.0
        for scale, pixels in enumerate(self.pixels if self.standardise else ()):
            std = self.get_buffer(f"std_{scale}")
            normed[scale] = (normed[scale] - self.get_buffer(f"mean_{scale}")) / std
            log_det = log_det - pixels * std.log().sum()
        return normed, log_det

    def _layer_norm(self, x: Tensor, scale: int) -> Tensor:
        if self.kind == "none":
            return x
        if self.kind == "layer_affine":
            return self.layers[scale](x)
        return F.layer_norm(x, x.shape[1:])  # over (C, H, W) of each image, any size

    @torch.no_grad()
    def measure(self, batches: Iterable[Sequence[Tensor]]) -> None:
        """Take channel means and deviations from batches of maps (float64 sums)."""
        moments = [Moments(0, 2, 3) for _ in self.pixels]
        for maps in batches:
            for scale, x in enumerate(maps):
                moments[scale].add(self._layer_norm(x, scale))
        for scale, found in enumerate(moments):
            mean, std = found.result()
            # A channel that never varies must not divide by zero, nor explode in the test.
            floor = 1e-3 * std.square().mean().sqrt().clamp_min(1e-12)
            self.get_buffer(f"mean_{scale}").copy_(mean[:, None, None])
            self.get_buffer(f"std_{scale}").copy_(std.maximum(floor)[:, None, None])
        self.get_buffer("measured").fill_(True)
