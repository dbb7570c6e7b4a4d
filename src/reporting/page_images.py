"""The pictures inside report.html, as data URIs in layers that the reader can fade and toggle.

A 384-pixel picture with all layers takes about 20 kB and 10 ms of one core, a match the same again.
"""

import base64
import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from src.reporting import figures
from src.reporting.colour_scale import ColourScale, resize_map, resize_mask
from src.reporting.records import PatchMatch, Picture

_CROP_PX, _CONTEXT = 160, 5.0  # side of a patch crop; its width in patches
_VIEW_PX, _LEAST_PX = 176, 18  # side of the whole picture beside a crop; of the box in it
_COARSE_PX = 192  # heat is not made smaller than this
#: Of further maps, which are powers of ten: conspicuous above 0, one image in 10^20 at the hottest.
_EXTRA = ColourScale(low=-4.0, threshold=0.0, high=20.0)


class Layers(NamedTuple):
    """Data URIs of one image; what does not exist is missing."""

    width: int
    height: int
    photo: str
    heat: str
    lines: Mapping[str, str]  # outlines: "prediction", "truth"
    extra: Mapping[str, str]  # further maps of the method, by name
    match: PatchMatch | None
    panels: Mapping[str, str]  # of the match: test_crop, test_view, source_crop, source_view

    @property
    def size(self) -> int:
        """Bytes in the page."""
        groups = (self.lines, self.extra, self.panels)
        parts = [self.photo, self.heat, *(uri for group in groups for uri in group.values())]
        return sum(map(len, parts))


def encode_layers(picture: Picture, scale: ColourScale, max_side: int) -> Layers:
    """All layers of a picture, shrunk so that its longer side is at most `max_side` pixels."""
    side = min(max_side, max(picture.display.shape[:2]))
    photo = figures.fit_within(picture.display, side)
    masks = {
        "prediction": (figures.segmentation(picture, scale), figures.PREDICTION),
        "truth": (figures.truth(picture), figures.TRUTH),
    }
    return Layers(
        *photo.size,
        photo=webp(photo),
        heat=_heat(picture.anomaly_map, photo.size, scale),
        lines={name: _line(mask, photo.size, colour) for name, (mask, colour) in masks.items()
               if mask is not None and mask.any()},
        extra={name: _heat(each, photo.size, _EXTRA) for name, each in picture.extra.items()},
        match=picture.match,
        panels={} if picture.match is None else _panels(picture.display, picture.match, side),
    )  # fmt: skip


def webp(picture: np.ndarray | Image.Image, *, lossless: bool = False, quality: int = 78) -> str:
    """A picture (H, W, 3|4) uint8 as a WebP data URI."""
    stream = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(stream, "WEBP", quality=quality, method=2, lossless=lossless, alpha_quality=100)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _heat(values: np.ndarray, size: tuple[int, int], scale: ColourScale) -> str:
    factor = max(0.5, min(1.0, _COARSE_PX / max(size)))
    width, height = (max(1, round(side * factor)) for side in size)
    return webp(scale.colours(resize_map(values, height, width)))


def _line(mask: np.ndarray, size: tuple[int, int], colour: figures.Colour) -> str:
    """Outline of a mask as a transparent picture, with a dark rim."""
    small = resize_mask(mask, size[1], size[0])
    pixels = np.zeros((*small.shape, 4), dtype=np.uint8)
    pixels[figures.outline(~small, 1)] = (0, 0, 0, 150)
    pixels[figures.outline(small, max(1, round(min(size) / 256)))] = (*colour, 255)
    return webp(pixels, lossless=True)


def _panels(display: np.ndarray, match: PatchMatch, max_side: int) -> dict[str, str]:
    """Both patches of a match, and where each lies in its whole picture."""
    panels = {}
    for name, picture, box in (
        ("test", display, match.box), ("source", match.source_display, match.source_box)
    ):  # fmt: skip
        panels[f"{name}_crop"] = webp(figures.crop(picture, box, _CONTEXT, _CROP_PX))
        whole = figures.boxed(picture, box, min(_VIEW_PX, max_side), least=_LEAST_PX)
        panels[f"{name}_view"] = webp(whole)
    return panels
