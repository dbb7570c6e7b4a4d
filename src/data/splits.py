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


def hold_out(
    normal: Sequence[Sample],
    fraction: float,
    seed: int,
    split: str = "calibration",
    least: int = 2,  # ours: a single image sets no threshold and chooses no epoch
) -> tuple[list[Sample], list[Sample]]:
    """Split normals into (kept, held out as `split`), both in their original order.

    Held out are round(fraction * n), but at least `least` and at most n - 1 when fraction > 0.
    """
    count = len(normal)
    size = min(max(round(fraction * count), least), count - 1) if fraction > 0 and count > 1 else 0
    chosen = _draw(count, size, seed)
    held = [replace(normal[i], split=split) for i in chosen]
    kept = [normal[i] for i in sorted({*range(count)} - {*chosen})]
    return kept, held


def limit_train(train: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """At most `limit` training samples, drawn with `seed`."""
    if limit is None or limit >= len(train):
        return list(train)
    return [train[i] for i in _draw(len(train), limit, seed)]


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


def _draw(count: int, size: int, seed: int) -> list[int]:
    """`size` of `count` positions without replacement, in ascending order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:size].tolist())
