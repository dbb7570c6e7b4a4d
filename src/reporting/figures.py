"""Pictures of single images: overlay, outlines, triptych, contact sheet.

Drawn with NumPy and Pillow, one pass per picture: a triptych of 512 x 512 pixels takes some 20 ms
on one core. Colours are safe for colour-blind readers: the truth is white, the
prediction cyan, heat runs from yellow to purple.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from src.files import atomic
from src.reporting.colour_scale import ColourScale, resize_map, resize_mask
from src.reporting.records import Box, Picture

TRUTH = (255, 255, 255)  # outline of the ground truth
PREDICTION = (0, 229, 255)  # outline of what the model calls defective
INK, PAPER, FAINT = (28, 32, 38), (255, 255, 255), (104, 112, 122)
AGREE, MISSED, SURPLUS = (232, 234, 237), (61, 126, 190), (240, 146, 44)
_GAP, _CAPTION = 8, 22  # pixels between panels and for their headings


def blend(display: np.ndarray, rgba: np.ndarray, opacity: float = 1.0) -> np.ndarray:
    """Lay colours (H, W, 4) uint8 over a picture (H, W, 3) uint8; opacity 0..1 scales them."""
    alpha = rgba[..., 3:].astype(np.float32) * (opacity / 255.0)
    mixed = display.astype(np.float32) * (1.0 - alpha) + rgba[..., :3] * alpha
    return np.rint(mixed).astype(np.uint8)


def heat(picture: Picture, scale: ColourScale) -> np.ndarray:
    """Anomaly map in colours, (H, W, 4) uint8 at the size of the picture."""
    height, width = picture.display.shape[:2]
    return scale.colours(resize_map(picture.anomaly_map, height, width))


def segmentation(picture: Picture, scale: ColourScale) -> np.ndarray:
    """What the model calls defective, (H, W) bool: its own mask, or map > pixel threshold."""
    height, width = picture.display.shape[:2]
    if picture.segmentation is not None:
        return resize_mask(picture.segmentation, height, width)
    return resize_map(picture.anomaly_map, height, width) > scale.threshold


def truth(picture: Picture) -> np.ndarray | None:
    """Ground truth (H, W) bool at the size of the picture, None when it is not known."""
    height, width = picture.display.shape[:2]
    return None if picture.mask is None else resize_mask(picture.mask, height, width)


def outline(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a mask (H, W) that lie within `width` steps of its border, (H, W) bool."""
    core = mask
    for _ in range(width):
        core = _erode(core)
    return mask & ~core


def draw_outline(
    display: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], width: int = 2
) -> np.ndarray:
    """Copy of a picture with the border of a mask in `colour` and a dark line just outside it."""
    drawn = display.copy()
    halo = ~_erode(~mask) & ~mask
    drawn[halo] = (drawn[halo] * 0.35).astype(np.uint8)
    drawn[outline(mask, width)] = colour
    return drawn


def overlay(picture: Picture, scale: ColourScale, opacity: float = 1.0) -> np.ndarray:
    """Picture, heat, predicted and true outline in one image (H, W, 3) uint8."""
    drawn = blend(picture.display, heat(picture, scale), opacity)
    width = max(1, round(min(drawn.shape[:2]) / 256))
    drawn = draw_outline(drawn, segmentation(picture, scale), PREDICTION, width)
    known = truth(picture)
    return drawn if known is None else draw_outline(drawn, known, TRUTH, width)


def agreement(picture: Picture, scale: ColourScale) -> np.ndarray:
    """Truth against prediction, (H, W, 3) uint8: both light, missed blue, surplus orange."""
    found = segmentation(picture, scale)
    known = truth(picture)
    drawn = np.full((*found.shape, 3), INK, dtype=np.uint8)
    if known is None:
        drawn[found] = PREDICTION
        return drawn
    drawn[found & known] = AGREE
    drawn[known & ~found] = MISSED
    drawn[found & ~known] = SURPLUS
    return drawn


def triptych(picture: Picture, scale: ColourScale, caption: str = "") -> Image.Image:
    """Input, overlay, and truth against prediction side by side, with headings and a legend."""
    known = picture.mask is not None
    panels = [picture.display, overlay(picture, scale), agreement(picture, scale)]
    headings = ["input", "anomaly map", "truth and prediction" if known else "prediction"]
    height, width = picture.display.shape[:2]
    sheet = Image.new(
        "RGB", (3 * width + 4 * _GAP, height + 2 * _CAPTION + (_CAPTION if caption else 0)), PAPER
    )
    draw, font = ImageDraw.Draw(sheet), _font(13)
    top = _CAPTION if caption else 0
    if caption:
        draw.text((_GAP, 4), shorten(caption, font, sheet.width - 2 * _GAP), INK, font)
    for column, (panel, heading) in enumerate(zip(panels, headings, strict=True)):
        left = _GAP + column * (width + _GAP)
        draw.text((left, top + 3), shorten(heading, font, width), FAINT, font)
        sheet.paste(Image.fromarray(panel), (left, top + _CAPTION))
    _key(draw, _GAP + 2 * (width + _GAP), sheet.height - _CAPTION + 4, width, known)
    bar = colour_bar(scale, width, _CAPTION - 4)
    sheet.paste(bar, (_GAP + width + _GAP, sheet.height - _CAPTION + 2))
    return sheet


