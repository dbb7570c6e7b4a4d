"""Are the latents what the threshold takes them for? Statistics of z against N(0, 1).

The number of false alarms assumes independent N(0, 1) latents on normal images. A scale whose
latents are too small cannot detect (and with `lower_tail: legacy` turns whole images into
detections, from 4 % too small on); one whose latents are too large, or whose energy wanders from
place to place, detects more often than promised.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from src.result import LineChart

BINS, REACH = 80, 4.0  # histogram of z on [-4, 4], values beyond in the outer bins
LOW_DEVIATION = 0.96  # ours: the official lower tail floods masks from here on (spec of the bug)
HIGH_SPREAD = 2.0  # ours: energy deviates more than twice as much as chi2 allows

#: Latents of one scale over many images: `mean`; `deviation`, square root of the mean of z^2;
#: `energy_spread`, deviation of mean_c z^2 over places / sqrt(2/C); `beyond_3`, share of |z| > 3;
#: `histogram`, `BINS` bins on [-REACH, REACH]. Of N(0, 1) they are 0, 1, 1 and 0.0027.
Statistics = dict[str, Any]


class LatentStatistics:
    """Collects latents batch by batch; nothing but sums is kept."""

    def __init__(self) -> None:
        #: Per scale: z, z^2, |z| > 3, energy, energy^2, values, places, then the histogram of z.
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def update(self, latents: Sequence[Tensor]) -> None:
        """Latents (B, C, h, w) per scale."""
        self._sums = self._sums or [torch.zeros(1)] * len(latents)
        for scale, z in enumerate(latents):
            square = z.float().square()
            energy = square.mean(dim=1).double()  # (B, h, w)
            sums = [
                z.double().sum(), square.double().sum(), (square > 9.0).sum().double(),
                energy.sum(), energy.square().sum(),
            ]  # fmt: skip
            counts = torch.tensor([z.numel(), energy.numel()], dtype=torch.float64)
            bins = torch.histc(z.float().clamp(-REACH, REACH).cpu(), BINS, -REACH, REACH)
            found = torch.cat([torch.stack(sums).cpu(), counts, bins.double()])
            self._sums[scale] = self._sums[scale] + found

    def result(self) -> list[Statistics]:
        """Statistics per scale, finest first; empty when nothing was collected."""
        scales = []
        for sums in self._sums:
            total, square, beyond, energy, energy_square, n, places, *bins = sums.tolist()
            variance = max(0.0, energy_square / places - (energy / places) ** 2)
            found = {"mean": total / n, "deviation": (square / n) ** 0.5, "beyond_3": beyond / n}
            found["energy_spread"] = (variance * (n / places) / 2.0) ** 0.5
            scales.append(found | {"histogram": [int(count) for count in bins]})
        return scales


def warnings_of(statistics: Sequence[Statistics], calibrated: bool) -> list[str]:
    """What a reader of NFA masks should know; `calibrated`: the NFA was shifted by normals."""
    said = []
    for scale, found in enumerate(statistics, start=1):
        if found["deviation"] < LOW_DEVIATION:
            said.append(
                f"Scale {scale}: latents of normal images are too small (deviation "
                f"{found['deviation']:.3f}, should be 1). Small defects are missed at log NFA = 0; "
                "train longer or with a lower rate, and do not use model.nfa.lower_tail=legacy."
            )
        elif found["energy_spread"] > HIGH_SPREAD and not calibrated:
            said.append(
                f"Scale {scale}: the energy of normal images varies {found['energy_spread']:.1f} "
                "times as much as independent latents would, so log NFA < 0 may fire on good "
                "images; model.nfa.calibrate=true with calibration.fraction=0.1 makes that rarer."
            )
    return said


def latent_chart(facts: Sequence[Statistics]) -> LineChart:
    """Densities of the latents of each scale beside N(0, 1)."""
    step = 2 * REACH / BINS
    centres = [-REACH + step * (bin_ + 0.5) for bin_ in range(BINS)]
    normal = [math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) for z in centres]
    lines = {"N(0, 1)": (centres, normal)}
    for scale, found in enumerate(facts, start=1):
        deviation, spread, bins = found["deviation"], found["energy_spread"], found["histogram"]
        name = f"scale {scale}: deviation {deviation:.3f}, energy spread {spread:.1f}"
        lines[name] = (centres, [count / sum(bins) / step for count in bins])
    return LineChart("latent z of normal images", "density", lines)
