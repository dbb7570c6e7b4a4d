"""Pictures of the memory at work: which normal patch each test patch was compared with.

The bank remembers where its rows come from, so that any coreset and any grid can be shown.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from src.files import atomic
from src.reporting import figures
from src.reporting.colour_scale import ColourScale
from src.reporting.figures import Sheet, boxed, crop, fit_within, side_by_side
from src.reporting.records import Box, PatchMatch, Picture

_CONTEXT = 5.0  # side of a crop in units of the patch
_COLOURS = 64  # of an animation: one palette for all frames keeps files small


class MatchGrid(NamedTuple):
    """The nearest bank row of every patch of one image, grid (h, w) row by row."""

    display: np.ndarray  # (H, W, 3) uint8, the test image
    distance: np.ndarray  # (h, w) float32
    image: np.ndarray  # (h, w) int, number of the normal image
    place: np.ndarray  # (h, w, 2) int, row and column of the patch in that image
    metric: str  # "euclidean" | "cosine"

    @property
    def worst(self) -> int:
        """Flat number of the patch farthest from all normal ones."""
        return int(self.distance.argmax())

    def box(self, row: int, column: int) -> Box:
        """Pixels of a grid cell in a picture of the size of `display`."""
        high = self.display.shape[0] / self.distance.shape[0]
        wide = self.display.shape[1] / self.distance.shape[1]
        top, left = round(row * high), round(column * wide)
        return Box(top, left, round((row + 1) * high), round((column + 1) * wide))


Source = Callable[[int], tuple[str, np.ndarray]]  # image number -> name, (H, W, 3) uint8


def match_at(grid: MatchGrid, flat: int, source: Source) -> PatchMatch:
    """The match of one patch, by its flat number."""
    row, column = divmod(flat, grid.distance.shape[1])
    name, display = source(int(grid.image[row, column]))
    return PatchMatch(
        distance=float(grid.distance[row, column]),
        metric=grid.metric,
        box=grid.box(row, column),
        source=name,
        source_display=display,
        source_box=grid.box(*map(int, grid.place[row, column])),
    )


def match_figure(
    picture: Picture, scale: ColourScale, facts: Sequence[str] = (), side: int = 320
) -> Image.Image:
    """An alarm explained: image, heat and normal image above their crops; `facts` are lines."""
    match = picture.match
    if match is None:
        raise ValueError("the picture has no match to draw")
    display, other = picture.display, match.source_display
    text = Sheet(side, side)
    for number, line in enumerate([f"distance {match.distance:.4g} ({match.metric})", *facts]):
        text.write((8, number * 20), line, side - 16, figures.INK, 14)
    panels = [
        ("test image", boxed(display, match.box, side)),
        ("anomaly map", fit_within(figures.overlay(picture, scale), side)),
        (match.source, boxed(other, match.source_box, side)),
        ("most anomalous patch", crop(display, match.box, _CONTEXT, side)),
        ("", text.image),
        ("nearest normal patch", crop(other, match.source_box, _CONTEXT, side)),
    ]
    return side_by_side(panels, 3)


def patch_frames(
    grid: MatchGrid, scale: ColourScale, source: Source, side: int, order: Iterable[int]
) -> Iterator[Image.Image]:
    """A frame a patch: image and heat left, its match right; `order`: their flat numbers."""
    read = lru_cache(maxsize=64)(source)
    small = lru_cache(maxsize=64)(lambda image: fit_within(read(image)[1], side))
    heated = fit_within(figures.heat(grid.distance, scale, grid.display), side)
    factor, half = side / max(grid.display.shape[:2]), side // 2
    for flat in order:
        match = match_at(grid, flat, read)
        test, normal = heated.copy(), small(int(grid.image.flat[flat])).copy()
        figures.draw_box(test, match.box, factor)
        figures.draw_box(normal, match.source_box, factor)
        distance = f"{match.metric} distance {match.distance:.3f}"
        panels = [
            ("test", test),
            (match.source, normal),
            (distance, crop(grid.display, match.box, _CONTEXT, half)),
            ("", crop(match.source_display, match.source_box, _CONTEXT, half)),
        ]
        yield side_by_side(panels, 2)


def write_animation(
    path: Path, grid: MatchGrid, scale: ColourScale, source: Source,
    *, side: int, milliseconds: int, step: int = 1,
) -> int:  # fmt: skip
    """Write an animation over the patches of one image, every `step`-th; returns the frames.

    `.gif` for any viewer, `.webp` for a tenth of the bytes. Frames of a GIF are reduced to one
    palette one at a time, so memory holds one byte a pixel; a WebP is encoded frame by frame.
    """
    order = range(0, grid.distance.size, step)
    frames = patch_frames(grid, scale, source, side, order)
    options: dict[str, Any] = {"duration": milliseconds, "loop": 0, "save_all": True}
    if path.suffix == ".webp":
        options |= {"format": "WEBP", "quality": 60, "method": 2}
    else:
        flat = (0, grid.worst, grid.distance.size - 1)
        palette = _palette(list(patch_frames(grid, scale, source, side, flat)))
        frames = (each.quantize(palette=palette, dither=Image.Dither.NONE) for each in frames)
        options |= {"format": "GIF", "optimize": False}
    first = next(frames)
    with atomic(path) as partial:
        first.save(partial, append_images=frames, **options)
    return len(order)


def _palette(samples: Sequence[Image.Image]) -> Image.Image:
    """Colours for all frames: from some of them, and the white of the page exactly."""
    sheet = Image.fromarray(np.concatenate([np.asarray(sample) for sample in samples]))
    palette = sheet.quantize(_COLOURS, method=Image.Quantize.MEDIANCUT)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    # Pillow looks colours up in coarse cells, so no second near-white may remain.
    colours[(colours.min(axis=1) >= 246) | (colours.sum(1) == colours.sum(1).max())] = 255
    palette.putpalette(colours.ravel().tolist())
    return palette


def heat_pair(
    picture: Picture, maps: Sequence[tuple[str, np.ndarray, ColourScale]], side: int = 380
) -> Image.Image:
    """The picture beside heat maps (title, map (h, w), scale of its own: see `equal_share`)."""
    truth = figures.truth(picture)

    def fitted(panel: np.ndarray) -> Image.Image:
        return fit_within(figures.draw_outline(panel, truth, figures.TRUTH), side)

    panels = [("test image", fitted(picture.display))]
    for title, values, scale in maps:
        bar = figures.colour_bar(scale, side, 22, "equal share")
        panel = fitted(figures.heat(values, scale, picture.display))
        panels.append((title, figures.above(panel, bar)))
    return side_by_side(panels, len(panels))


def equal_share(values: np.ndarray, other: np.ndarray, scale: ColourScale) -> ColourScale:
    """A scale for `other` (h, w) that calls as many patches hot as `scale` does in `values`."""
    hot = int((values > scale.threshold).sum())
    ordered = np.sort(other, axis=None)[::-1]
    return ColourScale.fit([other], float(ordered[min(hot, ordered.size - 1)]))
