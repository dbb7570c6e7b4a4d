"""The last step of a U-Flow file that decides by the number of false alarms (threshold=nfa).

Such a file gives `score`, `anomaly_map` and, for each scale of the network, `evidence_1`,
`evidence_2`, ...: the mean of the squared latents at each place, 1 on average if the image is
normal. Connected regions of high evidence are compared with each other, which no graph format can
hold, so it is done here. Needs numpy only; made for the defaults of conf/model/uflow.yaml.
Tailanian, Pardo, Musé, JMIV 2024, Sec. 4; with all options: src/models/uflow/nfa.py.
"""

import json
from collections.abc import Callable
from math import log, log10

import numpy as np

FIGURES = 0.316915, 4.062570  # a connected figure of r pixels has about A B^r / r shapes
Figures = Callable[[np.ndarray], np.ndarray]
WHOLE = -1  # the region of all pixels


def nfa_mask(facts: str, found: dict[str, np.ndarray]) -> np.ndarray:
    """Defective pixels (h, w) bool of one image; the image is an alarm if there is any.

    `facts`: what the file says as `goodparts.nfa`; `found`: its outputs for one image, by name.
    """
    how = json.loads(facts)
    if [how[k] for k in ("method", "tail", "lower_tail")] != ["tree", "bound", "clamp"]:
        raise SystemExit("nfa_mask.py knows model.nfa.method=tree tail=bound lower_tail=clamp only")
    maps = [found[f"evidence_{i + 1}"][0].astype(float) for i in range(len(how["channels"]))]
    total = sum(energy.size for energy in maps)
    scales = []
    for energy, channels in zip(maps, how["channels"], strict=True):
        if how["tests"] == "per_size":
            tests, figures = log10(total * energy.size), log10_figures
        else:  # all figures at all places of all scales
            sizes = [np.log10(m.size) + log10_figures(np.arange(1, m.size + 1)) for m in maps]
            every, figures = np.concatenate(sizes), np.zeros_like
            tests = every.max() + log10((10 ** (every - every.max())).sum())

        rarity = tests + best_regions(energy, channels, figures)
        scales.append(enlarged(rarity, found["anomaly_map"].shape))
    return np.min(scales, axis=0) + how["offset"] < 0


def log10_figures(area: np.ndarray) -> np.ndarray:
    """How many shapes a connected figure of `area` pixels can have."""
    return log10(FIGURES[0]) + area * log10(FIGURES[1]) - np.log10(area)


def best_regions(energy: np.ndarray, channels: int, figures: Figures) -> np.ndarray:
    """log10 P (h, w) of the region that explains each pixel best, 0 where none does.

    Regions are the connected sets of pixels above any level; each lies inside larger ones.
    """
    (h, w), e = energy.shape, energy.ravel()
    order = [int(p) for p in np.argsort(-e, kind="stable") if e[p] > 1]  # highest first
    outer, top = {}, {}  # the pixel whose region holds this one's; the outermost one so far
    for p in order:
        top[p] = p
        for q in (p - w, p + w, *[p - 1] * (p % w > 0), *[p + 1] * (p % w < w - 1)):
            while q in top and top[q] != q:
                top[q] = q = top[top[q]]
            if q in top and q != p:
                outer[q] = top[q] = p
    for p in reversed(order):  # one pixel stands for all of its level that are connected
        q = outer.setdefault(p, WHOLE)
        if q != WHOLE and outer[q] != WHOLE and e[outer[q]] == e[q]:
            outer[p] = outer[q]
    regions = [p for p in order if outer[p] == WHOLE or e[outer[p]] < e[p]]
    area, inner = dict.fromkeys([*order, WHOLE], 1), {p: [] for p in [*regions, WHOLE]}
    for p in order:
        area[outer[p]] += area[p]
    for p in regions:
        inner[outer[p]].append(p)
    value = {WHOLE: 0.0}  # log10 P that all pixels of such a region exceed its level
    for p in regions:
        bound = -area[p] * channels / 2 * (e[p] - 1 - log(e[p])) / log(10)
        value[p] = min(bound + float(figures(np.float64(area[p]))), 0.0)
    winner = {}  # the region that can stand for all inside of it; regions that part have none
    for p in inner:  # inner ones first
        rivals = [winner.get(q) for q in inner[p]]
        if None in rivals:
            continue
        least = min((value[q] for q in rivals), default=np.inf)
        if value[p] < least or (len(rivals) > 1 and value[p] == least):
            winner[p] = p
        elif len(rivals) == 1:
            winner[p] = rivals[0]
    kept = {q for p, q in winner.items() if outer.get(p) not in winner}
    best = {}
    for p in reversed(inner):
        best[p] = value[p] if p in kept else best.get(outer.get(p), 0.0)
    found = np.full(h * w, best[WHOLE])
    for p in order:
        found[p] = best[p] if p in best else best[outer[p]]
    return found.reshape(h, w)


def enlarged(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map on the grid of the anomaly map, bilinear, as PyTorch's interpolate does it."""
    for axis, side in enumerate(shape[-2:]):
        count = values.shape[axis]
        at = np.clip((np.arange(side) + 0.5) * count / side - 0.5, 0, count - 1)
        low = np.floor(at).astype(int)
        part = np.expand_dims(at - low, 1 - axis)
        upper = np.take(values, np.minimum(low + 1, count - 1), axis)
        values = np.take(values, low, axis) * (1 - part) + upper * part
    return values
