"""How many regions are tested: every 4-connected figure at every place of every scale.

U-Flow, Sec. 4.2: log10 N_T = log10 sum_l N_l sum_{r=1}^{N_l} a(r), where N_l is the number of
pixels of scale l and a(r) the number of fixed polyominoes (4-connected figures up to
translation) of r cells. A figure may start at any pixel: an upper bound, since it must also fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# a(r) ~ ALPHA BETA^r / r: Jensen 2003, the constants of the official code
ALPHA, BETA = 0.316915, 4.062570

# OEIS A001168: fixed polyominoes of 1, 2, ..., 28 cells (the first ten recounted in the tests)
POLYOMINOES = (
    1, 2, 6, 19, 63, 216, 760, 2725, 9910, 36446, 135268, 505861, 1903890, 7204874, 27394666,
    104592937, 400795844, 1540820542, 5940738676, 22964779660, 88983512783, 345532572678,
    1344372335524, 5239988770268, 20457802016011, 79992676367108, 313224032098244,
    1228088671826973,
)  # fmt: skip

DIGITS = 50  # of the decimal arithmetic of "exact"


def log10_number_of_tests(pixels: Sequence[int], counts: str) -> float:
    """log10 N_T for scales of so many pixels; cached.

    counts="asymptotic": Jensen's formula for every r, float64 log-sum-exp (paper).
    counts="exact": known polyomino counts up to 28 cells, the formula above, in decimal
    arithmetic of 50 digits. The two differ by less than 1e-12 as soon as a scale has more than
    some 60 pixels, because the largest figures dominate the sum.
    """
    return _cached(tuple(int(n) for n in pixels), counts)


def log10_figures(area: NDArray[np.int64], counts: str) -> NDArray[np.float64]:
    """log10 a(r) for regions of `area` pixels, >= 1; the same formulas."""
    r = np.asarray(area)
    logs = math.log10(ALPHA) + r * math.log10(BETA) - np.log10(r)
    if counts == "exact":
        known = np.log10(np.array(POLYOMINOES, dtype=np.float64))
        small = r <= len(known)
        logs = np.where(small, known[np.where(small, r, 1) - 1], logs)
    return np.asarray(logs, dtype=np.float64)


@lru_cache(maxsize=256)
def _cached(pixels: tuple[int, ...], counts: str) -> float:
    return _decimal(pixels) if counts == "exact" else _log_sum(pixels)


def _log_sum(pixels: tuple[int, ...]) -> float:
    terms = []
    for n in pixels:
        r = np.arange(1, n + 1)
        terms.append(math.log(n * ALPHA) + r * math.log(BETA) - np.log(r))
    logs = np.concatenate(terms)
    top = logs.max()
    return float((top + math.log(np.exp(logs - top).sum())) / math.log(10.0))


def _decimal(pixels: tuple[int, ...]) -> float:
    with localcontext() as context:
        context.prec = DIGITS
        alpha, beta = Decimal(str(ALPHA)), Decimal(str(BETA))
        figures = [Decimal(0)]  # figures[n]: polyominoes of at most n cells
        power = Decimal(1)
        for r in range(1, max(pixels) + 1):
            power *= beta
            known = r <= len(POLYOMINOES)
            figures.append(figures[-1] + (POLYOMINOES[r - 1] if known else alpha * power / r))
        return float(sum((n * figures[n] for n in pixels), Decimal(0)).log10())
