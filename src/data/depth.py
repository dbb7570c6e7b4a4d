"""One scale for deep grey images (12 bit in 16, 32-bit integers): which value is white.

The scale belongs to the data set, not to the image, so that two images of one camera stay
comparable. A run keeps it in its config as `data.bit_depth`, and whatever reads an image for that
run uses it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from src.data.images import deep_peak, image_header, is_deep
from src.data.measured import each
from src.data.samples import Found

_PROBED = 16  # ours: a set of 8-bit images is known by so many headers, spread over the training
_LEAST = 8


def settle_depth(found: Found, wanted: int | str | None) -> tuple[Found, int | None]:
    """The samples with the number of bits that their deep grey images fill.

    Args:
        found: as the lister gives them.
        wanted: the bits, 8 to 32; "auto": the fewest that hold the brightest pixel of the normal
            training images; None: the full range of 16 bits.

    Returns:
        The samples and the bits; None without deep training images: 16 bits if one comes later.
    """
    if wanted == "auto":
        wanted = _bits_of([path for sample in found if sample.split == "train"
                           for path in (sample.image_path, *sample.channel_paths)])  # fmt: skip
    if wanted is None:
        return found, None
    bits = int(wanted)
    return Found((replace(sample, bit_depth=bits) for sample in found), found.findings), bits


def _bits_of(paths: list[Path]) -> int | None:
    """Bits of the brightest pixel; None when the files are not deep."""
    headers, _ = each(paths[:: max(1, len(paths) // _PROBED)], image_header)
    if not any(is_deep(header.mode) for header in headers):
        return None
    peaks, _ = each(paths, deep_peak)  # broken files are named when they are read
    return max([_LEAST, *(peak.bit_length() for peak in peaks)])
