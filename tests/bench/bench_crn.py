"""What a CRN step costs, against the authors' scheme restated in `tests/reference_crn.py`.

    PYTHONPATH=. python tests/bench/bench_crn.py      # 64 px, batch 8, full-width units
    PYTHONPATH=. python tests/bench/bench_crn.py --side 32 --batch 4

Authors: 8 forwards, 4 backwards, one Adam per unit, anomaly detection, contiguous memory. Ours: the
module's own training step and optimizer as `conf/model/crn.yaml` sets them. The two alternate, so
that a busy machine disturbs both alike; the medians are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from src.models.crn.competition import UnitBoard, pair_loss
from src.models.crn.options import LossWeights
from src.models.crn.unit import CompetitiveUnit, count_levels
from tests.reference_crn import SlowCompetition, recursive_unit

WEIGHTS = LossWeights(0.5, 1.0, 2.0)
PAIRS = [(0, 2), (2, 1), (1, 0)]


def authors_step(side: int, image: Tensor) -> Callable[[int], None]:
    """A function that takes step i as the authors do."""
    units = [recursive_unit(count_levels((side, side), 8), 64) for _ in range(3)]
    adam = partial(torch.optim.Adam, lr=1e-4)
    slow = SlowCompetition(units, dataclasses.astuple(WEIGHTS), adam)

    def step(i: int) -> None:
        with torch.autograd.set_detect_anomaly(True, check_nan=True):
            slow.step(image, *PAIRS[i % 3])

    return step


def our_step(
    side: int, image: Tensor, *, channels_last: bool, bfloat16: bool = False
) -> Callable[[int], None]:
    """A function that takes step i as `CRN.training_step` and one optimizer do."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    levels = count_levels((side, side), 8)
    units = [CompetitiveUnit(levels, 64, "batch", "upsample", False) for _ in range(3)]
    for unit in units:
        unit.to(memory_format=layout)
    image = image.contiguous(memory_format=layout)
    board = UnitBoard(3, "random", 0.9, 0)
    parameters = [p for unit in units for p in unit.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)  # conf/optimizer/adam.yaml

    def step(i: int) -> None:
        pair = PAIRS[i % 3]
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            result = pair_loss([units[k] for k in pair], image, WEIGHTS)
        board.record(pair, result)
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()

    return step


def measure(steps: dict[str, Callable[[int], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step, by name; three rounds of warm-up are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 3):
        for name, step in steps.items():
            began = time.perf_counter()
            step(i)
            if i >= 3:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    image = torch.rand(options.batch, 3, options.side, options.side) * 2 - 1
    steps = {
        "authors": authors_step(options.side, image),
        "ours": our_step(options.side, image, channels_last=True),
        "ours, contiguous": our_step(options.side, image, channels_last=False),
        "ours, bfloat16": our_step(options.side, image, channels_last=True, bfloat16=True),
    }
    seconds = measure(steps, options.rounds)
    base = statistics.median(seconds["authors"])
    print(f"{options.side} px, batch {options.batch}, {torch.get_num_threads()} threads")
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{min(values) * 1000:.0f}-{max(values) * 1000:.0f}"
        print(f"{name:18s} {median * 1000:7.0f} ms ({spread})  {base / median:.2f} x")


if __name__ == "__main__":
    main()
