"""Three-way CutPaste: the original, a pasted rectangle and a pasted scar, as one batch on a device.

Li et al., "CutPaste" (CVPR 2021), with the ranges HaloAE took over from an open adaptation. Two
differences, both ours: colour jitter acts on the resized image (a sixteenth of the work at 1024
px), and one random order of the four colour changes serves the whole batch. Every number is drawn
on the CPU from the given generator, so a seed gives the same images on every device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import kornia
import torch
from torch import Tensor

from src.models.haloae.options import CutPasteMode, CutPasteOptions


def seeded_generator(*numbers: int) -> torch.Generator:
    """A CPU generator that depends on every number given.

    Hashed, because torch keeps only 32 bits of a seed and neighbours would share streams.
    """
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4]))


class Pieces(NamedTuple):
    """Where each image is cut and where the piece goes; all (B,), in pixels and degrees."""

    width: Tensor
    height: Tensor
    from_x: Tensor  # left edge of the source
    from_y: Tensor
    centre_x: Tensor  # centre of the target
    centre_y: Tensor
    angle: Tensor  # counter-clockwise


def views(image: Tensor, options: CutPasteOptions, generator: torch.Generator) -> list[Tensor]:
    """Views of RGB images (B, 3, H, W) in [0, 1] for a training step; the jittered original first.

    All views come from one jittered original, so they share their background. Modes: `3way`
    (original, rectangle, scar), `normal` (original, rectangle), `scar` (original, scar), `union`
    (original, one or the other with equal chance).
    """
    original = jitter(image, draw_jitter(len(image), options, generator))
    if options.mode in (CutPasteMode.normal, CutPasteMode.scar):
        return [original, cut_and_paste(original, options.mode, options, generator)]
    both = [cut_and_paste(original, kind, options, generator) for kind in ("normal", "scar")]
    if options.mode == CutPasteMode.union:
        first = torch.rand(len(image), generator=generator) < 0.5
        first = first.to(image.device, non_blocking=True)[:, None, None, None]
        both = [torch.where(first, both[0], both[1])]
    return [original, *both]


def cut_and_paste(
    image: Tensor, mode: str, options: CutPasteOptions, generator: torch.Generator
) -> Tensor:
    """Paste a jittered piece of each image (B, 3, H, W) into itself; mode `normal` or `scar`."""
    draw = draw_rectangles if mode == "normal" else draw_scars
    pieces = draw(len(image), (image.shape[-2], image.shape[-1]), options, generator)
    colours = draw_jitter(len(image), options, generator)
    there = (value.to(image.device, non_blocking=True) for value in pieces)
    return paste(image, Pieces(*there), colours)


def paste(image: Tensor, pieces: Pieces, colours: Jitter | None) -> Tensor:
    """Cut, jitter, rotate and paste, for the whole batch at once.

    Each target pixel looks up where it comes from: the rotation is undone around the centre of the
    target and the nearest source pixel is read. Pixels that come from outside the piece keep the
    original. Memory: a few copies of the batch.
    """
    H, W = image.shape[-2:]
    y = torch.arange(H, device=image.device)[None, :, None] + 0.5  # pixel centres
    x = torch.arange(W, device=image.device)[None, None, :] + 0.5
    p = Pieces(*(value[:, None, None] for value in pieces))
    angle = torch.deg2rad(p.angle)
    dx, dy = x - p.centre_x, y - p.centre_y  # (B, H, W)
    u = torch.floor(torch.cos(angle) * dx - torch.sin(angle) * dy + p.width / 2)
    v = torch.floor(torch.sin(angle) * dx + torch.cos(angle) * dy + p.height / 2)
    inside = (u >= 0) & (u < p.width) & (v >= 0) & (v < p.height)  # (B, H, W)
    column = (p.from_x + u).long().clamp(0, W - 1)
    row = (p.from_y + v).long().clamp(0, H - 1)
    source = (row * W + column).flatten(1)[:, None].expand(-1, 3, -1)  # (B, 3, HW)
    piece = image.flatten(2).gather(2, source).view_as(image)
    piece = jitter(piece, colours, region=inside)
    return torch.where(inside[:, None], piece, image)


# --- draws -------------------------------------------------------------------------------------


def draw_rectangles(
    count: int, size: tuple[int, int], options: CutPasteOptions, generator: torch.Generator
) -> Pieces:
    """Rectangles of a share `area` of the image, aspect log-uniform, both corners uniform."""
    H, W = size
    area = _uniform(count, options.area, generator) * H * W
    extreme = abs(math.log(options.aspect))
    aspect = torch.exp(_uniform(count, (-extreme, extreme), generator))
    width = torch.sqrt(area * aspect).round().clamp(1, W)
    height = torch.sqrt(area / aspect).round().clamp(1, H)
    from_x, from_y = _corner(W - width, generator), _corner(H - height, generator)
    to_x, to_y = _corner(W - width, generator), _corner(H - height, generator)
    angle = torch.zeros(count)
    return Pieces(width, height, from_x, from_y, to_x + width / 2, to_y + height / 2, angle)


def draw_scars(
    count: int, size: tuple[int, int], options: CutPasteOptions, generator: torch.Generator
) -> Pieces:
    """Thin strips, rotated; the rotated box lies inside the image."""
    H, W = size
    width = _uniform(count, options.scar_width, generator).round().clamp(1, W)
    height = _uniform(count, options.scar_height, generator).round().clamp(1, H)
    from_x, from_y = _corner(W - width, generator), _corner(H - height, generator)
    angle = _uniform(count, options.rotation, generator)
    cos, sin = torch.cos(torch.deg2rad(angle)).abs(), torch.sin(torch.deg2rad(angle)).abs()
    box_w = (cos * width + sin * height).ceil().clamp(max=W)
    box_h = (sin * width + cos * height).ceil().clamp(max=H)
    to_x, to_y = _corner(W - box_w, generator), _corner(H - box_h, generator)
    return Pieces(width, height, from_x, from_y, to_x + box_w / 2, to_y + box_h / 2, angle)


class Jitter(NamedTuple):
    """Colour changes of a batch, in the order `order`; factors (B,)."""

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor  # share of the colour circle
    order: tuple[int, ...]


def draw_jitter(count: int, options: CutPasteOptions, generator: torch.Generator) -> Jitter | None:
    """Factors U(1 - s, 1 + s) and hue U(-s, s) for each image; None when jitter is off."""
    s = options.jitter
    if not s:
        return None
    brightness, contrast, saturation = (
        _uniform(count, (1 - s, 1 + s), generator) for _ in range(3)
    )
    hue = _uniform(count, (-s, s), generator)
    order = tuple(torch.randperm(4, generator=generator).tolist())
    return Jitter(brightness, contrast, saturation, hue, order)


def jitter(image: Tensor, colours: Jitter | None, region: Tensor | None = None) -> Tensor:
    """Apply colour changes to (B, 3, H, W) in [0, 1], as Pillow and torchvision define them.

    `region` (B, H, W) bool: the piece whose mean grey is the pivot of contrast; None: all.
    """
    if colours is None:
        return image
    brightness, contrast, saturation, hue = (v.to(image, non_blocking=True) for v in colours[:4])
    enhance = kornia.enhance
    changes = (
        lambda x: enhance.adjust_brightness_accumulative(x, brightness),
        lambda x: _contrast(x, contrast, region),
        lambda x: enhance.adjust_saturation_with_gray_subtraction(x, saturation),
        lambda x: enhance.adjust_hue(x, hue * 2 * math.pi),
    )
    for number in colours.order:
        image = changes[number](image)
    return image


def _contrast(image: Tensor, factor: Tensor, region: Tensor | None) -> Tensor:
    grey = kornia.color.rgb_to_grayscale(image)  # (B, 1, H, W)
    weight = torch.ones_like(grey) if region is None else region[:, None].to(grey)
    cells = weight.sum((1, 2, 3), keepdim=True).clamp(min=1)
    mean = (grey * weight).sum((1, 2, 3), keepdim=True) / cells
    return (mean + (image - mean) * factor[:, None, None, None]).clamp(0, 1)


def _uniform(count: int, limits: Sequence[float], generator: torch.Generator) -> Tensor:
    low, high = limits
    return low + (high - low) * torch.rand(count, generator=generator)


def _corner(room: Tensor, generator: torch.Generator) -> Tensor:
    """A uniform whole number in [0, room]."""
    return torch.floor(torch.rand(len(room), generator=generator) * (room + 1)).clamp(max=room)
