"""The products that the synthetic data set draws: a texture and an object.

Each function draws one good specimen with its natural variation from `rng`. With `fault`, a
second generator, the same specimen misses a piece of its own kind (a hole, a tooth).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from src.data.drawing import Canvas, Rng, Scene, blend, box, canvas, circle, cover, noise

Draw = Callable[[int, Rng, Rng | None], Scene]


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
    grain = 0.04 * noise(rng, size, 0.012) + 0.03 * noise(rng, size, 0.2)
    bench = np.array((0.20, 0.26, 0.33)) * (1 + grain)[..., None]  # what the gear lies on
    albedo = blend(bench, steel, part)
    return Scene(albedo, height, part, gloss=0.28)


def _pose(size: int, rng: Rng, angle: float, move: float) -> Canvas:
    return canvas(size, rng.normal(0, angle), tuple(rng.normal(0, move, 2)))


PARTS: dict[str, Draw] = {"gear": gear, "plate": plate}
