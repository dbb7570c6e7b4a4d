"""Where patch vectors wait for the coreset: held once, in image order."""

from __future__ import annotations

import torch
from torch import Tensor


class FeatureStore:
    """Patch grids of training images in one buffer, allocated once.

    Args:
        images: most images that will be added.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self.filled = 0
        self._grids: Tensor | None = None  # (images, h, w, D); pages are taken as they fill
        self._index = torch.empty(images, dtype=torch.int64)

    def add(self, patches: Tensor, index: Tensor) -> None:
        """Copy patches (B, h, w, D) of the images `index` (B,) into the buffer."""
        if self._grids is None:
            self._grids = patches.new_empty(self.images, *patches.shape[1:])
        end = self.filled + len(patches)
        self._grids[self.filled : end] = patches
        self._index[self.filled : end] = index.cpu()
        self.filled = end

    def collect(self) -> tuple[Tensor, Tensor]:
        """All patch grids (n, h, w, D) in image order and their index (n,); empty afterwards."""
        if self._grids is None:
            raise RuntimeError("no images were added to the feature store")
        grids, index = self._grids[: self.filled], self._index[: self.filled]
        self._grids, self.filled = None, 0
        order = index.argsort(stable=True)
        if not torch.equal(order, torch.arange(len(index))):
            grids, index = grids[order.to(grids.device)], index[order]
        return grids, index


def patch_origins(index: Tensor, h: int, w: int) -> Tensor:
    """Image, row and column (n*h*w, 3) int32 of every patch of images `index` (n,), row-major."""
    n = len(index)
    origin = torch.empty(n, h, w, 3, dtype=torch.int32)
    origin[..., 0] = index[:, None, None]
    origin[..., 1] = torch.arange(h)[:, None]
    origin[..., 2] = torch.arange(w)
    return origin.view(-1, 3)
