"""Batch normalisation over the whole batch when several processes share it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed.nn.functional as distributed
from torch import Tensor, nn

from src import processes


class SharedBatchNorm(nn.BatchNorm2d):
    """`BatchNorm2d`; in training its statistics are those of all processes' shares together.

    torch.nn.SyncBatchNorm does this on GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if not self.training or processes.count() == 1:
            return super().forward(x)
        wide = x if x.dtype == torch.float64 else x.float()
        cells = _total(wide.new_tensor(x.numel() // x.shape[1]))
        mean = _total(wide.sum((0, 2, 3))) / cells
        centred = wide - _per_channel(mean)
        variance = _total(centred.square().sum((0, 2, 3))) / cells
        self._remember(mean, variance * cells / (cells - 1))
        scale: Tensor = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * _per_channel(scale) + _per_channel(self.bias)).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, the variance unbiased, as torch does."""
        buffers: Any = (self.running_mean, self.running_var)
        for running, value in zip(buffers, (mean, variance), strict=True):
            running.lerp_(value.to(running.dtype), self.momentum or 0.0)


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]


def _total(values: Tensor) -> Tensor:
    """Sum over all processes, forwards and backwards: what one gives counts in the loss of all."""
    total: Tensor = distributed.all_reduce(values)  # type: ignore[no-untyped-call]
    return total
