"""Halo attention: every pixel of a block looks at the block and a rim of `halo` pixels around it.

Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones" (HaloNet,
CVPR 2021), with the sizes of HaloAE (block 12, halo 2, 16 channels a head). Differences:

* HaloAE's released code fills the *real* pixels with minus infinity instead of the padding around
  the image. `mask="correct"` repairs that; `"inverted"` keeps what the release computes, in closed
  form; `"none"` lets queries attend to the zero padding, as HaloNet and timm do.
* Keys and values are projected once per pixel. The release cuts overlapping windows first and
  projects 256 / 144 = 1.78 times as many pixels. The projection has no bias, so zero padding after
  it gives the same result.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.haloae.options import AttentionOptions, Mask

#: Added to the logits of padding keys: its exponential is exactly zero in every float type, and
#: unlike minus infinity it survives the product with the zeros of one-hot positions.
_SUPPRESSED = -1.0e4


class HaloAttention(nn.Module):
    """Multi-head attention of blocks to their windows, with relative positions.

    logit(query (y, x), key (i, j)) = q.k + q.rel_height[i - y + w - 1] + q.rel_width[j - x + w - 1]
    with q scaled by dim_head ** -0.5, y, x in [0, block) and i, j in [0, w), w = block + 2 halo.
    The tables have 2 w - 1 rows like those of the release; their first 2 halo rows are never read.
    Each head has dim_head channels, whatever the `width`, which is the channels of the map.
    """

    def __init__(self, width: int, heads: int, options: AttentionOptions) -> None:
        super().__init__()
        self.heads, self.dim_head = heads, options.dim_head
        self.block, self.halo = options.block, options.halo
        self.window = options.block + 2 * options.halo
        self.mask = options.mask
        inner = heads * options.dim_head
        self.scale = options.dim_head**-0.5
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)  # keys, then values
        self.to_out = nn.Linear(inner, width)
        rows = 2 * self.window - 1
        self.rel_height = nn.Parameter(torch.randn(rows, options.dim_head) * self.scale)
        self.rel_width = nn.Parameter(torch.randn(rows, options.dim_head) * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); H and W are multiples of the block."""
        B, _, H, W = x.shape
        pixels = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        if self.mask == Mask.inverted:
            return self._inverted(pixels).permute(0, 3, 1, 2)
        b, w, d, nH, nW = self.block, self.window, self.dim_head, H // self.block, W // self.block
        q = (self.to_q(pixels) * self.scale).view(B, nH, b, nW, b, self.heads, d)
        q = q.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, self.heads, b * b, d)  # n = B nH nW
        kv = F.pad(self.to_kv(pixels), (0, 0, *(self.halo,) * 4))
        kv = kv.unfold(1, w, b).unfold(2, w, b)  # (B, nH, nW, 2 heads d, w, w), a view
        kv = kv.view(B, nH, nW, 2, self.heads, d, w, w)
        kv = kv.permute(3, 0, 1, 2, 4, 6, 7, 5)  # (2, B, nH, nW, heads, w, w, d)
        k, v = kv.reshape(2, -1, self.heads, w * w, d).unbind(0)  # (n, heads, w², d), zero outside
        rows, columns = self._position_logits(q, nH, nW)  # (n, heads, b², w) each
        # Position logits are appended to q and one-hot positions to k: fused kernels, no bias.
        key, line = torch.arange(w * w, device=k.device), torch.arange(w, device=k.device)
        position = torch.cat((key[:, None] // w == line, key[:, None] % w == line), 1)  # (w², 2 w)
        q = torch.cat((q, rows, columns), -1)  # (n, heads, b², d + 2 w)
        k = torch.cat((k, position.to(k.dtype).expand(*k.shape[:2], -1, -1)), -1)
        v = F.pad(v, (0, 2 * w))  # the fused kernels want equal sizes
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :d]  # (n, heads, b², d)
        out = out.view(B, nH, nW, self.heads, b, b, d).permute(0, 1, 4, 2, 5, 3, 6)
        return self.to_out(out.reshape(B, H, W, self.heads * d)).permute(0, 3, 1, 2)

    def _position_logits(self, q: Tensor, nH: int, nW: int) -> tuple[Tensor, Tensor]:
        """Logits of the key's row and of its column, (n, heads, b², w), for q (n, heads, b², d).

        The padding mask is separable too: a key is padding when its row or its column is.
        """
        q = q.view(*q.shape[:2], self.block, self.block, self.dim_head)
        inside = torch.arange(self.block, device=q.device)
        key = torch.arange(self.window, device=q.device)
        relative = key - inside[:, None] + self.window - 1  # (b, w), from 2 halo to 2 w - 2
        rows = torch.einsum("nhyxd,yid->nhyxi", q, self.rel_height[relative].to(q.dtype))
        columns = torch.einsum("nhyxd,xjd->nhyxj", q, self.rel_width[relative].to(q.dtype))
        if self.mask == Mask.correct:
            above = self._outside(nH, rows)[:, None].expand(nH, nW, -1)
            beside = self._outside(nW, rows)[None].expand(nH, nW, -1)
            rows = _add_per_block(rows, above)
            columns = _add_per_block(columns, beside)
        return rows.flatten(2, 3), columns.flatten(2, 3)

    def _outside(self, count: int, like: Tensor) -> Tensor:
        """(count, w): 0 where a line of a block's window is real, very negative outside."""
        start = torch.arange(count, device=like.device) * self.block - self.halo
        line = start[:, None] + torch.arange(self.window, device=like.device)
        outside = (line < 0) | (line >= count * self.block)
        return outside.to(like.dtype) * _SUPPRESSED

    def _inverted(self, pixels: Tensor) -> Tensor:
        """What the release computes: (B, H, W, C) -> (B, H, W, C).

        With every real key suppressed, a block whose window lies inside the map weighs all keys
        alike, and one at the border attends to zero padding only and returns the output bias.
        """
        inner = self.heads * self.dim_head
        values = F.linear(pixels, self.to_kv.weight[inner:]).permute(0, 3, 1, 2)  # (B, hd, H, W)
        mean = F.avg_pool2d(F.pad(values, (self.halo,) * 4), self.window, self.block)
        nH, nW = mean.shape[-2:]
        interior = (self._outside(nH, mean) == 0).all(1)[:, None] & (
            self._outside(nW, mean) == 0
        ).all(1)
        blocks = self.to_out((mean * interior).permute(0, 2, 3, 1))  # (B, nH, nW, C)
        return blocks.repeat_interleave(self.block, 1).repeat_interleave(self.block, 2)


def _add_per_block(logits: Tensor, offset: Tensor) -> Tensor:
    """Add (nH, nW, w) to (B nH nW, heads, b, b, w), the same for all heads and queries."""
    offset = offset.flatten(0, 1)[:, None, None, None]  # (nH nW, 1, 1, 1, w)
    return (logits.view(-1, offset.shape[0], *logits.shape[1:]) + offset).flatten(0, 1)
