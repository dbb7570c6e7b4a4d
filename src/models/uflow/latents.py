"""Are the latents what the threshold takes them for? Statistics of z against N(0, 1).

The number of false alarms assumes independent N(0, 1) latents on normal images. A scale whose
latents are too small cannot detect (and with `lower_tail: legacy` turns whole images into
detections, from 4 % too small on); one whose latents are too large, or whose energy wanders from
place to place, detects more often than promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

BINS, REACH = 80, 4.0  # histogram of z on [-4, 4], values beyond in the outer bins
LOW_DEVIATION = 0.96  # ours: the official lower tail floods masks from here on (spec of the bug)
HIGH_SPREAD = 2.0  # ours: energy deviates more than twice as much as chi2 allows


@dataclass(frozen=True, slots=True)
class ScaleStatistics:
    """Latents of one scale over many images; under N(0, 1): 0, 1, 1, 0.0027."""

    mean: float
    deviation: float  # square root of the mean of z^2
    energy_spread: float  # deviation of mean_c z^2 over places / sqrt(2/C); 1 if independent
    beyond_3: float  # share of |z| > 3
    histogram: tuple[int, ...]  # of z, `BINS` bins on [-REACH, REACH]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class LatentStatistics:
    """Collects latents batch by batch; nothing but sums is kept."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []  # per scale: n, z, z^2, beyond, places, e, e^2
        self._histograms: list[Tensor] = []
        self._channels: list[int] = []

    @torch.no_grad()
    def update(self, latents: Sequence[Tensor]) -> None:
        """Latents (B, C, h, w) per scale."""
        for scale, z in enumerate(latents):
            if len(self._sums) <= scale:
                self._sums.append(torch.zeros(7, dtype=torch.float64))
                self._histograms.append(torch.zeros(BINS, dtype=torch.float64))
                self._channels.append(z.shape[1])
            square = z.float().square()
            energy = square.mean(dim=1).double()  # (B, h, w)
            self._sums[scale] += torch.stack(
                [
                    torch.tensor(float(z.numel()), dtype=torch.float64),
                    z.double().sum().cpu(),
                    square.double().sum().cpu(),
                    (square > 9.0).sum().double().cpu(),
                    torch.tensor(float(energy.numel()), dtype=torch.float64),
                    energy.sum().cpu(),
                    energy.square().sum().cpu(),
                ]
            )
            inside = z.detach().float().clamp(-REACH, REACH).cpu()
            self._histograms[scale] += torch.histc(inside, BINS, -REACH, REACH).double()

    def result(self) -> list[ScaleStatistics]:
        """Statistics per scale, finest first; empty when nothing was collected."""
        found = []
        for sums, bins, channels in zip(self._sums, self._histograms, self._channels, strict=True):
            n, total, square, beyond, places, energy, energy_square = sums.tolist()
            variance = max(0.0, energy_square / places - (energy / places) ** 2)
            found.append(
                ScaleStatistics(
                    mean=total / n,
                    deviation=(square / n) ** 0.5,
                    energy_spread=(variance * channels / 2.0) ** 0.5,
                    beyond_3=beyond / n,
                    histogram=tuple(int(count) for count in bins.tolist()),
                )
            )
        return found


def warnings_of(statistics: Sequence[ScaleStatistics], calibrated: bool) -> list[str]:
    """What a reader of NFA masks should know; `calibrated`: the NFA was shifted by normals."""
    said = []
    for scale, found in enumerate(statistics, start=1):
        if found.deviation < LOW_DEVIATION:
            said.append(
                f"Scale {scale}: latents of normal images are too small (deviation "
                f"{found.deviation:.3f}, should be 1). Small defects are missed at log NFA = 0; "
                "train longer or with a lower rate, and do not use model.nfa.lower_tail=legacy."
            )
        elif found.energy_spread > HIGH_SPREAD and not calibrated:
            said.append(
                f"Scale {scale}: the energy of normal images varies {found.energy_spread:.1f} "
                "times as much as independent latents would, so log NFA < 0 may fire on good "
                "images; model.nfa.calibrate=true with calibration.fraction=0.1 makes that rarer."
            )
    return said
