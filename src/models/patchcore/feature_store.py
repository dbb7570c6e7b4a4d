"""Where patch vectors wait for the coreset: held once, in image order, on any number of devices."""

from __future__ import annotations

import torch
import torch.distributed as dist
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
        """All patch grids (n, h, w, D) of all processes in image order, and their index (n,).

        A distributed sampler repeats images to give every process the same number; repeats are
        dropped, so the result equals that of a single process. The store is empty afterwards.
        """
        grids, index = self._take()
        if process_count() > 1:
            grids, index = gather_rows(grids), gather_rows(index.to(grids.device)).cpu()
        order = first_of_each(index)
        if not torch.equal(order, torch.arange(len(index))):
            grids, index = grids[order.to(grids.device)], index[order]
        return grids, index

    def _take(self) -> tuple[Tensor, Tensor]:
        if self._grids is None:
            raise RuntimeError("no images were added to the feature store")
        grids, index = self._grids[: self.filled], self._index[: self.filled]
        self._grids, self.filled = None, 0
        return grids, index


def process_count() -> int:
    """Processes that fit together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Number of this process among those that fit together."""
    return dist.get_rank() if process_count() > 1 else 0


def first_of_each(index: Tensor) -> Tensor:
    """Positions of the first occurrence of every value, in ascending order of value."""
    values, order = index.sort(stable=True)
    fresh = torch.ones_like(values, dtype=torch.bool)
    fresh[1:] = values[1:] != values[:-1]
    return order[fresh]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, joined in rank order; each process may hold a different number."""
    world = dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(count) for count in counts)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def patch_origins(index: Tensor, h: int, w: int) -> Tensor:
    """Image, row and column (n*h*w, 3) int32 of every patch of images `index` (n,), row-major."""
    n = len(index)
    origin = torch.empty(n, h, w, 3, dtype=torch.int32)
    origin[..., 0] = index[:, None, None]
    origin[..., 1] = torch.arange(h)[:, None]
    origin[..., 2] = torch.arange(w)
    return origin.view(-1, 3)


def all_processes(rows: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, D) and sources (n, 3) of all processes, every source once."""
    if process_count() == 1:
        return rows, origin
    rows, origin = gather_rows(rows), gather_rows(origin.to(rows.device)).cpu()
    _, source = torch.unique(origin, dim=0, return_inverse=True)
    order = first_of_each(source)
    return rows[order.to(rows.device)], origin[order]
