"""Small pictures with a known defect, shared by the tests of this folder."""

from __future__ import annotations

import numpy as np

from src.reporting.colour_scale import ColourScale
from src.reporting.records import Box, PatchMatch, Picture
from src.saved_run import ScoreRow

SCALE = ColourScale(low=0.0, threshold=1.0, high=3.0)


def make_picture(height=48, width=64, *, defect=True, seed=0, match=False):
    rng = np.random.default_rng(seed)
    display = rng.integers(60, 200, (height, width, 3), dtype=np.uint8)
    anomaly_map = np.zeros((height // 4, width // 4), dtype=np.float32)
    mask = np.zeros((height, width), dtype=bool)
    if defect:
        mask[8:24, 16:40] = True
        anomaly_map[2:6, 4:10] = 2.5
    found = None
    if match:
        found = PatchMatch(2.5, "euclidean", Box(8, 16, 16, 24), "train/<b>7.png", display,
                           Box(0, 0, 8, 8))  # fmt: skip
    return Picture(display, anomaly_map, mask, match=found)


def make_results(count=12):
    """Half good, half defective in two types; one miss and one false alarm at threshold 1."""
    rows = []
    for index in range(count):
        label = index % 2
        defect = ("good", "crack", "good", "stain")[index % 4]
        score = 0.2 + 0.6 * index / count + 1.5 * label
        if index == 1:
            score = 0.5  # a miss
        if index == 2:
            score = 1.4  # a false alarm
        rows.append(ScoreRow(f"{defect}/{index:03}.png", label, defect, score, score > 1.0))
    return rows
