"""Has the camera, the light or the product changed since calibration?

The scores of the latest images are compared with the scores of the calibration images by a
two-sample Kolmogorov-Smirnov test on a sliding window. The test sees any change of distribution,
also a fall of scores (a lens cap gives very regular images). A burst of real defects raises it as
well: the warning says so, because a person must look either way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import ks_2samp

MIN_CALIBRATION = 20  # ours: below this the test has no power and its p-value no meaning


@dataclass(frozen=True, slots=True)
class DriftWarning:
    """A window whose scores do not look like those of calibration."""

    statistic: float  # Kolmogorov-Smirnov distance, 0..1
    p_value: float
    median_live: float
    median_calibration: float
    window: int

    def __str__(self) -> str:
        direction = "higher" if self.median_live > self.median_calibration else "lower"
        return (
            f"Drift: the last {self.window} scores are {direction} than at calibration "
            f"(median {self.median_live:.4g}, was {self.median_calibration:.4g}; "
            f"Kolmogorov-Smirnov D={self.statistic:.2f}, p={self.p_value:.1g}). "
            "Look at recent images: new light, focus, product or many defects. "
            "If the change is wanted, fit again with images of today."
        )


class DriftMonitor:
    """Compares a sliding window of live scores with calibration.

    Tests once per half window, so neighbouring tests share half of their images. `alpha` is the
    level of one test. With fewer than 20 calibration images the monitor stays silent.
    """

    def __init__(self, calibration: Sequence[float], window: int, alpha: float) -> None:
        self.calibration = np.asarray(calibration, dtype=np.float64)
        self.window, self.alpha = window, alpha
        self._live: deque[float] = deque(maxlen=window)
        self._seen = 0

    @property
    def able(self) -> bool:
        """Whether there are enough calibration images for the test to mean something."""
        return len(self.calibration) >= MIN_CALIBRATION

    def update(self, score: float) -> DriftWarning | None:
        """Take one live score; a warning when the window has just failed its test."""
        self._live.append(score)
        self._seen += 1
        if not self.able or len(self._live) < self.window or self._seen % (self.window // 2 or 1):
            return None
        return self.test(list(self._live))

    def test(self, live: Sequence[float]) -> DriftWarning | None:
        """Test any number of live scores against calibration."""
        outcome = ks_2samp(live, self.calibration)
        if outcome.pvalue >= self.alpha:
            return None
        return DriftWarning(
            float(outcome.statistic),
            float(outcome.pvalue),
            float(np.median(live)),
            float(np.median(self.calibration)),
            len(live),
        )
