"""Find the same picture saved twice, also after resizing, recompression or brightening.

A difference hash (dHash: is each cell darker than its right neighbour?) proposes pairs, a small
grey picture confirms them: parts that are always placed alike hash alike without being copies.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

_ROWS, _COLUMNS, _SIDE = 16, 17, 32
#: Bits of 256 in which copies may differ. ours: JPEG 60 and half size stay below 8.
MAX_BITS = 16
#: Root-mean-square grey levels, after removing the mean, that copies may differ by. ours:
#: recompressed and halved copies reach 0.9, the closest two distinct MVTec bottles 2.1.
MAX_LEVELS = 1.25
#: The same in units of the picture's own contrast, for pictures with hardly any. ours.
MAX_SHARE = 0.2
_CHUNK = 512


def dhash(grey: Image.Image) -> np.ndarray:
    """256 bits of a grey picture, bool (256,)."""
    small = np.asarray(grey.resize((_COLUMNS, _ROWS), Image.Resampling.BOX), np.int16)
    return (small[:, 1:] > small[:, :-1]).reshape(-1)


def thumbnail(grey: Image.Image) -> np.ndarray:
    """Grey levels float32 (1024,) of a 32 x 32 picture, without their mean."""
    small = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32).reshape(-1)
    return small - small.mean()


def near_duplicates(hashes: np.ndarray, thumbnails: np.ndarray) -> Iterator[tuple[int, int]]:
    """Pairs i < j of pictures that are copies of each other.

    hashes bool (n, 256), thumbnails float32 (n, 1024) without their means.
    Memory: 512 * n floats; time n * n / 2 products of 256 numbers.
    """
    signs = np.where(hashes, 1, -1).astype(np.float32)
    contrast = np.sqrt((thumbnails**2).mean(axis=1))
    for start in range(0, len(signs), _CHUNK):
        rows = signs[start : start + _CHUNK]
        bits = (rows.shape[1] - rows @ signs[start:].T) / 2  # (chunk, n - start) Hamming distance
        for a, b in zip(*np.nonzero(bits <= MAX_BITS), strict=True):
            i, j = int(start + a), int(start + b)
            if i >= j:
                continue
            levels = float(np.sqrt(((thumbnails[i] - thumbnails[j]) ** 2).mean()))
            if levels <= min(MAX_LEVELS, MAX_SHARE * float(contrast[i])):
                yield i, j
