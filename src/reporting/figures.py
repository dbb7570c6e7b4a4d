"""Pictures of single images, drawn with NumPy and Pillow, several times quicker than matplotlib.

The truth is white, the prediction cyan, heat runs from yellow to purple: safe for colour-blind
readers.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, binary_erosion

from src.files import atomic
from src.reporting.colour_scale import ColourScale, resize_map, resize_mask
from src.reporting.records import Box, Picture

TRUTH = (255, 255, 255)  # outline of the ground truth
PREDICTION = (0, 229, 255)  # outline of what the model calls defective
INK, PAPER, FAINT = (28, 32, 38), (255, 255, 255), (104, 112, 122)
AGREE, MISSED, SURPLUS = (232, 234, 237), (61, 126, 190), (240, 146, 44)
_GAP, _LINE = 8, 14  # pixels between panels; of a line of a title
_CAPTION = _GAP + _LINE

Colour = tuple[int, int, int]
_font = functools.cache(ImageFont.load_default)


class Sheet:
    """White paper of width x height pixels for pictures and short texts; places are (x, y)."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def write(
        self, at: tuple[float, float], text: str, room: float, colour: Colour = FAINT,
        size: int = 13, anchor: str = "la",
    ) -> None:  # fmt: skip
        """One line of at most `room` pixels; it loses its beginning, where paths tell least."""
        font = _font(size)
        if font.getlength(text) > room:
            while text and font.getlength("..." + text) > room:
                text = text[1:]
            text = "..." + text if text else ""
        self._draw.text(at, text, colour, font, anchor=anchor)


def blend(display: np.ndarray, rgba: np.ndarray) -> np.ndarray:
    """Lay colours (H, W, 4) uint8 over a picture (H, W, 3) uint8."""
    alpha = rgba[..., 3:].astype(np.float32) / 255.0
    mixed = display.astype(np.float32) * (1.0 - alpha) + rgba[..., :3] * alpha
    return np.rint(mixed).astype(np.uint8)


def heat(values: np.ndarray, scale: ColourScale, display: np.ndarray) -> np.ndarray:
    """A map (h, w) in colours over a picture (H, W, 3) uint8, whose size it takes."""
    return blend(display, scale.colours(resize_map(values, *display.shape[:2])))


def segmentation(picture: Picture, scale: ColourScale) -> np.ndarray:
    """What the model calls defective, (H, W) bool: its own mask, or map > pixel threshold."""
    size = picture.display.shape[:2]
    if picture.segmentation is not None:
        return resize_mask(picture.segmentation, *size)
    return resize_map(picture.anomaly_map, *size) > scale.threshold


def truth(picture: Picture) -> np.ndarray | None:
    """Ground truth (H, W) bool at the size of the picture, None when it is not known."""
    return None if picture.mask is None else resize_mask(picture.mask, *picture.display.shape[:2])


