"""Has the camera, the light or the product changed since calibration?

The scores of the latest images are compared with the scores of the calibration images by a
two-sample Kolmogorov-Smirnov test on a sliding window. The test sees any change of distribution,
also a fall of scores (a lens cap gives very regular images). A burst of real defects raises it as
well: the warning says so, because a person must look either way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from scipy.stats import ks_2samp

MIN_CALIBRATION = 20  # ours: below this the test has no power and its p-value no meaning


class DriftMonitor:
    """Compares a sliding window of live scores with calibration.

    Tests once per half window, so neighbouring tests share half of their images. `alpha` is the
    level of one test. With fewer than 20 calibration images the monitor stays silent.
    """

    def __init__(self, calibration: Sequence[float], window: int, alpha: float) -> None:
        self.calibration = np.asarray(calibration, dtype=np.float64)
        self.alpha = alpha
        self._live: deque[float] = deque(maxlen=window)
        self._step, self._seen = window // 2 or 1, 0

    def update(self, score: float) -> str | None:
        """Take one live score; a warning when the window has just failed its test."""
        self._live.append(score)
        self._seen += 1
        full = len(self._live) == self._live.maxlen and self._seen % self._step == 0
        if not full or len(self.calibration) < MIN_CALIBRATION:
            return None
        outcome = ks_2samp(self._live, self.calibration)
        if outcome.pvalue >= self.alpha:
            return None
        now, then = float(np.median(self._live)), float(np.median(self.calibration))
        return (
            f"Drift: the last {len(self._live)} scores are {'higher' if now > then else 'lower'} "
            f"than at calibration (median {now:.4g}, was {then:.4g}; Kolmogorov-Smirnov "
            f"D={outcome.statistic:.2f}, p={outcome.pvalue:.1g}). "
            "Look at recent images: new light, focus, product or many defects. "
            "If the change is wanted, fit again with images of today."
        )
