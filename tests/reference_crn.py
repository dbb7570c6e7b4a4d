"""CRN as the authors train it, restated slowly: recursion, 8 forwards, 4 backwards, K optimizers.

An independent twin of `src/models/crn`: it shares no code with it and follows the description of
the official step, not its source. Also the framework-independent weights of the golden cases.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def hashed(count: int, seed: int) -> np.ndarray:
    """`count` values in [0, 1) from a 32-bit integer hash, the same on every machine."""
    t = np.arange(count, dtype=np.uint64) * 2654435761 + 40503 * seed + 12345
    t &= 0xFFFFFFFF
    t ^= t >> np.uint64(16)
    t = (t * 2246822519) & 0xFFFFFFFF
    t ^= t >> np.uint64(13)
    t = (t * 3266489917) & 0xFFFFFFFF
    t ^= t >> np.uint64(16)
    return t.astype(np.float64) / 2**32


@torch.no_grad()
def hashed_weights(unit: nn.Module, number: int) -> None:
    """Fill unit `number`: parameters in registration order, convolutions scaled by fan-in.

    Values are rounded to float32 whatever the unit's type, as the golden numbers were made.
    """
    for k, (name, p) in enumerate(unit.named_parameters()):
        v = 2 * hashed(p.numel(), 1000 * (number + 1) + k) - 1
        if p.dim() == 4:
            v = v * np.sqrt(3 / (p.shape[1] * p.shape[2] * p.shape[3]))
        elif name.endswith("weight"):
            v = 1 + 0.02 * v
        else:
            v = 0.02 * v
        p.copy_(torch.from_numpy(v).float().reshape(p.shape))


def hashed_images(count: int, side: int, seed: int) -> Tensor:
    """(count, 3, side, side) float64 in [-1, 1), rounded to float32."""
    v = 2 * hashed(count * 3 * side * side, seed) - 1
    return torch.from_numpy(v).float().double().reshape(count, 3, side, side)


class Level(nn.Module):
    """One level around an inner one: down, inner, up, and the skip beside them."""

    def __init__(self, outer: int, width: int, inner: Level | None, place: str) -> None:
        super().__init__()
        self.place = place
        self.down = nn.Conv2d(outer, width, 4, 2, 1, bias=False)
        self.down_norm = nn.BatchNorm2d(width) if place == "middle" else None
        self.inner = inner
        self.up = nn.Conv2d(width if inner is None else 2 * width, outer, 3, 1, 1, bias=False)
        self.up_norm = nn.BatchNorm2d(outer) if place != "outermost" else None

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.place == "outermost" else nn.functional.leaky_relu(x, 0.2)
        y = self.down(y)
        y = y if self.down_norm is None else self.down_norm(y)
        y = y if self.inner is None else self.inner(y)
        y = nn.functional.interpolate(torch.relu(y), scale_factor=2, mode="nearest")
        y = self.up(y)
        if self.place == "outermost":
            return torch.tanh(y)
        return torch.cat([nn.functional.leaky_relu(x, 0.2), self.up_norm(y)], 1)


def recursive_unit(levels: int, base: int) -> Level:
    """The batch-norm unit with upsampling decoder, built from the inside out."""
    widths = [3, *[base * min(2**i, 8) for i in range(levels)]]
    block = None
    for level in range(levels, 0, -1):
        place = "innermost" if level == levels else "outermost" if level == 1 else "middle"
        block = Level(widths[level - 1], widths[level], block, place)
    return block


def mean_absolute(x: Tensor, y: Tensor) -> Tensor:
    return torch.mean(torch.abs(x - y))


class SlowCompetition:
    """K units, K optimizers, and a step of 8 forwards and 4 backwards."""

    def __init__(self, units: list[nn.Module], weights: tuple[float, float, float], make) -> None:
        self.units, self.weights = units, weights
        self.optimizers = [make(unit.parameters()) for unit in units]
        self.loss = [0.0] * len(units)
        self.reconstruction = [0.0] * len(units)
        self.discrimination = [0.0] * len(units)

    def step(self, image: Tensor, a: int, b: int) -> None:
        for k in (a, b):
            self.optimizers[k].zero_grad(set_to_none=True)
            self.units[k].train()
            self.loss[k] = 0.0
        for generator, discriminator in ((a, b), (b, a)):
            self._generate(image, generator, discriminator)
        for generator, discriminator in ((a, b), (b, a)):
            self._discriminate(image, generator, discriminator)
        for k in (a, b):
            self.optimizers[k].step()

    def _generate(self, image: Tensor, generator: int, discriminator: int) -> None:
        w_r, w_f, _ = self.weights
        made = self.units[generator](image)
        judged = self.units[discriminator](made.detach())
        real = mean_absolute(image, made)
        loss = w_r * real + w_f * mean_absolute(made, judged.detach())
        loss.backward()
        self.loss[generator] += loss.item()
        self.reconstruction[generator] = real.item()

    def _discriminate(self, image: Tensor, generator: int, discriminator: int) -> None:
        made = self.units[generator](image)
        judged = self.units[discriminator](made.detach())
        foreign = mean_absolute(made.detach(), judged)
        loss = 4.0 - self.weights[2] * foreign
        loss.backward()
        self.loss[discriminator] += loss.item() - 4.0
        self.discrimination[discriminator] = foreign.item() - self.reconstruction[discriminator]


def naive_auroc(scores: Tensor, is_defect: Tensor) -> float:
    """Share of (normal, defective) pairs in the right order, ties half."""
    normal, defective = scores[~is_defect].tolist(), scores[is_defect].tolist()
    wins = sum((d > n) + 0.5 * (d == n) for d in defective for n in normal)
    return wins / (len(normal) * len(defective))
