"""The products of the synthetic data set: a texture and an object, and how they are drawn.

Shapes are signed distances, a scene is colours and heights, and a simple camera photographs it.
Coordinates are in units of half the picture: the visible square is [-1, 1] x [-1, 1], y downwards.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, shift

Array = np.ndarray
Rng = np.random.Generator
Draw = Callable[[int, Rng, Rng | None], "Scene"]  # side in pixels, variation, fault


@dataclass(frozen=True)
class Canvas:
    """Coordinates of every pixel in the frame of the part, which may lie rotated and shifted."""

    x: Array  # (S, S)
    y: Array  # (S, S)
    pixel: float  # side of a pixel in units


@dataclass
class Scene:
    """What lies in front of the camera, before light falls on it."""

    albedo: Array  # (S, S, 3) in [0, 1]
    height: Array  # (S, S) in units, towards the camera
    part: Array  # (S, S) coverage of the part in [0, 1]; 1 everywhere for textures
    gloss: float  # strength of highlights, 0 matte


def canvas(size: int, angle: float = 0.0, move: tuple[float, float] = (0.0, 0.0)) -> Canvas:
    """Pixel centres of an S x S picture; `angle` in radians, `move` in units."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(axis - move[0], axis - move[1])
    c, s = np.cos(angle), np.sin(angle)
    return Canvas(c * x + s * y, c * y - s * x, 2 / size)


