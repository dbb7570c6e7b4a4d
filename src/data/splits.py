"""Seeded draws from sample lists: calibration hold-out, train/test split of normals, limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
    _require(limit >= 1, "data.limit_train", limit, 1)
    chosen = draw(len(train), limit, torch.Generator().manual_seed(seed))
    return [train[i] for i in chosen]


def limit_test(test: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """At most `limit` test samples with the share of normals kept, at least one of each class.

    Defective ones are taken in turn from each defect type.
    """
    if limit is None or limit >= len(test):
        return list(test)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(test), generator=generator).tolist()
    normal = [i for i in order if test[i].label != DEFECTIVE]
    defective = _in_turn([i for i in order if test[i].label == DEFECTIVE], test)
    least = 2 if normal and defective else 1
    _require(limit >= least, "data.limit_test", limit, least)
    normals = round(limit * len(normal) / len(test))
    if normal and defective:
        normals = min(max(normals, 1), limit - 1)
    chosen = normal[:normals] + defective[: limit - normals]
    return [test[i] for i in sorted(chosen)]


def _in_turn(indices: list[int], samples: Sequence[Sample]) -> list[int]:
    """One of each defect type, then a second of each, and so on."""
    seen: dict[str, int] = {}
    rank: dict[int, int] = {}
    for i in indices:
        rank[i] = seen.setdefault(samples[i].defect, 0)
        seen[samples[i].defect] += 1
    return sorted(indices, key=lambda i: rank[i])  # stable: the drawn order within a rank


def _require(enough: bool, key: str, value: int, least: int) -> None:
    if not enough:
        raise ConfigError(
            f"{key} is too small.",
            found=f"{value}",
            do=f"set {key}={least} or more, or null for all images",
        )
