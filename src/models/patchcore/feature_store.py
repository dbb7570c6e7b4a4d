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
        self._filled = 0
        self._grids = torch.empty(images, 0)  # (images, h, w, D); pages are taken as they fill
        self._index = torch.empty(images, dtype=torch.int64)

    def add(self, patches: Tensor, index: Tensor) -> None:
        """Copy patches (B, h, w, D) of the images `index` (B,) into the buffer."""
        if not self._filled:
            self._grids = patches.new_empty(len(self._index), *patches.shape[1:])
        place = slice(self._filled, self._filled + len(patches))
        self._grids[place], self._index[place] = patches, index.cpu()
        self._filled = place.stop

    def collect(self) -> tuple[Tensor, Tensor]:
        """All patch grids (n, h, w, D) in image order and their index (n,)."""
        grids, index = self._grids[: self._filled], self._index[: self._filled]
        order = index.argsort(stable=True)
        if not torch.equal(order, torch.arange(len(index))):
            grids, index = grids[order.to(grids.device)], index[order]
        return grids, index


def patch_origins(index: Tensor, h: int, w: int) -> Tensor:
    """Image, row and column (n*h*w, 3) int32 of every patch of images `index` (n,), row-major."""
    place = torch.cartesian_prod(index.cpu(), torch.arange(h), torch.arange(w))
    return place.to(torch.int32)
