"""Large images through overlapped windows: what is small in the image stays large for the network.

The network sees one window at a time at full resolution, and the parts of its maps are put together
to the map of the whole image, so all that follows works as for one large image.

The split is that of SuperADD (winner of the VAND 4.0 challenge, 2026), written from a description:
every cell stems from one window, the one in which it lies farthest from the border, where the
padding of convolutions and the tokens of transformers are worst.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.backbones.features import FeatureExtractor
from src.errors import ConfigError


class Window(NamedTuple):
    """A window along one axis, in cells of the image."""

    start: int  # first cell it sees
    first: int  # first cell that is kept of it
    end: int  # behind the last one


def split_axis(side: int, window: int, overlap: int) -> list[Window]:
    """Windows that cover `side` >= `window` cells; each cell is kept of one of them.

    `overlap` < `window` / 2: cells that a window gives up at least to each neighbour.
    """
    count = -((window - side) // (window - 2 * overlap)) + 1
    starts = [i * (side - window) // max(1, count - 1) for i in range(count)]
    cuts = [0, *(a + window - (a + window - b) // 2 for a, b in pairwise(starts)), side]
    return [Window(*one) for one in zip(starts, cuts, cuts[1:], strict=False)]


class Windowed(nn.Module):
    """A frozen backbone that sees large images window by window.

    One row of windows at a time, so memory beside the maps does not grow with the height of an
    image. Sides that are no multiple of the coarsest cell are filled up with their last pixel.
    `network`: built for squares of `size` pixels; see `WindowOptions`.
    """

    def __init__(
        self, network: FeatureExtractor, size: int, overlap: int, image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.network, self.size, self.overlap = network, size, overlap
        self.channels, self.reductions = network.channels, network.reductions
        self.cell = max(network.reductions)  # pixels
        whole = size % self.cell == overlap % self.cell == 0
        if not whole or not 0 <= 2 * overlap < size or any(self.cell % r for r in self.reductions):
            raise ConfigError(
                "These windows do not fit the backbone.",
                found=f"model.windows has size={size}, overlap={overlap}; the layers' cells are "
                f"{', '.join(map(str, self.reductions))} pixels",
                do=f"use multiples of {self.cell} with 2 * overlap below size, such as "
                f"size={28 * self.cell} overlap={4 * self.cell}",
            )
        if size > min(image_size):
            raise ConfigError(
                "The windows are larger than the images.",
                found=f"windows of {size} pixels, images seen at {image_size[0]}x{image_size[1]}",
                do="let more of the image be seen (data.view.resize=[height,width] of "
                "data=folder, else transform.resize and transform.crop=null), or set "
                "model.windows.size=null",
            )

    @property
    def identity(self) -> str:
        """That of the network, and the windows."""
        return f"{self.network.identity}+windows{self.size}/{self.overlap}"

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) -> one (B, C, h, w) map per layer, as of the whole image."""
        below, beside = (-side % self.cell for side in image.shape[2:])
        if below or beside:
            image = F.pad(image, (0, beside, 0, below), mode="replicate")
        window, overlap = self.size // self.cell, self.overlap // self.cell
        rows, columns = (split_axis(side // self.cell, window, overlap) for side in image.shape[2:])
        parts = [self._row(image, row, columns) for row in rows]
        return [torch.cat(layer, 2) for layer in zip(*parts, strict=True)]

    def describe(self, image: Tensor) -> Tensor:
        """One vector (B, C) for each image, of the network on the image shrunk to one window."""
        view = F.interpolate(image, size=(self.size,) * 2, mode="bilinear", antialias=True)
        return self.network.describe(view)

    def _row(self, image: Tensor, row: Window, columns: list[Window]) -> list[Tensor]:
        """The kept part of one row of windows of each layer."""
        size, cell = self.size, self.cell
        strip = image[:, :, row.start * cell : row.start * cell + size]
        views = [strip[..., one.start * cell : one.start * cell + size] for one in columns]
        layers = []
        for maps, reduction in zip(self.network(torch.cat(views)), self.reductions, strict=True):
            fine = cell // reduction  # cells of this layer in one of the coarsest
            maps = maps.unflatten(0, (len(columns), -1))[:, :, :, _kept(row, fine)]
            kept = [part[..., _kept(one, fine)] for part, one in zip(maps, columns, strict=True)]
            layers.append(torch.cat(kept, 3))
        return layers


def _kept(window: Window, fine: int) -> slice:
    """What is kept of a window's map that has `fine` cells in one of the coarsest layer."""
    return slice((window.first - window.start) * fine, (window.end - window.start) * fine)
