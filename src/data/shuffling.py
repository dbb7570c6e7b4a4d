"""Shuffling that an interrupted run can take up at the very batch where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import RandomSampler, Sampler


class EpochShuffle(Sampler[int]):
    """Positions 0..count-1 in an order that depends on (seed, epoch) alone.

    Args:
        count: of the data set.
        length: of an epoch, with repeats if larger; None: each position once.
        seed: of every order.
    """

    def __init__(self, count: int, length: int | None, seed: int) -> None:
        self.count, self.length, self.seed = count, length or count, seed
        self.epoch = -1  # of the order being given out; counts up with each pass
        self.given = 0  # positions handed over in this epoch, set by the loader
        self._resumed = False

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        """The next epoch's order, or the rest of the one that was loaded."""
        if not self._resumed or self.given >= self.length:
            self.epoch, self.given = self.epoch + 1, 0
        self._resumed = False
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        order = RandomSampler(range(self.count), num_samples=self.length, generator=generator)
        return iter(list(order)[self.given :])

    def state_dict(self) -> dict[str, Any]:
        """Where we are."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there at the next pass; an empty state changes nothing."""
        if not state:
            return
        self.epoch, self.given = int(state["epoch"]), int(state["given"])
        self._resumed = True
