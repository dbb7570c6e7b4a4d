"""Pictures of the memory at work: which normal patch each test patch was compared with.

Three products: a figure of one match, an animation over all patches of an image, and the heat maps
of Euclidean and cosine distance side by side. After the study of PatchCore with vision
transformers, which drew them with a complete bank and matplotlib; here the bank remembers where
its rows come from, so that any coreset and any grid can be shown, and frames are drawn with Pillow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from src.files import atomic
from src.reporting import figures
from src.reporting.colour_scale import ColourScale, resize_map
from src.reporting.records import Box, PatchMatch, Picture

_GAP, _LINE = 10, 20  # pixels between panels; height of a line of text
_CONTEXT = 5.0  # side of a crop in units of the patch
_COLOURS = 64  # of an animation: one palette for all frames keeps files small


@dataclass(frozen=True, slots=True)
class MatchGrid:
    """The nearest bank row of every patch of one image, grid (h, w) row by row."""

    display: np.ndarray  # (H, W, 3) uint8, the test image
    distance: np.ndarray  # (h, w) float32
    image: np.ndarray  # (h, w) int, number of the normal image
    place: np.ndarray  # (h, w, 2) int, row and column of the patch in that image
    metric: str  # "euclidean" | "cosine"

    def box(self, row: int, column: int) -> Box:
        """Pixels of a grid cell in a picture of the size of `display`."""
        high = self.display.shape[0] / self.distance.shape[0]
        wide = self.display.shape[1] / self.distance.shape[1]
        top, left = round(row * high), round(column * wide)
        return Box(top, left, round((row + 1) * high), round((column + 1) * wide))


Source = Callable[[int], tuple[str, np.ndarray]]  # image number -> name, (H, W, 3) uint8


def match_at(grid: MatchGrid, row: int, column: int, source: Source) -> PatchMatch:
    """The match of one patch."""
    name, display = source(int(grid.image[row, column]))
    place = grid.place[row, column]
    return PatchMatch(
        distance=float(grid.distance[row, column]),
        metric=grid.metric,
        box=grid.box(row, column),
        source=name,
        source_display=display,
        source_box=grid.box(int(place[0]), int(place[1])),
    )


def match_figure(
    picture: Picture, scale: ColourScale, facts: Sequence[str] = (), side: int = 320
) -> Image.Image:
    """One alarm explained: test image, heat and matched normal image above their two crops.

    Args:
        picture: must have a match.
        scale: of the run.
        facts: lines of text such as the name of the image, the model and its layers.
        side: longer side of each panel in pixels.
    """
    match = picture.match
    if match is None:
        raise ValueError("the picture has no match to draw")
    panels = [
        ("test image", _boxed(picture.display, match.box, side)),
        ("anomaly map", figures.fit_within(figures.overlay(picture, scale), side)),
        (match.source, _boxed(match.source_display, match.source_box, side)),
    ]
    crops = [
        ("most anomalous patch", figures.crop(picture.display, match.box, _CONTEXT, side)),
        (
            "nearest normal patch",
            figures.crop(match.source_display, match.source_box, _CONTEXT, side),
        ),
    ]
    width, height = 3 * (side + _GAP) + _GAP, 2 * (side + _LINE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), figures.PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for place, (title, panel) in enumerate(panels):
        _paste(sheet, draw, (_GAP + place * (side + _GAP), _GAP), title, panel)
    for place, (title, panel) in zip((0, 2), crops, strict=True):
        _paste(sheet, draw, (_GAP + place * (side + _GAP), 2 * _GAP + side + _LINE), title, panel)
    lines = [f"distance {match.distance:.4g} ({match.metric})", *facts]
    for number, text in enumerate(lines):
        at = (side + 2 * _GAP + 8, 3 * _GAP + side + 2 * _LINE + number * _LINE)
        draw.text(at, figures.shorten(text, font, side - 16), figures.INK, font)
    return sheet


def patch_frames(
    grid: MatchGrid, scale: ColourScale, source: Source, side: int, order: Sequence[int]
) -> Iterator[Image.Image]:
    """Frames of an animation: one patch each, test image and heat left, its match right.

    Args:
        grid: matches of all patches.
        scale: of patch distances.
        source: reads normal images; the latest 64 are kept.
        side: longer side of the two pictures in pixels.
        order: flat patch numbers, row by row, in the order they are shown.
    """
    read = lru_cache(maxsize=64)(source)
    height, width = grid.display.shape[:2]
    warm = scale.colours(resize_map(grid.distance, height, width))
    heated = figures.fit_within(figures.blend(grid.display, warm), side)
    small = lru_cache(maxsize=64)(lambda image: figures.fit_within(read(image)[1], side))
    font = ImageFont.load_default(12)
    for flat in order:
        row, column = divmod(int(flat), grid.distance.shape[1])
        match = match_at(grid, row, column, read)
        left, right = heated.copy(), small(int(grid.image[row, column])).copy()
        factor = side / max(height, width)
        for image, box in ((left, match.box), (right, match.source_box)):
            corners = (box.left, box.top, box.right, box.bottom)
            figures.draw_box(image, [factor * value for value in corners])
        yield _frame(left, right, grid.display, match, side, font)


def write_animation(
    path: Path,
    grid: MatchGrid,
    scale: ColourScale,
    source: Source,
    *,
    side: int,
    milliseconds: int,
    step: int = 1,
) -> int:
    """Write an animation over the patches of one image, every `step`-th; returns the frames.

    `.gif` for any viewer, `.webp` for a tenth of the bytes. The file appears only when it is
    complete. Frames of a GIF are reduced to one palette one at a time, so memory holds one byte a
    pixel; a WebP is encoded frame by frame.
    """
    order = range(0, grid.distance.size, step)
    frames = patch_frames(grid, scale, source, side, order)
    options: dict[str, Any] = {"duration": milliseconds, "loop": 0, "save_all": True}
    if path.suffix == ".webp":
        options |= {"format": "WEBP", "quality": 60, "method": 2}
    else:
        palette = _palette(grid, scale, source, side)
        frames = (each.quantize(palette=palette, dither=Image.Dither.NONE) for each in frames)
        options |= {"format": "GIF", "optimize": False}
    first = next(frames)
    with atomic(path) as partial:
        first.save(partial, append_images=frames, **options)
    return len(order)


def heat_pair(
    picture: Picture, maps: Sequence[tuple[str, np.ndarray, ColourScale]], side: int = 380
) -> Image.Image:
    """The picture beside its heat maps, each (title, map (h, w), scale), with colour bars.

    Different distances have different units, so each map has its own scale; they should be
    anchored where equally many patches lie above (see `equal_share`).
    """
    height, width = picture.display.shape[:2]
    panels = [("test image", figures.fit_within(_with_truth(picture, picture.display), side))]
    for title, values, scale in maps:
        warm = scale.colours(resize_map(values, height, width))
        drawn = _with_truth(picture, figures.blend(picture.display, warm))
        panels.append((title, figures.fit_within(drawn, side)))
    sheet = Image.new(
        "RGB", (len(panels) * (side + _GAP) + _GAP, side + 2 * _LINE + 3 * _GAP), figures.PAPER
    )
    draw = ImageDraw.Draw(sheet)
    for place, (title, panel) in enumerate(panels):
        left = _GAP + place * (side + _GAP)
        _paste(sheet, draw, (left, _GAP), title, panel)
        if place:
            bar = figures.colour_bar(maps[place - 1][2], side, _LINE, "equal share")
            sheet.paste(bar, (left, sheet.height - _LINE - _GAP // 2))
    return sheet


def equal_share(values: np.ndarray, other: np.ndarray, scale: ColourScale) -> ColourScale:
    """A scale for `other` (h, w) that calls as many patches hot as `scale` does in `values`.

    A distance that was never calibrated has no threshold; equal shares make two maps comparable.
    """
    hot = int((values > scale.threshold).sum())
    ordered = np.sort(other, axis=None)[::-1]
    anchor = float(ordered[0] if hot == 0 else ordered[min(hot, ordered.size - 1)])
    return ColourScale.fit([other], anchor)


def distance_maps(
    patches: np.ndarray, bank: np.ndarray, chunk: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each patch (h, w, D) to the bank (M, D): Euclidean and cosine, (h, w) float32.

    Cosine is 1 - cos, in 0..2; a vector of length 0 has cosine distance 1 to everything. Memory:
    h * w * chunk floats.
    """
    h, w, D = patches.shape
    flat = patches.reshape(-1, D).astype(np.float32)  # (P, D)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    unit = flat / np.maximum(norms, np.finfo(np.float32).tiny)
    nearest = np.full(len(flat), np.inf, np.float32)
    highest = np.full(len(flat), -np.inf, np.float32)
    for at in range(0, len(bank), chunk):
        rows = bank[at : at + chunk].astype(np.float32)  # (m, D)
        lengths = np.linalg.norm(rows, axis=1)
        squares = norms**2 - 2.0 * (flat @ rows.T) + lengths**2  # (P, m)
        nearest = np.minimum(nearest, squares.min(axis=1))
        cosine = (unit @ rows.T) / np.maximum(lengths, np.finfo(np.float32).tiny)
        highest = np.maximum(highest, cosine.max(axis=1))
    euclidean = np.sqrt(np.maximum(nearest, 0.0))
    return euclidean.reshape(h, w), np.clip(1.0 - highest, 0.0, 2.0).reshape(h, w)


