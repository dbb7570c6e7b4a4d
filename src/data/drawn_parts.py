"""Six products that the synthetic data set draws: three textures and three objects.

Each function draws one good specimen with its natural variation from `rng`. With `fault`, a
second generator, the same specimen misses a piece of its own kind (a tooth, a thread, a component).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from src.data.drawing import (
    Array,
    Canvas,
    Rng,
    Scene,
    blend,
    box,
    canvas,
    circle,
    cover,
    line,
    noise,
)

Shape = Callable[[Canvas], Array]  # signed distance
Draw = Callable[[int, Rng, Rng | None], Scene]


def _pose(size: int, rng: Rng, angle: float, move: float) -> Canvas:
    return canvas(size, rng.normal(0, angle), tuple(rng.normal(0, move, 2)))


# --- textures -------------------------------------------------------------------------------


def fabric(size: int, rng: Rng, fault: Rng | None) -> Scene:
    """Plain weave of two yarns. Fault: a weft thread is missing over a stretch."""
    at = _pose(size, rng, 0.03, 0.2)
    count = 14.0  # threads per unit
    u = at.x * count + 0.22 * noise(rng, size, 0.4)
    v = at.y * count + 0.22 * noise(rng, size, 0.4)
    warp_on_top = (np.floor(u) + np.floor(v)) % 2 == 0
    along_u, along_v = u % 1 - 0.5, v % 1 - 0.5
    warp = np.sqrt(np.clip(0.25 - along_u**2, 0, None)) * (0.75 + 0.25 * np.cos(np.pi * along_v))
    weft = np.sqrt(np.clip(0.25 - along_v**2, 0, None)) * (0.75 + 0.25 * np.cos(np.pi * along_u))
    if fault is not None:
        row = np.floor(fault.uniform(-0.6, 0.6) * count)
        start, length = fault.uniform(-0.8, 0.2), fault.uniform(0.35, 0.8)
        gone = (np.floor(v) == row) & (at.x > start) & (at.x < start + length)
        weft = np.where(gone, -0.25, weft)
        warp_on_top = warp_on_top | gone
        warp = np.where(gone, warp * 0.7, warp)
    tone = 1 + 0.05 * noise(rng, size, 0.5) + 0.07 * noise(rng, size, 0.025)
    yarns = np.where(warp_on_top[..., None], (0.34, 0.42, 0.55), (0.66, 0.63, 0.55))
    height = np.where(warp_on_top, warp, weft) * 0.9 / count
    depth = 0.55 + 1.3 * np.where(warp_on_top, warp, np.clip(weft, 0, None))
    albedo = yarns * (tone * depth)[..., None]
    return Scene(albedo, height, np.ones_like(height), gloss=0.03)


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


def tiles(size: int, rng: Rng, fault: Rng | None) -> Scene:
    """Glazed mosaic with mortar joints. Fault: one tile has fallen off."""
    at = _pose(size, rng, 0.02, 0.15)
    pitch = 0.44
    column, row = np.floor(at.x / pitch), np.floor(at.y / pitch)
    local = Canvas(at.x - (column + 0.5) * pitch, at.y - (row + 0.5) * pitch, at.pixel)
    distance = box(local, 0, 0, (pitch * 0.455,) * 2, 0.035)
    cell = ((row.astype(int) + 9) * 23 + column.astype(int) + 9) % 441
    tone = (1 + 0.09 * rng.normal(size=441))[cell]
    hue = rng.normal(0, 0.03, (441, 3))[cell]
    glaze = (np.array((0.55, 0.66, 0.68)) + hue) * tone[..., None]
    glaze *= (1 + 0.04 * noise(rng, size, 0.09) + 0.015 * noise(rng, size, 0.02))[..., None]
    mortar = np.array((0.42, 0.40, 0.37)) * (1 + 0.10 * noise(rng, size, 0.015))[..., None]
    mortar *= np.clip(2.2 - noise(rng, size, 0.02), 0.1, 1)[..., None]  # pores
    tile = cover(distance, at.pixel)
    height = 0.028 * np.clip(-distance / 0.035, 0, 1) ** 0.5
    height += 0.0015 * noise(rng, size, 0.12)
    bed = mortar * 0.85 * (1 + 0.10 * np.sin(at.x * 45 + 3 * at.y))[..., None]
    if fault is not None:
        gone = (row == fault.integers(-2, 2)) & (column == fault.integers(-2, 2))
        bare = gone & (distance < 0)
        mortar = np.where(bare[..., None], bed, mortar)
        tile, height = np.where(gone, 0, tile), np.where(bare, -0.01, height)
    albedo = mortar + tile[..., None] * (glaze - mortar)
    return Scene(albedo, height, np.ones_like(height), gloss=0.3)


# --- objects --------------------------------------------------------------------------------


def _bench(size: int, rng: Rng, colour: tuple[float, float, float]) -> Array:
    """The matte surface an object lies on, (S, S, 3)."""
    grain = 0.04 * noise(rng, size, 0.012) + 0.03 * noise(rng, size, 0.2)
    return np.array(colour) * (1 + grain)[..., None]


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
    key = box(Canvas(radius * np.cos(angle), radius * np.sin(angle), at.pixel), 0.16, 0,
              (0.05, 0.04))  # fmt: skip
    distance = np.maximum(distance, -np.minimum(radius - 0.16, key))
    part = cover(distance, at.pixel)
    rings = np.interp(radius, np.linspace(0, 1.5, 220), rng.normal(size=220))
    steel = (
        np.array((0.60, 0.60, 0.61)) * (1 + 0.045 * rings + 0.02 * noise(rng, size, 0.3))[..., None]
    )
    anisotropic = 0.10 * np.cos(2 * (np.arctan2(at.y, at.x) + 0.9))  # the bow-tie of turned metal
    steel = steel * (1 + anisotropic * (0.6 + 0.4 * np.clip(radius, 0, 1)))[..., None]
    hub = 0.04 * np.clip((0.27 - radius) / 0.02, 0, 1)
    height = (0.06 * np.clip(-distance / 0.03, 0, 1) + hub) * (part > 0) + 0.0006 * rings * part
    albedo = blend(_bench(size, rng, (0.20, 0.26, 0.33)), steel, part)
    return Scene(albedo, height, part, gloss=0.28)


def tablet(size: int, rng: Rng, fault: Rng | None) -> Scene:
    """A coated tablet with score line and speckles. Fault: a piece broke off its edge."""
    at = _pose(size, rng, 0.5, 0.03)
    a, b = 0.66, 0.44
    q = np.hypot(at.x / a, at.y / b)
    slope = np.hypot(at.x / a**2, at.y / b**2) / np.maximum(q, 1e-6)
    distance = (q - 1) / np.maximum(slope, 1e-6)
    chip = np.zeros_like(q)
    if fault is not None:
        angle, rough = fault.uniform(0, 2 * np.pi), noise(fault, size, 0.06)
        centre = (a * np.cos(angle) * 1.02, b * np.sin(angle) * 1.02)
        bite = circle(at, *centre, fault.uniform(0.12, 0.19)) + 0.012 * rough
        chip = cover(bite, at.pixel)
        distance = np.maximum(distance, np.where(bite < -0.06, -bite - 0.06, -1))
    part = cover(distance, at.pixel)
    dome = np.sqrt(np.clip(1 - q**2.6, 0, 1))
    groove = np.exp(-((at.x / 0.022) ** 2)) * (np.abs(at.y) < b * 0.94)
    height = 0.20 * dome - 0.035 * groove * (q < 0.97) - 0.07 * chip * part
    coat = np.array((0.80, 0.76, 0.68)) * (1 + 0.015 * noise(rng, size, 0.05))[..., None]
    speckle = np.clip(noise(rng, size, 0.022) - 1.75, 0, 0.5)
    coat = blend(coat, (0.70, 0.36, 0.28), speckle)
    core = np.array((0.66, 0.60, 0.50)) * (1 + 0.10 * noise(rng, size, 0.02))[..., None]
    coat = blend(coat, core, chip)
    albedo = blend(_bench(size, rng, (0.16, 0.22, 0.25)), coat, part)
    return Scene(albedo, height * (part > 0), part, gloss=0.12)


#: x, y, half width, half height of the components of the board: large chips, then small ones.
_CHIPS = ((-0.36, -0.30, 0.24, 0.24), (0.40, 0.36, 0.20, 0.14))
_SMALL = ((0.18, -0.58, 0), (0.44, -0.58, 0), (0.18, -0.36, 0), (0.44, -0.36, 0), (0.70, -0.47, 1),
          (-0.62, 0.30, 1), (-0.40, 0.30, 1), (-0.18, 0.30, 1), (-0.62, 0.60, 0), (-0.30, 0.60, 0),
          (0.74, 0.10, 1), (0.02, 0.62, 1))  # fmt: skip


def board(size: int, rng: Rng, fault: Rng | None) -> Scene:
    """A populated circuit board. Fault: a small component is missing or stands askew."""
    at = _pose(size, rng, 0.03, 0.03)
    green = np.array((0.07, 0.30, 0.20)) * (1 + 0.04 * noise(rng, size, 0.02))[..., None]
    scene = Scene(green, np.zeros((size, size)), np.ones((size, size)), gloss=0.18)
    _traces(scene, at)
    victim, askew = -1, 0.0
    if fault is not None:
        victim = int(fault.integers(len(_SMALL)))
        askew = float(fault.uniform(0.45, 0.8)) if fault.random() < 0.5 else 0.0
    for x, y, w, h in _CHIPS:
        _chip(scene, at, (x, y), (w, h))
    for i, (x, y, upright) in enumerate(_SMALL):
        turn = np.pi / 2 * upright
        _pads(scene, at, (x, y), turn)
        colour = (0.60, 0.45, 0.28) if i % 3 == 0 else (0.15, 0.14, 0.15)
        shade, dx, dy, lean = rng.normal((1, 0, 0, 0), (0.06, 0.006, 0.006, 0.03))
        if i != victim or askew:
            turn += lean + (askew if i == victim else 0)
            _component(scene, at, (x + dx, y + dy), turn, tuple(shade * c for c in colour))
    return scene


def _lay(scene: Scene, at: Canvas, shape: Shape, reach: tuple[float, float, float],
         colour: tuple[float, ...], rise: float) -> None:  # fmt: skip
    """Put a shape of one colour and height on the scene, where `reach` (x, y, half side) allows."""
    x, y, half = reach
    near = (np.abs(at.x - x) < half) & (np.abs(at.y - y) < half)
    rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
    if not len(rows):
        return
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    distance = shape(Canvas(at.x[part], at.y[part], at.pixel))
    scene.albedo[part] = blend(scene.albedo[part], colour, cover(distance, at.pixel))
    raised = rise * np.clip(-distance / 0.015, 0, 1)
    scene.height[part] = np.maximum(scene.height[part], raised)


def _traces(scene: Scene, at: Canvas) -> None:
    """Copper under the mask: fixed wiring with mitred bends, and plated holes."""
    plan = np.random.default_rng(20)  # the wiring diagram is the product, not a variation
    for i in range(26):
        x, y = plan.uniform(-0.9, 0.9, 2)
        dx, dy = plan.choice((-1, 1), 2) * plan.uniform(0.15, 0.5, 2)
        bend = np.array(
            [(x, y), (x + dx, y), (x + dx + dy / 2, y + dy / 2), (x + dx + dy / 2, y + dy)]
        )
        centre = (bend.min(0) + bend.max(0)) / 2
        reach = (*centre, float((bend.max(0) - bend.min(0)).max()) / 2 + 0.03)

        def wire(c: Canvas, bend: Array = bend) -> Array:
            return line(c, bend)[0] - 0.012

        _lay(scene, at, wire, reach, (0.13, 0.42, 0.28), 0.006)
        for end in (bend[0], bend[-1]) if i % 3 == 0 else ():
            _disc(scene, at, end, 0.032, (0.70, 0.62, 0.36), 0.008)
            _disc(scene, at, end, 0.014, (0.06, 0.08, 0.07), 0.0)


def _disc(scene: Scene, at: Canvas, centre: Array | tuple[float, float], radius: float,
          colour: tuple[float, ...], rise: float) -> None:  # fmt: skip
    x, y = centre
    _lay(scene, at, lambda c: circle(c, x, y, radius), (x, y, radius + 0.03), colour, rise)


def _chip(scene: Scene, at: Canvas, centre: tuple[float, float], half: tuple[float, float]) -> None:
    """A black package with legs on two sides, a dot at leg one and printed lines."""
    (x, y), (w, h) = centre, half
    for i in range(7):
        px = x + (i - 3) * w / 3.6
        for side in (-1, 1):
            _bar(scene, at, (px, y + side * (h + 0.03)), (0.017, 0.045), (0.72, 0.72, 0.70), 0.02)
    _bar(scene, at, centre, half, (0.10, 0.10, 0.11), 0.07, corner=0.02)
    _disc(scene, at, (x - w * 0.72, y - h * 0.68), 0.022, (0.30, 0.30, 0.30), 0.0)
    for i in range(3):
        stroke = (w * (0.55 - 0.12 * i), 0.010)
        _bar(scene, at, (x + 0.02, y + (i - 0.6) * 0.06), stroke, (0.42, 0.42, 0.40), 0.0)


def _bar(scene: Scene, at: Canvas, centre: tuple[float, float], half: tuple[float, float],
         colour: tuple[float, ...], rise: float, corner: float = 0.0) -> None:  # fmt: skip
    x, y = centre
    reach = (x, y, max(half) + 0.03)
    _lay(scene, at, lambda c: box(c, x, y, half, corner), reach, colour, rise)


def _pads(scene: Scene, at: Canvas, centre: tuple[float, float], turn: float) -> None:
    """The two soldering pads and the white frame printed around them."""
    reach = (*centre, 0.17)

    def frame(c: Canvas) -> Array:
        return np.abs(box(_turned(c, centre, turn), 0, 0, (0.125, 0.072))) - 0.006

    _lay(scene, at, frame, reach, (0.74, 0.78, 0.74), 0.0)
    for side in (-0.07, 0.07):

        def pad(c: Canvas, side: float = side) -> Array:
            return box(_turned(c, centre, turn), side, 0, (0.035, 0.045), 0.01)

        _lay(scene, at, pad, reach, (0.66, 0.64, 0.58), 0.01)


def _component(scene: Scene, at: Canvas, centre: tuple[float, float], turn: float,
               colour: tuple[float, ...]) -> None:  # fmt: skip
    """A resistor or capacitor with metal ends."""
    reach = (*centre, 0.14)

    def ends(c: Canvas) -> Array:
        return box(_turned(c, centre, turn), 0, 0, (0.088, 0.042), 0.008)

    def body(c: Canvas) -> Array:
        return box(_turned(c, centre, turn), 0, 0, (0.058, 0.042))

    _lay(scene, at, ends, reach, (0.78, 0.78, 0.77), 0.045)
    _lay(scene, at, body, reach, colour, 0.047)


def _turned(at: Canvas, centre: tuple[float, float], turn: float) -> Canvas:
    c, s = np.cos(turn), np.sin(turn)
    dx, dy = at.x - centre[0], at.y - centre[1]
    return Canvas(c * dx + s * dy, c * dy - s * dx, at.pixel)


PARTS: dict[str, Draw] = {
    "fabric": fabric,
    "plate": plate,
    "tiles": tiles,
    "gear": gear,
    "tablet": tablet,
    "board": board,
}
