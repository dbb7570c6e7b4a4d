"""Seeded draws from sample lists: calibration hold-out, train/test split of normals, limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

import torch

from src.data.samples import DEFECTIVE, Sample
from src.errors import ConfigError

#: Fewer pictures choose no epoch: they train, and the last epoch is kept. ours: the likelihood of
#: one picture out of four would decide between epochs.
LEAST_VALIDATION = 5


def draw(count: int, size: int, generator: torch.Generator) -> list[int]:
    """`size` of `count` positions without replacement, in ascending order."""
    return sorted(torch.randperm(count, generator=generator)[:size].tolist())


def share(fraction: float, count: int) -> int:
    """round(fraction * count), but at least 1 and at most count - 1 when fraction > 0."""
    if fraction <= 0 or count < 2:
        return 0
    return min(max(round(fraction * count), 1), count - 1)


def hold_out(
    train: Sequence[Sample], fraction: float, seed: int, split: str = "calibration"
) -> tuple[list[Sample], list[Sample]]:
    """Split training normals into (train, held out as `split`), both in their original order."""
    size = share(fraction, len(train))
    if size == 1 and len(train) > 2:
        size = 2  # ours: a single image sets no threshold and chooses no epoch
    chosen = set(draw(len(train), size, torch.Generator().manual_seed(seed)))
    kept = [sample for i, sample in enumerate(train) if i not in chosen]
    held = [replace(train[i], split=split) for i in sorted(chosen)]
    return kept, held


def limit_train(train: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """At most `limit` training samples, drawn with `seed`."""
    if limit is None or limit >= len(train):
        return list(train)
    return [train[i] for i in draw(len(train), limit, torch.Generator().manual_seed(seed))]


def limit_test(test: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """At most `limit` test samples with the share of normals kept, at least one of each class.

    Defective ones are taken in turn from each defect type.

    Raises:
        ConfigError: a limit of 1 for two classes.
    """
    if limit is None or limit >= len(test):
        return list(test)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed)).tolist()
    normal = [i for i in order if test[i].label != DEFECTIVE]
    drawn: dict[str, list[int]] = {}
    for i in order:
        if test[i].label == DEFECTIVE:
            drawn.setdefault(test[i].defect, []).append(i)
    defective = [i for turn in zip_longest(*drawn.values()) for i in turn if i is not None]
    normals = round(limit * len(normal) / len(test))
    if normal and defective:
        if limit < 2:
            do = "set data.limit_test=2 or more, or null for all images"
            raise ConfigError("data.limit_test is too small.", found=f"{limit}", do=do)
        normals = min(max(normals, 1), limit - 1)
    chosen = normal[:normals] + defective[: limit - normals]
    return [test[i] for i in sorted(chosen)]