def colour_bar(
    scale: ColourScale, width: int, height: int, anchor: str = "threshold"
) -> Image.Image:
    """Legend of the scale: low, threshold and high values under the colours they have.

    anchor: what the middle of the scale is called.
    """
    low, high = scale.low, scale.high
    if np.isfinite(scale.threshold):
        half = np.linspace(0.0, 1.0, max(2, width // 2))
        values = np.concatenate(
            [
                low + half * (scale.threshold - low),
                scale.threshold + half * (high - scale.threshold),
            ]
        )
    else:
        values = np.linspace(low, high, max(2, width))
    strip = np.broadcast_to(values, (max(2, height // 3), values.size))
    bar = Image.new("RGB", (width, height), PAPER)
    paper = np.full((*strip.shape, 3), 205, dtype=np.uint8)
    bar.paste(Image.fromarray(blend(paper, scale.colours(strip))).resize((width, strip.shape[0])))
    draw, font = ImageDraw.Draw(bar), _font(10)
    middle = f"{anchor} {scale.threshold:.3g}"
    for place, align, text in ((0, "la", f"{low:.3g}"), (width, "ra", f"{high:.3g}")):
        draw.text((place, strip.shape[0] + 1), text, FAINT, font, anchor=align)
    draw.text((width / 2, strip.shape[0] + 1), middle, INK, font, anchor="ma")
    return bar


def contact_sheet(
    tiles: Sequence[np.ndarray], captions: Sequence[str], columns: int = 6, tile_px: int = 200
) -> Image.Image:
    """Pictures (H, W, 3) uint8 on a grid, each fitted into tile_px with a caption below."""
    rows = max(1, -(-len(tiles) // columns))
    cell = tile_px + _GAP
    sheet = Image.new("RGB", (columns * cell + _GAP, rows * (cell + 18) + _GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), _font(11)
    for index, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        left = _GAP + (index % columns) * cell
        top = _GAP + (index // columns) * (cell + 18)
        small = fit_within(tile, tile_px)
        sheet.paste(small, (left + (tile_px - small.width) // 2, top))
        draw.text((left, top + tile_px + 3), shorten(caption, font, tile_px), INK, font)
    return sheet


def fit_within(picture: np.ndarray, side: int) -> Image.Image:
    """A picture (H, W, 3|4) shrunk or enlarged so that its longer side is `side` pixels."""
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)


def crop(picture: np.ndarray, box: Box, context: float, side: int) -> Image.Image:
    """A square around the middle of `box`, enlarged to `side` pixels, with the box drawn.

    context: side of the square in units of the longer side of the box; the square is moved, and
    shrunk if need be, so that it stays inside the picture.
    """
    height, width = picture.shape[:2]
    tall, wide = box.bottom - box.top, box.right - box.left
    length = int(min(max(round(context * max(tall, wide)), 8), height, width))
    top = int(np.clip((box.top + box.bottom - length) // 2, 0, height - length))
    left = int(np.clip((box.left + box.right - length) // 2, 0, width - length))
    view = Image.fromarray(picture[top : top + length, left : left + length])
    view = view.resize((side, side), Image.Resampling.BICUBIC)
    factor = side / length
    corners = (box.left - left, box.top - top, box.right - left, box.bottom - top)
    draw_box(view, [factor * value for value in corners])
    return view


def draw_box(image: Image.Image, corners: Sequence[float], width: int = 2) -> None:
    """A cyan rectangle (left, top, right, bottom) with a dark rim, drawn into the image."""
    left, top, right, bottom = (round(value) for value in corners)
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 1, top - 1, right, bottom), outline=INK, width=width + 2)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=PREDICTION, width=width)


def save_png(image: Image.Image | np.ndarray, path: Path) -> None:
    """Write a PNG; the file appears only when it is complete."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    with atomic(path) as partial:
        picture.save(partial, format="PNG", compress_level=4)


def _erode(mask: np.ndarray) -> np.ndarray:
    """Mask pixels whose four neighbours are all set; what lies outside counts as set."""
    padded = np.pad(mask, 1, constant_values=True)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _key(draw: ImageDraw.ImageDraw, left: int, top: int, width: int, known: bool) -> None:
    """Colour key under the third panel."""
    entries = [(PREDICTION, "predicted")]
    if known:
        entries = [(AGREE, "found"), (MISSED, "missed"), (SURPLUS, "surplus")]
    font, step = _font(11), width // len(entries)
    for index, (colour, text) in enumerate(entries):
        x = left + index * step
        draw.rectangle((x, top + 1, x + 10, top + 11), fill=colour, outline=FAINT)
        draw.text((x + 15, top), shorten(text, font, step - 16), INK, font)


def shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """Text cut at its beginning, where paths are least telling, so that it fits `room` pixels."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength("..." + text) > room:
        text = text[1:]
    return "..." + text if text else ""


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