def _frame(
    left: Image.Image,
    right: Image.Image,
    display: np.ndarray,
    match: PatchMatch,
    side: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> Image.Image:
    crop = side // 2
    width, height = 2 * side + 3 * _GAP, side + crop + 2 * _LINE + 3 * _GAP
    sheet = Image.new("RGB", (width, height), figures.PAPER)
    draw = ImageDraw.Draw(sheet)
    titles = ("test", match.source)
    for place, (title, panel) in enumerate(zip(titles, (left, right), strict=True)):
        _paste(sheet, draw, (_GAP + place * (side + _GAP), 2), title, panel)
    top = side + _LINE + 2 * _GAP
    pairs = ((display, match.box), (match.source_display, match.source_box))
    for place, (picture, box) in enumerate(pairs):
        sheet.paste(figures.crop(picture, box, _CONTEXT, crop), (_GAP + place * (side + _GAP), top))
    at = (_GAP + crop + 8, top + 4)
    draw.text(at, f"{match.distance:.3f}\n{match.metric}\ndistance", figures.INK, font)
    return sheet


def _palette(grid: MatchGrid, scale: ColourScale, source: Source, side: int) -> Image.Image:
    """Colours for all frames: from three of them, and the white of the page exactly."""
    flat = [0, int(grid.distance.argmax()), grid.distance.size - 1]
    samples = list(patch_frames(grid, scale, source, side, flat))
    sheet = Image.new("RGB", (samples[0].width, samples[0].height * len(samples)))
    for place, sample in enumerate(samples):
        sheet.paste(sample, (0, place * sample.height))
    palette = sheet.quantize(_COLOURS, method=Image.Quantize.MEDIANCUT)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    # Pillow looks colours up in coarse cells, so no second near-white may remain.
    colours[(colours.min(axis=1) >= 246) | (colours.sum(1) == colours.sum(1).max())] = 255
    palette.putpalette(colours.ravel().tolist())
    return palette


def _boxed(display: np.ndarray, box: Box, side: int) -> Image.Image:
    image = figures.fit_within(display, side)
    factor = side / max(display.shape[:2])
    corners = (box.left, box.top, box.right, box.bottom)
    figures.draw_box(image, [factor * value for value in corners])
    return image


def _with_truth(picture: Picture, display: np.ndarray) -> np.ndarray:
    known = figures.truth(picture)
    if known is None or not known.any():
        return display
    return figures.draw_outline(display, known, figures.TRUTH)


def _paste(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    title: str,
    panel: Image.Image,
) -> None:
    font = ImageFont.load_default(13)
    draw.text((at[0], at[1]), figures.shorten(title, font, panel.width), figures.FAINT, font)
    sheet.paste(panel, (at[0], at[1] + _LINE))
