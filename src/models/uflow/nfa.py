"""Segmentation without a threshold: the number of false alarms of each region.

U-Flow (Tailanian, Pardo, Musé, JMIV 2024), Sec. 4: if an image is normal its latents are
independent N(0, 1), so a connected region R whose pixels all have mean energy above t has
probability at most P(R) = P(chi2_C >= C t)^|R|. With N_T regions that could have been tested,
NFA(R) = N_T P(R) bounds the expected number of regions as rare as R in a normal image: regions
with NFA < 1, that is log10 NFA < 0, are detected (the official code returns its negative).

`tests: per_size` (ours) shares the one false alarm evenly among sizes instead of among figures:
with K = sum_l N_l pairs of scale and size, NFA(R) = K N_l a(|R|) P(R) also has at most one false
alarm expected per image, sum_{l, r} N_l a(r) / (K N_l a(r)) = 1. N_T is dominated by figures as
large as the map, so that with few channels (below some 200) small defects cannot be detected at
all; a region of |R| pixels now pays for the figures of its own size only.

Where we deviate from the official code (mtailanian/uflow, AGPL-3.0, nothing copied): regions of
*low* energy are not rare events (`lower_tail: clamp`; its bound is applied below the mean too, so
that one scale with latents 5 % too small turns the whole image into a detection), regions of equal
probability do not erase each other, and the tree is a single pass (region_tree.py).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor
from torch.nn import functional as F

from src.models.uflow.options import NfaOptions
from src.models.uflow.positions import upsampled
from src.models.uflow.region_tree import region_tree, significant_regions

Floats = NDArray[np.float64]

# a(r) ~ ALPHA BETA^r / r: Jensen 2003, the constants of the official code
ALPHA, BETA = 0.316915, 4.062570
# OEIS A001168: fixed polyominoes of 1, 2, ..., 28 cells (the first ten recounted in the tests)
POLYOMINOES = (
    1, 2, 6, 19, 63, 216, 760, 2725, 9910, 36446, 135268, 505861, 1903890, 7204874, 27394666,
    104592937, 400795844, 1540820542, 5940738676, 22964779660, 88983512783, 345532572678,
    1344372335524, 5239988770268, 20457802016011, 79992676367108, 313224032098244,
    1228088671826973,
)  # fmt: skip
FLOAT32_LOWEST = float(np.finfo(np.float32).min)  # what the official code makes of -inf
WINDOW = 5  # block NFA, first preprint: 5x5 at the finest scale, halved at each coarser one
CANDIDATE = 0.9  # block NFA: a latent is a candidate when z^2 exceeds this quantile of chi2_1
CANDIDATE_LEVEL = 2.0 * float(special.gammaincinv(0.5, CANDIDATE))  # tau = 2.705543


def log_nfa(latents: Sequence[Tensor], size: tuple[int, int], how: NfaOptions) -> Tensor:
    """log10 NFA (B, H, W) float32 on the given grid, from latents (B, C, h, w) finest first."""
    return log_nfa_of(evidence(latents, how), [z.shape[1] for z in latents], size, how)


def evidence(latents: Sequence[Tensor], how: NfaOptions) -> list[Tensor]:
    """All that the NFA reads of latents (B, C, h, w), (B, h, w) of each scale; a graph can hold it.

    Means over channels: of z^2 (tree), or of whether it exceeds `CANDIDATE_LEVEL` (block).
    """
    squares = [z.detach().float().square() for z in latents]
    if how.method == "block":
        squares = [(square >= CANDIDATE_LEVEL).float() for square in squares]
    return [square.mean(dim=1) for square in squares]


def log_nfa_of(
    read: Sequence[Tensor], channels: Sequence[int], size: tuple[int, int], how: NfaOptions
) -> Tensor:
    """log10 NFA (B, H, W) float32 on the given grid, from the `evidence` of latents of C channels.

    Computed on the CPU, image by image; a pixel's value is that of the best region at any scale
    (tree), or the product over scales (block).
    """
    if how.method == "block":
        return _block_log_nfa(read, size, how.tail)
    pixels = tuple(energy[0].numel() for energy in read)
    scales = []
    for energy, own, count in zip(read, pixels, channels, strict=True):
        if how.tests == "per_size":  # but for the figures of a region's size
            tests = math.log10(sum(pixels)) + math.log10(own)
        else:
            tests = log10_number_of_tests(pixels, how.counts)
        each = energy.cpu().numpy()
        maps = np.stack([tests + tree_log_probability(e, count, how) for e in each])
        scales.append(torch.from_numpy(maps.astype(np.float32))[:, None])
    return upsampled(scales, size).amin(dim=1)


@lru_cache(maxsize=256)
def log10_number_of_tests(pixels: tuple[int, ...], counts: str) -> float:
    """log10 N_T = log10 sum_l N_l sum_{r=1}^{N_l} a(r) for scales of N_l pixels (Sec. 4.2).

    Every 4-connected figure at every place of every scale is tested: a(r) is the number of fixed
    polyominoes (figures up to translation) of r cells. A figure may start at any pixel: an upper
    bound, since it must also fit.
    """
    terms = [math.log10(n) + log10_figures(np.arange(1, n + 1), counts) for n in pixels]
    return float(special.logsumexp(np.concatenate(terms) * math.log(10.0)) / math.log(10.0))


def log10_figures(area: NDArray[np.int64], counts: str) -> Floats:
    """log10 a(r) for regions of `area` pixels, >= 1.

    counts="asymptotic": Jensen's formula for every r (paper). counts="exact": known polyomino
    counts up to 28 cells, then the formula; log10 N_T differs by less than 1e-11 as soon as a scale
    has more than some 60 pixels, because the largest figures dominate the sum.
    """
    logs = math.log10(ALPHA) + area * math.log10(BETA) - np.log10(area)
    if counts == "exact":
        known = np.log10(np.array(POLYOMINOES, dtype=np.float64))
        small = area <= len(known)
        logs = np.where(small, known[np.where(small, area, 1) - 1], logs)
    return np.asarray(logs, dtype=np.float64)


def offset_from_normals(lowest: Sequence[float]) -> float:
    """What to add to log10 NFA so that it stays >= 0 on n held-out normal images; at least 0.

    `lowest` (n,): the lowest log10 NFA of each. Real latents are neither independent nor exactly
    normal, so plain log NFA < 0 fires on most good images (133 of 141, docs/uflow_threshold.md).
    If the n images chose nothing else and future ones are exchangeable with them, 1 in n + 1 of
    the latter fires after this shift, on average over draws of the n (order statistics). Test
    folders taken at another time are not, and fired up to four times as often.
    """
    return max(0.0, -min(lowest, default=0.0))


def tree_log_probability(energy: NDArray, channels: int, how: NfaOptions) -> Floats:
    """log10 P of the region that explains each pixel (h, w), 0 where none does.

    energy (h, w): mean over channels of z^2, >= 0, 1 on average if the image is normal.
    With `tests: per_size` the figures of the region's size are counted in, at most 0 in all.
    """
    # Below the mean the clamped bound is 1 for every region: one flat ground, half the work.
    flat = how.tail == "bound" and how.lower_tail == "clamp"
    tree = region_tree(np.asarray(energy, dtype=np.float64), 1.0 if flat else -math.inf)
    log_p = tree.area * log10_tail(tree.level, channels, how)
    if how.tests == "per_size":
        log_p = np.minimum(log_p + log10_figures(tree.area, how.counts), 0.0)
    return np.nan_to_num(significant_regions(tree, log_p), nan=0.0)


def log10_tail(mean_energy: NDArray, channels: int, how: NfaOptions) -> Floats:
    """log10 P(chi2_C >= C t) for one pixel, t = mean energy >= 0; at most 0."""
    t = np.asarray(mean_energy, dtype=np.float64)
    if how.tail == "exact":
        return log10_chi2_tail(channels * t, channels)
    with np.errstate(divide="ignore"):
        bound = -0.5 * channels * (t - 1.0 - np.log(t)) / math.log(10.0)
    if how.lower_tail == "clamp":
        return np.where(t > 1.0, bound, 0.0)
    return np.maximum(bound, FLOAT32_LOWEST)


def log10_chi2_tail(x: NDArray, dof: int) -> Floats:
    """log10 P(chi2_dof >= x), also far beyond 1e-308 where scipy's logsf is -inf.

    Q(a, y), a = dof/2, y = x/2: scipy where it is above 1e-200, else Legendre's continued
    fraction Q = y^a e^-y / Gamma(a) / (y+1-a - 1(1-a)/(y+3-a - 2(2-a)/(y+5-a - ...))).
    """
    a, y = 0.5 * dof, 0.5 * np.atleast_1d(np.asarray(x, dtype=np.float64))
    direct = special.gammaincc(a, y)
    far = direct < 1e-200
    log_q = np.log(np.where(far, 1.0, direct))
    if far.any():
        v = y[far]
        fraction = np.zeros_like(v)
        for n in range(200, 0, -1):  # y > a + 20 sqrt(a) here: 200 terms reach 1e-14
            fraction = n * (n - a) / (v + 2 * n + 1 - a - fraction)
        log_q[far] = a * np.log(v) - v - special.gammaln(a) - np.log(v + 1 - a - fraction)
    return (log_q / math.log(10.0)).reshape(np.shape(x))


def _block_log_nfa(read: Sequence[Tensor], size: tuple[int, int], tail: str) -> Tensor:
    """log10 NFA (B, H, W) of the first preprint (arXiv v1, v2): counts in square windows.

    In each window, count the latents above the 0.9 quantile of chi2_1, average over channels,
    and take the binomial tail; scales are upsampled bicubically and multiplied. `tail="exact"`
    integrates the binomial density continued to real counts instead of rounding counts down.
    """
    total = torch.zeros(len(read[0]), *size)
    for scale, share in enumerate(read):
        half = max(int(WINDOW / 2**scale // 2), 1)
        window = 2 * half + 1
        candidate = share.cpu()[:, None]  # counting and averaging commute
        mode = "reflect" if half < min(candidate.shape[2:]) else "replicate"
        padded = F.pad(candidate, (half,) * 4, mode=mode)
        counts = F.avg_pool2d(padded, window, stride=1)[:, 0].double().numpy() * window**2
        log_p = (_binomial_integral if tail == "exact" else _binomial_tail)(counts, window**2)
        coarse = torch.from_numpy(log_p.astype(np.float32))[:, None]
        total += F.interpolate(coarse, size=size, mode="bicubic", align_corners=True)[:, 0]
    return total + math.log10(sum(share[0].numel() for share in read))


def _binomial_tail(counts: Floats, n: int) -> Floats:
    """log10 P(Binomial(n, 0.1) > floor(count)).

    A full window has probability 0 in the official code, whose -inf bicubic interpolation turns
    into NaN; here it has p^n, the probability of that very event.
    """
    p = 1.0 - CANDIDATE
    k = np.floor(counts + 1e-5)  # float32 averages of counts fall short of integers
    with np.errstate(divide="ignore"):
        log_p = np.log10(special.bdtrc(np.minimum(k, n), n, p))
    return np.maximum(log_p, n * math.log10(p))


def _binomial_integral(counts: Floats, n: int) -> Floats:
    """log10 of the integral of C(n, k) p^k (1-p)^(n-k) over real k from count to n."""
    p = 1.0 - CANDIDATE
    nodes, weights = np.polynomial.legendre.leggauss(48)
    lower = counts[..., None]
    k = lower + 0.5 * (n - lower) * (nodes + 1.0)
    log_choose = special.gammaln(n + 1.0) - special.gammaln(k + 1.0) - special.gammaln(n - k + 1.0)
    log_density = log_choose + k * math.log(p) + (n - k) * math.log(1.0 - p)
    with np.errstate(divide="ignore"):
        log_p = np.log10(0.5 * (n - counts) * (np.exp(log_density) * weights).sum(-1))
    return np.maximum(log_p, n * math.log10(p))
