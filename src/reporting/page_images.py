"""The pictures inside report.html, as data URIs in separate layers.

A photo, the heat and the outlines stay separate so that the reader can fade and toggle them. Heat
is smooth and travels at half resolution; the outline, where pixels matter, does not. A 384-pixel
picture with all layers takes about 20 kB and 10 ms of one core, a patch match the same again.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from src.reporting import figures
from src.reporting.colour_scale import ColourScale, resize_map, resize_mask
from src.reporting.records import Box, PatchMatch, Picture

_CROP_PX, _CONTEXT = 160, 5.0  # side of a patch crop; its width in patches
_VIEW_PX = 176  # side of the whole picture beside a crop
_COARSE_PX = 192  # heat is not made smaller than this
_NFA_SPAN = 20.0  # log10 NFA below which all is hottest: one false alarm in 10^20 images


@dataclass(frozen=True, slots=True)
class MatchPanel:
    """Patch-match pictures of one image, as data URIs."""

    distance: float
    metric: str
    source: str
    test_crop: str
    source_crop: str
    test_view: str
    source_view: str


@dataclass(frozen=True, slots=True)
class Layers:
    """Data URIs of one image; None where a layer does not exist."""

    width: int
    height: int
    photo: str
    heat: str
    truth: str | None
    prediction: str | None
    nfa: str | None
    match: MatchPanel | None

    @property
    def size(self) -> int:
        """Bytes in the page."""
        parts = [self.photo, self.heat, self.truth, self.prediction, self.nfa]
        if self.match is not None:
            parts += [self.match.test_crop, self.match.source_crop]
            parts += [self.match.test_view, self.match.source_view]
        return sum(len(part) for part in parts if part)


def encode_layers(picture: Picture, scale: ColourScale, max_side: int) -> Layers:
    """All layers of a picture, shrunk so that its longer side is at most `max_side` pixels."""
    height, width = picture.display.shape[:2]
    factor = min(1.0, max_side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    truth, found = figures.truth(picture), figures.segmentation(picture, scale)
    nfa = None
    if picture.log_nfa is not None:
        nfa = _heat(-picture.log_nfa, size, _nfa_scale())
    return Layers(
        *size,
        photo=webp(_shrink(picture.display, size)),
        heat=_heat(picture.anomaly_map, size, scale),
        truth=_line(truth, size, figures.TRUTH),
        prediction=_line(found, size, figures.PREDICTION),
        nfa=nfa,
        match=None if picture.match is None else _match(picture, picture.match, max_side),
    )


def webp(pixels: np.ndarray, *, lossless: bool = False) -> str:
    """A picture (H, W, 3|4) uint8 as a WebP data URI."""
    stream = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.save(stream, "WEBP", quality=78, method=2, lossless=lossless, alpha_quality=100)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def legend(scale: ColourScale) -> str:
    """The colours of a scale over a grey ground, left low, middle threshold, right high."""
    ends = np.linspace(-1.0, 1.0, 241)
    unit = ColourScale(-1.0, 0.0, 1.0).colours(np.broadcast_to(ends, (12, 241)))
    ground = np.full((12, 241, 3), 190, dtype=np.uint8)
    if scale.threshold == np.inf:  # only the calm half is ever used
        unit[:, 121:] = 0
    return webp(figures.blend(ground, unit), lossless=True)


def _nfa_scale() -> ColourScale:
    """Scale of -log10 NFA: detected above 0; calm where 10 000 false alarms are expected."""
    return ColourScale(low=-4.0, threshold=0.0, high=_NFA_SPAN)


def _heat(values: np.ndarray, size: tuple[int, int], scale: ColourScale) -> str:
    factor = max(0.5, min(1.0, _COARSE_PX / max(size)))
    width, height = (max(1, round(side * factor)) for side in size)
    return webp(scale.colours(resize_map(values, height, width)))


def _shrink(display: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(display).resize(size, Image.Resampling.HAMMING))


def _line(
    mask: np.ndarray | None, size: tuple[int, int], colour: tuple[int, int, int]
) -> str | None:
    """Outline of a mask as a transparent picture, with a dark rim; None for an empty mask."""
    if mask is None or not mask.any():
        return None
    small = resize_mask(mask, size[1], size[0])
    inner = figures.outline(small, max(1, round(min(size) / 256)))
    rim = figures.outline(~small, 1)
    pixels = np.zeros((*small.shape, 4), dtype=np.uint8)
    pixels[rim] = (0, 0, 0, 150)
    pixels[inner] = (*colour, 255)
    return webp(pixels, lossless=True)


def _match(picture: Picture, match: PatchMatch, max_side: int) -> MatchPanel:
    return MatchPanel(
        distance=match.distance,
        metric=match.metric,
        source=match.source,
        test_crop=_crop(picture.display, match.box),
        source_crop=_crop(match.source_display, match.source_box),
        test_view=_view(picture.display, match.box, max_side),
        source_view=_view(match.source_display, match.source_box, max_side),
    )


def _crop(display: np.ndarray, box: Box) -> str:
    return webp(np.asarray(figures.crop(display, box, _CONTEXT, _CROP_PX)))


def _view(display: np.ndarray, box: Box, max_side: int) -> str:
    """The whole picture with the box, small."""
    factor = min(_VIEW_PX, max_side) / max(display.shape[:2])
    size = (max(1, round(factor * display.shape[1])), max(1, round(factor * display.shape[0])))
    image = Image.fromarray(_shrink(display, size))
    middle = (factor * (box.left + box.right) / 2, factor * (box.top + box.bottom) / 2)
    half = max(9.0, factor * (box.bottom - box.top) / 2)  # a smaller box could not be seen
    figures.draw_box(image, [middle[k % 2] + half * (-1 if k < 2 else 1) for k in range(4)])
    return webp(np.asarray(image))
