"""One colour scale for a whole run, anchored at the threshold.

ours: scaling every picture by its own extremes paints the hottest spot of a good part red. Here
nothing is tinted far below the threshold, the threshold is a pale neutral, and only values above it
turn yellow, orange, red, purple, falling in lightness all the way: ordered for any kind of colour
vision and in grey print.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image

from src.saved_run import SavedRun

# position -1 (calm) .. 0 (threshold) .. 1 (hottest); red, green, blue 0..255; opacity 0..1
_STOPS = np.array(
    (
        (-1.00, 96, 140, 190, 0.00),
        (-0.45, 96, 140, 190, 0.00),
        (-0.02, 160, 190, 215, 0.26),
        (0.00, 250, 240, 205, 0.42),
        (0.12, 253, 219, 110, 0.58),
        (0.38, 244, 148, 40, 0.70),
        (0.68, 206, 46, 58, 0.80),
        (1.00, 98, 8, 86, 0.88),
    )
)
_STEPS = 1024  # entries of the look-up table; finer than 8-bit colours can show
#: (_STEPS, 4) uint8: colours and opacity between the stops, linear in each channel.
_TABLE = np.stack(
    [np.interp(np.linspace(-1, 1, _STEPS), _STOPS[:, 0], channel) for channel in _STOPS.T[1:]], -1
)
_TABLE = np.rint(_TABLE * (1, 1, 1, 255)).astype(np.uint8)
_SAMPLES_PER_MAP = 4096  # enough for a percentile, bounds memory for large maps


@dataclass(frozen=True, slots=True)
class ColourScale:
    """Where a map value lies between calm (`low`), `threshold` (or infinite) and `high`."""

    low: float
    threshold: float
    high: float

    @classmethod
    def fit(cls, maps: Iterable[np.ndarray], threshold: float) -> Self:
        """A scale for the maps (h, w) of one run; values that are not finite are ignored.

        low: median of all values. high: 99th percentile of those above the threshold. Both are
        moved away from the threshold when they touch it. A NaN threshold counts as +inf.
        """
        some = [np.ravel(each)[:: max(1, each.size // _SAMPLES_PER_MAP)] for each in maps]
        values = np.concatenate([np.zeros(0), *some])
        values = values[np.isfinite(values)]
        if math.isnan(threshold):
            threshold = math.inf
        finite = math.isfinite(threshold)
        if values.size == 0:
            values = np.array([threshold if finite else 0.0])
        low, above = float(np.median(values)), values[values > threshold]
        high = float(np.percentile(above, 99.0) if above.size else values.max())
        if not finite:
            return cls(low, threshold, high if high > low else low + max(abs(low), 1.0))
        room = max(high - threshold, threshold - low, 1e-6 * abs(threshold), 1e-12)
        return cls(min(low, threshold - room / 4), threshold, max(high, threshold + room / 4))

    @classmethod
    def of_run(cls, run: SavedRun) -> Self:
        """The scale of a run's own figures, so that a colour keeps its meaning."""
        return cls(**run.read_json("figures/scale.json"))

    def position(self, values: np.ndarray) -> np.ndarray:
        """Places on the scale, float32 in [-1, 1]; 0: threshold; NaN is hottest, to be seen."""
        values = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=np.inf)
        points, places = [self.low, self.threshold, self.high], [-1.0, 0.0, 1.0]
        if not math.isfinite(self.threshold):  # all on one side of it, from low to high
            points, places = points[::2], places[:2] if self.threshold > 0 else places[1:]
        return np.interp(values, points, places).astype(np.float32)

    def colours(self, values: np.ndarray) -> np.ndarray:
        """Map values (h, w) -> (h, w, 4) uint8 RGBA, opacity not premultiplied."""
        index = np.rint((self.position(values) + 1.0) * (0.5 * (_STEPS - 1))).astype(np.int32)
        return _TABLE[index]


def resize_map(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """A map (h, w) -> (height, width) float32, bilinear with half-pixel centres."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if values.shape == (height, width):
        return values
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask (h, w) bool -> (height, width) bool, nearest neighbour."""
    if mask.shape == (height, width):
        return mask.astype(bool)
    picture = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(picture.resize((width, height), Image.Resampling.NEAREST)) > 0