def cover(distance: Array, pixel: float) -> Array:
    """Share of each pixel inside a shape, from its signed distance (negative inside)."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def circle(at: Canvas, cx: float, cy: float, radius: float) -> Array:
    """Signed distance to a circle."""
    return np.hypot(at.x - cx, at.y - cy) - radius


def line(at: Canvas, points: Array) -> tuple[Array, Array]:
    """Distance to a polyline of points (n, 2), and the position 0 to 1 along it."""
    best, along = np.full(at.x.shape, np.inf), np.zeros(at.x.shape)
    count = len(points) - 1
    for i in range(count):
        (ax, ay), (bx, by) = points[i], points[i + 1]
        dx, dy = bx - ax, by - ay
        t = ((at.x - ax) * dx + (at.y - ay) * dy) / max(dx * dx + dy * dy, 1e-12)
        t = np.clip(t, 0, 1)
        distance = np.hypot(at.x - ax - t * dx, at.y - ay - t * dy)
        nearer = distance < best
        best = np.where(nearer, distance, best)
        along = np.where(nearer, (i + t) / count, along)
    return best, along


def noise(rng: Rng, size: int, cell: tuple[float, float] | float) -> Array:
    """Smooth noise (S, S) of mean 0 and deviation about 1; `cell` (y, x) is its grain in units."""
    rows, columns = (cell, cell) if isinstance(cell, float) else cell
    grid = rng.normal(size=(max(2, round(2 / rows)) + 2, max(2, round(2 / columns)) + 2))
    picture = Image.fromarray(grid.astype(np.float32))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC), np.float64) * 1.3


def blend(base: Array, colour: Array | tuple[float, ...], share: Array) -> Array:
    """Lay a colour over an (S, S, 3) picture where share (S, S) is above 0."""
    return base + share[..., None] * (np.asarray(colour) - base)


def photograph(scene: Scene, rng: Rng) -> Array:
    """Uint8 (S, S, 3): light, shadow, lens and sensor, each a little different every time."""
    size, pixel = len(scene.height), 2 / len(scene.height)
    azimuth, elevation = rng.normal(-2.2, 0.15), rng.normal(0.9, 0.04)
    light = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation),
                      np.sin(elevation)])  # fmt: skip
    dy, dx = np.gradient(scene.height, pixel)
    length = np.sqrt(dx * dx + dy * dy + 1)
    towards = (-dx * light[0] - dy * light[1] + light[2]) / length
    half = light + np.array((0, 0, 1))  # halfway between light and camera
    half = half / np.linalg.norm(half)
    mirrored = np.clip((-dx * half[0] - dy * half[1] + half[2]) / length, 0, 1) ** 24
    shade = 0.45 + 0.55 * np.clip(towards, 0, None) / light[2]
    picture = scene.albedo * shade[..., None]
    flat = half[2] ** 24  # what a level surface mirrors, so that gloss changes slopes only
    picture += scene.gloss * (mirrored - flat)[..., None]
    offset = (-light[1] * 0.09 / pixel, -light[0] * 0.09 / pixel)
    shadow = gaussian_filter(shift(scene.part, offset, order=1, mode="nearest"), 0.02 / pixel)
    picture *= (1 - 0.5 * shadow * (1 - scene.part))[..., None]
    # uneven light around 1: a gradient, a vignette and drifting reflections
    at, direction = canvas(size), rng.uniform(0, 2 * np.pi)
    gradient = (np.cos(direction) * at.x + np.sin(direction) * at.y) * rng.uniform(0, 0.14)
    vignette = -0.07 * (at.x**2 + at.y**2)
    uneven = (1 + gradient + vignette + 0.02 * noise(rng, size, 0.7)) * rng.uniform(0.9, 1.08)
    return _expose(picture * uneven[..., None], rng)


def _expose(picture: Array, rng: Rng) -> Array:
    """Lens blur, dust, white balance and sensor noise of a picture in [0, 1]."""
    size = len(picture)
    blur = rng.uniform(0.35, 0.75) * size / 256
    picture = gaussian_filter(picture, (blur, blur, 0))
    picture = picture * (1 + rng.normal(0, 0.012, 3))
    for _ in range(rng.poisson(9)):  # dust on the sensor glass: dark or bright, harmless
        row, column = rng.integers(0, size, 2)
        reach = max(1, round(size / 256 * rng.uniform(0.6, 1.4)))
        area = picture[row : row + reach, column : column + reach]
        area += rng.choice((-1, 1)) * rng.uniform(0.15, 0.5)
    picture = np.clip(picture, 0, 1)
    grain = rng.normal(size=picture.shape) * (0.006 + 0.014 * np.sqrt(picture))
    return np.round(np.clip(picture + grain, 0, 1) * 255).astype(np.uint8)


# --- the products: one good specimen with its natural variation from `rng`; with `fault`, a second
# generator, the same specimen misses a piece of its own kind (a hole, a tooth) -----------------


def plate(size: int, rng: Rng, fault: Rng | None) -> Scene:
    """Brushed perforated steel. Fault: one hole was not punched."""
    at = _pose(size, rng, 0.025, 0.12)
    streaks = noise(rng, size, (0.012, 0.9)) + 0.6 * noise(rng, size, (0.03, 0.4))
    pitch, radius = 0.34, 0.088
    row = np.round(at.y / (pitch * 0.866))
    column = np.round(at.x / pitch - 0.5 * (row % 2))
    dx = at.x - (column + 0.5 * (row % 2)) * pitch
    distance = np.hypot(dx, at.y - row * pitch * 0.866) - radius
    if fault is not None:
        lost_row, lost = fault.integers(-2, 3), fault.integers(-2, 2)
        distance = np.where((row == lost_row) & (column == lost), 0.1, distance)
    hole = cover(distance, at.pixel)
    steel = np.array((0.60, 0.62, 0.64)) * (1 + 0.05 * streaks)[..., None]
    steel *= (1 + 0.03 * noise(rng, size, 0.6))[..., None]
    rim = np.exp(-((distance / 0.018) ** 2))
    height = 0.010 * rim + 0.0015 * streaks - 0.05 * hole
    albedo = blend(steel, (0.07, 0.08, 0.09), hole)
    return Scene(albedo, height, 1 - hole, gloss=0.25)


def gear(size: int, rng: Rng, fault: Rng | None) -> Scene:
    """A turned steel gear at any angle. Fault: a tooth is broken, or a bore was not drilled."""
    at = _pose(size, rng, 0.0, 0.02)
    turn = rng.uniform(0, 2 * np.pi)
    radius, angle = np.hypot(at.x, at.y), np.arctan2(at.y, at.x) + turn
    teeth, bores = 16, 5
    phase = (angle * teeth / (2 * np.pi)) % 1
    tooth = np.clip((0.33 - np.abs(phase - 0.5)) / 0.12, 0, 1)
    number = np.floor(angle * teeth / (2 * np.pi)) % teeth
    drilled = np.ones(bores)
    if fault is not None and fault.random() < 0.7:
        tooth = np.where(number == fault.integers(teeth), tooth * fault.uniform(0, 0.45), tooth)
    elif fault is not None:
        drilled[fault.integers(bores)] = 0
    distance = (radius - (0.63 + 0.115 * tooth)) * 0.8
    for i in range(bores):
        a = 2 * np.pi * i / bores - turn
        bore = circle(at, 0.39 * np.cos(a), 0.39 * np.sin(a), 0.085)
        distance = np.maximum(distance, -bore) if drilled[i] else distance
    dx, dy = np.abs(radius * np.cos(angle) - 0.16) - 0.05, np.abs(radius * np.sin(angle)) - 0.04
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    key = outside + np.minimum(np.maximum(dx, dy), 0)  # a rectangle
    distance = np.maximum(distance, -np.minimum(radius - 0.16, key))
    part = cover(distance, at.pixel)
    rings = np.interp(radius, np.linspace(0, 1.5, 220), rng.normal(size=220))
    turned = (1 + 0.045 * rings + 0.02 * noise(rng, size, 0.3))[..., None]
    steel = np.array((0.60, 0.60, 0.61)) * turned
    anisotropic = 0.10 * np.cos(2 * (np.arctan2(at.y, at.x) + 0.9))  # the bow-tie of turned metal
    steel = steel * (1 + anisotropic * (0.6 + 0.4 * np.clip(radius, 0, 1)))[..., None]
    hub = 0.04 * np.clip((0.27 - radius) / 0.02, 0, 1)
    height = (0.06 * np.clip(-distance / 0.03, 0, 1) + hub) * (part > 0) + 0.0006 * rings * part
    grain = 0.04 * noise(rng, size, 0.012) + 0.03 * noise(rng, size, 0.2)
    bench = np.array((0.20, 0.26, 0.33)) * (1 + grain)[..., None]  # what the gear lies on
    albedo = blend(bench, steel, part)
    return Scene(albedo, height, part, gloss=0.28)


def _pose(size: int, rng: Rng, angle: float, move: float) -> Canvas:
    return canvas(size, rng.normal(0, angle), tuple(rng.normal(0, move, 2)))


#: Products by name.
PARTS: dict[str, Draw] = {"gear": gear, "plate": plate}
