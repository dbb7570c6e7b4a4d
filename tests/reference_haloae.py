"""Slow, obviously correct twins of HaloAE's parts, written from the definitions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.haloae.halo_attention import HaloAttention


def attention_pixel_by_pixel(layer: HaloAttention, x: Tensor) -> Tensor:
    """Correct or absent padding mask, one query at a time: (B, C, H, W) -> same."""
    B, _, H, W = x.shape
    b, halo, w, d = layer.block, layer.halo, layer.window, layer.dim_head
    inner = layer.heads * d
    key_weight, value_weight = layer.to_kv.weight[:inner], layer.to_kv.weight[inner:]
    out = torch.empty_like(x)
    for n in range(B):
        for Y in range(H):
            for X in range(W):
                top, left = Y // b * b - halo, X // b * b - halo
                query = (layer.to_q.weight @ x[n, :, Y, X]) * d**-0.5
                logits, values = [], []
                for ky in range(top, top + w):
                    for kx in range(left, left + w):
                        real = 0 <= ky < H and 0 <= kx < W
                        if not real and layer.mask == "correct":
                            continue
                        pixel = x[n, :, ky, kx] if real else torch.zeros_like(x[n, :, 0, 0])
                        key = key_weight @ pixel
                        height = layer.rel_height[(ky - top) - (Y - top - halo) + w - 1]
                        width = layer.rel_width[(kx - left) - (X - left - halo) + w - 1]
                        logits.append(
                            [
                                query[h * d : h * d + d] @ (key[h * d : h * d + d] + height + width)
                                for h in range(layer.heads)
                            ]
                        )
                        values.append(value_weight @ pixel)
                weight = torch.softmax(torch.stack([torch.stack(row) for row in logits]), 0)
                value = torch.stack(values).view(-1, layer.heads, d)
                mixed = (weight[..., None] * value).sum(0).reshape(-1)
                out[n, :, Y, X] = layer.to_out(mixed)
    return out


def attention_unfold_then_project(
    layer: HaloAttention, x: Tensor, mask: str | None = None
) -> Tensor:
    """The straightforward formulation: cut overlapping windows of the input, then project them.

    With mask "inverted" the real pixels are suppressed, as in the release.
    """
    mask = mask or layer.mask
    B, C, H, W = x.shape
    b, halo, w, d, heads = layer.block, layer.halo, layer.window, layer.dim_head, layer.heads
    nH, nW = H // b, W // b
    queries = F.unfold(x, b, stride=b).view(B, C, b * b, nH * nW).permute(0, 3, 2, 1)
    windows = F.unfold(x, w, padding=halo, stride=b).view(B, C, w * w, nH * nW).permute(0, 3, 2, 1)
    ones = F.unfold(x.new_ones(1, 1, H, W), w, padding=halo, stride=b)  # (1, w², blocks)
    real = ones[0].T.bool()[None, :, None, None]  # (1, blocks, 1, 1, w²)
    q = layer.to_q(queries).view(B, -1, b * b, heads, d).transpose(2, 3) * d**-0.5
    k, v = layer.to_kv(windows).view(B, -1, w * w, 2, heads, d).permute(3, 0, 1, 4, 2, 5)
    index = torch.arange(w)[None] - torch.arange(b)[:, None] + w - 1
    q2 = q.unflatten(3, (b, b))
    rows = torch.einsum("nkhyxd,yid->nkhyxi", q2, layer.rel_height[index])
    columns = torch.einsum("nkhyxd,xjd->nkhyxj", q2, layer.rel_width[index])
    logits = q @ k.transpose(-1, -2)
    logits = logits + (rows[..., :, None] + columns[..., None, :]).flatten(5).flatten(3, 4)
    if mask != "none":
        hidden = real if mask == "inverted" else ~real
        logits = logits.masked_fill(hidden, -torch.finfo(x.dtype).max)
    out = logits.softmax(-1) @ v  # (B, blocks, heads, b², d)
    out = layer.to_out(out.transpose(2, 3).flatten(3))  # (B, blocks, b², C)
    out = out.permute(0, 3, 2, 1).reshape(B, C * b * b, nH * nW)
    return F.fold(out, (H, W), b, stride=b)


def features_by_unfold(maps: list[Tensor], size: int, padded: bool) -> Tensor:
    """Nearest resize of every map to the image size, then the mean of each 4 x 4 patch."""
    parts = []
    for position, tap in enumerate(maps):
        if padded and position < len(maps) - 1:
            tap = F.pad(tap, (1, 1, 1, 1), mode="reflect")
        big = F.interpolate(tap, size=(size, size), mode="nearest")
        patches = F.unfold(big, 4, stride=4).view(*tap.shape[:2], 16, -1)
        parts.append(patches.mean(2).unflatten(2, (size // 4, size // 4)))
    return torch.cat(parts, 1)


def ssim_by_convolution(
    x: Tensor, y: Tensor, window: int = 11, sigma: float = 1.5, border: str = "zero"
) -> Tensor:
    """SSIM map with a depthwise two-dimensional Gaussian, five filterings."""
    half = window // 2
    line = torch.arange(window, dtype=x.dtype) - half
    kernel = torch.exp(-(line**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    C = x.shape[1]
    square = torch.outer(kernel, kernel).expand(C, 1, window, window)

    def smooth(t: Tensor) -> Tensor:
        if border == "reflect":
            t = F.pad(t, (half,) * 4, mode="reflect")
        return F.conv2d(t, square, padding=half if border == "zero" else 0, groups=C)

    mx, my = smooth(x), smooth(y)
    vx, vy = smooth(x * x) - mx**2, smooth(y * y) - my**2
    cov = smooth(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


def weights_by_epoch(epoch: float) -> tuple[float, float, float]:
    """The published curriculum: midpoints and slopes in epochs of a run of 251."""
    raw = [
        end + (start - end) / (1 + math.exp(slope * (epoch - midpoint)))
        for start, end, midpoint, slope in (
            (1.0, 0.4, 40.0, 0.07),
            (-1e-8, 1.2, 75.0, 0.05),
            (-1e-8, 2.0, 150.0, 0.05),
        )
    ]
    total = sum(raw)
    return raw[0] / total, raw[1] / total, raw[2] / total


def live_parameters(channels_in: int, width: int, out: int, heads: int, kernel: int) -> int:
    """Closed form for one bottleneck with 16 channels a head and windows of 16."""
    inner = 16 * heads
    count = channels_in * width + 2 * width + 3 * width * inner + inner * width + width
    count += 2 * 31 * 16 + width * out * kernel**2 + 2 * out
    if channels_in != out:
        count += channels_in * out + 2 * out
    return count


class TransposedBottleneck(nn.Module):
    """A decoder bottleneck with `ConvTranspose2d`, as published, sharing our block's tensors."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.ours = ours

    @staticmethod
    def _transposed(conv: nn.Conv2d, x: Tensor) -> Tensor:
        weight = conv.weight.flip(2, 3).transpose(0, 1)  # (in, out, k, k) of a transposed conv
        return F.conv_transpose2d(x, weight, padding=conv.padding)

    def forward(self, x: Tensor) -> Tensor:
        o = self.ours
        inner = F.relu(o.norm1(self._transposed(o.conv1, x)))
        inner = F.relu(o.attention(inner))
        inner = o.norm2(self._transposed(o.conv2, inner))
        skip = x if o.skip is None else o.skip[1](self._transposed(o.skip[0], x))
        return F.relu(inner + skip)
