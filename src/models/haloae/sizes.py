"""Which image sizes fit the auto-encoder, checked before anything is built."""

from __future__ import annotations

from src.errors import ConfigError
from src.models.haloae.options import FEATURE_STRIDE, HEAD_KERNEL

Grid = tuple[int, int]  # cells
_RIM = HEAD_KERNEL - 1  # cells that the unpadded head convolution takes from each axis


def latent_grid(size: tuple[int, int], block: int) -> Grid:
    """Cells of the map behind the head for images of (H, W) pixels; multiples of `block`.

    Raises:
        ConfigError: a side does not fit; the nearest sides that do are named.
    """
    if any(not is_valid(side, block) for side in size):
        nearby = sorted({n for side in size for n in nearest_valid(side, block)})
        raise ConfigError(
            f"HaloAE needs image sides of 4 (4 + n x {block}) pixels: n blocks of {block} cells "
            "behind the head convolution.",
            found=f"{size[0]} x {size[1]} pixels",
            do=f"set transform.resize to {' or '.join(f'[{n},{n}]' for n in nearby)}, or change "
            "model.attention.block",
        )
    return size[0] // FEATURE_STRIDE - _RIM, size[1] // FEATURE_STRIDE - _RIM


def is_valid(side: int, block: int) -> bool:
    """Whether an image side of so many pixels gives whole blocks."""
    cells = side // FEATURE_STRIDE - _RIM
    return side % FEATURE_STRIDE == 0 and cells > 0 and cells % block == 0


def nearest_valid(side: int, block: int) -> list[int]:
    """The valid sides next to `side`: itself, or the one below and the one above."""
    if is_valid(side, block):
        return [side]
    step = FEATURE_STRIDE * block
    offset = FEATURE_STRIDE * _RIM
    count = (side - offset) // step
    return [offset + n * step for n in (count, count + 1) if n > 0]


def reduced_grids(grid: Grid, block: int) -> list[Grid]:
    """`grid`, its half and a quarter, as multiples of `block`: the next above, then below.

    The published sizes for 256 px: 60 -> 30 -> 36 (up), then 36 -> 18 -> 12 (down).
    """
    half = tuple(-(-side // (2 * block)) * block for side in grid)
    quarter = tuple(max(1, -(-side // 2) // block) * block for side in half)
    return [grid, (half[0], half[1]), (quarter[0], quarter[1])]
