"""Pre-processing as a few matrix products, so that it can live inside an exported model.

Pillow's resize is separable: every output row is a fixed weighted mean of input rows, with integer
weights of 22 bits, which float32 sums would not reproduce (a score moved by 2 % of the spread). So
each weight is split into two halves of 11 bits; sums of their products with 8-bit pixels are whole
numbers below 2^24, where float32 is exact, for windows of up to 32 pixels (bilinear: shrinking 16
times). Running the graph with TF32 products would break this. Outputs are computed in blocks, each
from the inputs that it needs, a tenth of the work of full matrices.
"""

import numpy as np
import torch
from torch import Tensor, nn

from src.data.transforms import ImageTransform
from src.errors import ConfigError

_ONE, _HALF = 2.0**22, 2.0**11  # Pillow's PRECISION_BITS for 8-bit images
_BLOCK = 32  # ours: outputs computed together; 16 to 64 are equally fast
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}


class FixedInput(nn.Module):
    """uint8 RGB images (B, h, w, 3) of one `size` (h, w) -> float32 (B, 3, H, W), normalised."""

    rows: Tensor  # (2, H, h): high and low halves of the weights
    columns: Tensor  # (2, W, w)
    mean: Tensor
    std: Tensor

    def __init__(self, transform: ImageTransform, size: tuple[int, int]) -> None:
        super().__init__()
        if transform.interpolation not in _SUPPORT or not transform.antialias:
            raise ConfigError(
                "Only antialiased bilinear, bicubic and lanczos resizing can be exported.",
                found=f"interpolation={transform.interpolation}, antialias={transform.antialias}",
                do="run again with transform.interpolation=bilinear transform.antialias=true",
            )
        resized, (top, left, height, width) = transform.geometry(size)
        kind = transform.interpolation
        rows = resize_matrix(size[0], resized[0], kind)[top : top + height]  # (H, h)
        columns = resize_matrix(size[1], resized[1], kind)[left : left + width]  # (W, w)
        for name, value in (("rows", rows), ("columns", columns)):
            self.register_buffer(name, torch.from_numpy(np.stack(np.divmod(value, _HALF))))
        self.row_blocks, self.column_blocks = _blocks(rows), _blocks(columns)
        for name, numbers in (("mean", transform.mean), ("std", transform.std)):
            self.register_buffer(name, torch.tensor(numbers).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Resize columns, round to 8 bit, resize rows, round, normalise: Pillow's own order."""
        pixels = image.permute(0, 3, 1, 2).float()  # (B, 3, h, w)
        blocks = self.column_blocks
        parts = [[pixels[..., r] @ half[o, r].T for o, r in blocks] for half in self.columns]
        pixels = _to_grey_levels(*(torch.cat(part, 3) for part in parts))  # (B, 3, h, W)
        blocks = self.row_blocks
        parts = [[half[o, r] @ pixels[:, :, r] for o, r in blocks] for half in self.rows]
        pixels = _to_grey_levels(*(torch.cat(part, 2) for part in parts))  # (B, 3, H, W)
        return (pixels / 255 - self.mean) / self.std


def _blocks(weights: np.ndarray) -> list[tuple[slice, slice]]:
    """Outputs of a resize (out, in) in blocks, each with the inputs that it reads."""
    found = []
    for at in range(0, len(weights), _BLOCK):
        read = np.flatnonzero(weights[at : at + _BLOCK].any(0))
        found.append((slice(at, at + _BLOCK), slice(int(read[0]), int(read[-1]) + 1)))
    return found


def resize_matrix(size_in: int, size_out: int, interpolation: str) -> np.ndarray:
    """Weights (size_out, size_in) of Pillow's antialiased resize along one axis, times 2^22.

    Output pixel i looks at the input around (i + 0.5) * scale with a window that widens with the
    scale when shrinking. Whole numbers as float32; rows sum to 2^22 but for rounding.
    """
    if size_in == size_out:
        return _ONE * np.eye(size_in, dtype=np.float32)
    scale = size_in / size_out
    stretch = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretch
    weights = np.zeros((size_out, size_in))
    for row in range(size_out):
        centre = (row + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), size_in)
        taps = (np.arange(first, last) - centre + 0.5) / stretch
        values = _kernel(np.abs(taps), interpolation)
        weights[row, first:last] = values / values.sum()
    scaled = weights * _ONE
    return np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.float32)


def _kernel(x: np.ndarray, interpolation: str) -> np.ndarray:
    """Pillow's filter functions at distances x."""
    if interpolation == "bilinear":
        return np.maximum(0.0, 1.0 - x)
    if interpolation == "bicubic":  # a = -0.5
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        return np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def _to_grey_levels(high: Tensor, low: Tensor) -> Tensor:
    """(high * 2^11 + low) / 2^22, rounded half up and clipped to 0..255, as Pillow stores it."""
    carried = high + torch.floor(low / _HALF)
    return torch.floor((carried + _HALF / 2) / _HALF).clamp(0, 255)
