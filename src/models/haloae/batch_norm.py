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
        total: Any = distributed.all_reduce  # a sum forwards and backwards: all losses count
        wide = x if x.dtype == torch.float64 else x.float()
        cells = total(wide.new_tensor(x.numel() // x.shape[1]))
        mean = total(wide.sum((0, 2, 3))) / cells
        centred = wide - mean[:, None, None]
        variance = total(centred.square().sum((0, 2, 3))) / cells
        buffers: Any = (self.running_mean, self.running_var)
        with torch.no_grad():  # the running variance is the unbiased one, as torch has it
            for running, value in zip(buffers, (mean, variance * cells / (cells - 1)), strict=True):
                running.lerp_(value.to(running.dtype), self.momentum or 0.0)
        scale: Tensor = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)