def outline(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a mask (H, W) that lie within `width` steps of its border, (H, W) bool."""
    return mask & ~binary_erosion(mask, iterations=width, border_value=1)


def draw_outline(
    display: np.ndarray, mask: np.ndarray | None, colour: Colour, width: int = 2
) -> np.ndarray:
    """Copy of a picture with the border of a mask in `colour` and a dark line just outside it."""
    drawn = display.copy()
    if mask is not None:
        halo = binary_dilation(mask) & ~mask
        drawn[halo] = (drawn[halo] * 0.35).astype(np.uint8)
        drawn[outline(mask, width)] = colour
    return drawn


def overlay(picture: Picture, scale: ColourScale) -> np.ndarray:
    """Picture, heat, predicted and true outline in one image (H, W, 3) uint8."""
    drawn = heat(picture.anomaly_map, scale, picture.display)
    width = max(1, round(min(drawn.shape[:2]) / 256))
    drawn = draw_outline(drawn, segmentation(picture, scale), PREDICTION, width)
    return draw_outline(drawn, truth(picture), TRUTH, width)


def agreement(picture: Picture, scale: ColourScale) -> np.ndarray:
    """Truth against prediction, (H, W, 3) uint8: both light, missed blue, surplus orange."""
    found, known = segmentation(picture, scale), truth(picture)
    drawn = np.full((*found.shape, 3), INK, dtype=np.uint8)
    drawn[found] = PREDICTION if known is None else SURPLUS
    if known is not None:
        drawn[known] = MISSED
        drawn[found & known] = AGREE
    return drawn


def side_by_side(
    panels: Sequence[tuple[str, Image.Image]], columns: int, caption: str = ""
) -> Image.Image:
    """Pictures under their titles of one or more lines, row by row."""
    wide = max((picture.width for _, picture in panels), default=0)
    titles = [title.splitlines() for title, _ in panels]
    title_px = _GAP + _LINE * max(map(len, titles), default=0)
    rows = [range(len(panels))[start : start + columns] for start in range(0, len(panels), columns)]
    high = [max(panels[i][1].height for i in row) + title_px + _GAP for row in rows]
    top = _CAPTION if caption else 0
    sheet = Sheet(columns * (wide + _GAP) + _GAP, top + sum(high))
    sheet.write((_GAP, 4), caption, sheet.image.width - 2 * _GAP, INK)
    for row, height in zip(rows, high, strict=True):
        for column, index in enumerate(row):
            left = _GAP + column * (wide + _GAP)
            for number, line in enumerate(titles[index]):
                sheet.write((left, top + 3 + number * _LINE), line, wide, INK, 11)
            sheet.image.paste(panels[index][1], (left, top + title_px))
        top += height
    return sheet.image


def above(picture: np.ndarray | Image.Image, below: Image.Image) -> Image.Image:
    """One picture above another."""
    first = _image(picture)
    sheet = Sheet(max(first.width, below.width), first.height + 2 + below.height)
    sheet.image.paste(first, (0, 0))
    sheet.image.paste(below, (0, first.height + 2))
    return sheet.image


def triptych(picture: Picture, scale: ColourScale, caption: str = "") -> Image.Image:
    """Input, overlay, and truth against prediction side by side, with headings and a legend."""
    known, width = picture.mask is not None, picture.display.shape[1]
    judged = [(AGREE, "found"), (MISSED, "missed"), (SURPLUS, "surplus")]
    meanings = judged if known else [(PREDICTION, "predicted")]
    legend, step = Sheet(width, _CAPTION), width // len(meanings)
    for place, (colour, text) in enumerate(meanings):
        x = place * step
        ImageDraw.Draw(legend.image).rectangle((x, 5, x + 10, 15), fill=colour, outline=FAINT)
        legend.write((x + 15, 4), text, step - 16, INK, 11)
    bar = colour_bar(scale, width, _CAPTION)
    panels = [
        ("input", _image(picture.display)),
        ("anomaly map", above(overlay(picture, scale), bar)),
        ("truth and prediction" if known else "prediction",
         above(agreement(picture, scale), legend.image)),
    ]  # fmt: skip
    return side_by_side(panels, 3, caption)


def colours_of(scale: ColourScale, width: int, height: int) -> np.ndarray:
    """The colours of a scale over grey, left low, middle threshold, right high: (H, W, 3) uint8."""
    middle = scale.threshold if np.isfinite(scale.threshold) else (scale.low + scale.high) / 2
    places = np.linspace(-1, 1, max(2, width))
    values = np.interp(places, (-1, 0, 1), (scale.low, middle, scale.high))
    rgba = scale.colours(np.broadcast_to(values, (max(2, height), values.size)))
    return blend(np.full((*rgba.shape[:2], 3), 200, dtype=np.uint8), rgba)


def colour_bar(
    scale: ColourScale, width: int, height: int, anchor: str = "threshold"
) -> Image.Image:
    """Legend of the scale: its low, middle (called `anchor`) and high value under their colours."""
    sheet, strip = Sheet(width, height), colours_of(scale, width, height // 3)
    sheet.image.paste(_image(strip), (0, 0))
    y = len(strip) + 1
    sheet.write((0, y), f"{scale.low:.3g}", width, FAINT, 10)
    sheet.write((width, y), f"{scale.high:.3g}", width, FAINT, 10, "ra")
    sheet.write((width / 2, y), f"{anchor} {scale.threshold:.3g}", width, INK, 10, "ma")
    return sheet.image


def contact_sheet(
    tiles: Sequence[np.ndarray], captions: Sequence[str], columns: int = 6, tile_px: int = 200
) -> Image.Image:
    """Pictures (H, W, 3) uint8 on a grid, each fitted into tile_px under its caption."""
    small = [fit_within(tile, tile_px) for tile in tiles]
    return side_by_side(list(zip(captions, small, strict=True)), columns)


def fit_within(picture: np.ndarray, side: int) -> Image.Image:
    """A picture (H, W, 3|4) shrunk or enlarged so that its longer side is `side` pixels."""
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return _image(picture).resize(size, Image.Resampling.LANCZOS)


def boxed(picture: np.ndarray, box: Box, side: int, least: float = 0) -> Image.Image:
    """A picture fitted into `side` pixels with a box drawn at least `least` pixels wide."""
    image = fit_within(picture, side)
    draw_box(image, box, side / max(picture.shape[:2]), least=least)
    return image


def crop(picture: np.ndarray, box: Box, context: float, side: int) -> Image.Image:
    """A square of `context` times `box` around it, `side` pixels wide, with the box drawn."""
    height, width = picture.shape[:2]
    tall, wide = box.bottom - box.top, box.right - box.left
    length = int(min(max(round(context * max(tall, wide)), 8), height, width))
    top = int(np.clip((box.top + box.bottom - length) // 2, 0, height - length))
    left = int(np.clip((box.left + box.right - length) // 2, 0, width - length))
    view = _image(picture[top : top + length, left : left + length])
    view = view.resize((side, side), Image.Resampling.BICUBIC)
    shifted = Box(box.top - top, box.left - left, box.bottom - top, box.right - left)
    draw_box(view, shifted, side / length)
    return view


def draw_box(image: Image.Image, box: Box, factor: float, *, least: float = 0) -> None:
    """Draw a cyan box with a dark rim at `factor` times `box`, at least `least` pixels wide."""
    ends = []
    for low, high in ((box.left, box.right), (box.top, box.bottom)):
        middle, half = factor * (low + high) / 2, max(least, factor * (high - low)) / 2
        ends.append((round(middle - half), round(middle + half)))
    (left, right), (top, bottom) = ends
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 1, top - 1, right, bottom), outline=INK, width=4)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=PREDICTION, width=2)


def save_png(picture: Image.Image | np.ndarray, path: Path, compress_level: int = 4) -> None:
    """Write a PNG; the file appears only when it is complete."""
    with atomic(path) as partial:
        _image(picture).save(partial, format="PNG", compress_level=compress_level)


def _image(picture: Image.Image | np.ndarray) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
