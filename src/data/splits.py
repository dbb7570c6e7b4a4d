"""Which good images train, calibrate and validate: shots, hold-outs, limits; all by the seed."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, zip_longest

import torch
from omegaconf import DictConfig

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
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    held = [replace(normal[i], split=split) for i in sorted(order[:size])]
    return [normal[i] for i in sorted(order[size:])], held


def split_training(
    good: Sequence[Sample], cfg: DictConfig, *, given: bool
) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """Images that train, calibrate and validate, out of good ones, category by category.

    Those for calibration come from elsewhere (`given`), or are the good images that `data.shots`
    leaves out (unless `calibration.beyond_shots` is false), or a share held out, of
    `calibration.at_least` images where these are not more than a third.
    """
    train: list[Sample] = []
    calibration: list[Sample] = []
    validation: list[Sample] = []
    for _, group in groupby(good, key=lambda sample: sample.category):
        learnt, others = choose_shots([*group], cfg.data.get("shots"), cfg.seed)
        if len(others) > 1 and not given and cfg.calibration.beyond_shots:
            calibration += [replace(sample, split="calibration") for sample in others]
        elif not given:
            least = max(2, min(cfg.calibration.at_least, len(learnt) // 3))
            learnt, held = hold_out(learnt, cfg.calibration.fraction, cfg.seed, least=least)
            calibration += held
        kept, chosen = hold_out(learnt, cfg.validation.fraction, cfg.seed, "validation")
        enough = len(chosen) >= LEAST_VALIDATION
        train += kept if enough else learnt
        validation += chosen if enough else []
    return train, calibration, validation


def choose_shots(
    good: Sequence[Sample], shots: int | None, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """The few images of a few-shot protocol, and the others; null: all images.

    As AnomalyDINO (Damm et al., WACV 2025, run_anomalydino.py): the slice [seed * shots :
    (seed + 1) * shots]. One that runs over the end goes on with the first image.
    """
    count = len(good)
    if shots is None or shots >= count:
        return list(good), []
    chosen = {(seed * shots + k) % count for k in range(shots)}
    others = [good[i] for i in range(count) if i not in chosen]
    return [good[i] for i in sorted(chosen)], others


def limit_test(test: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """At most `limit` test samples with the share of normals kept, at least one of each class.

    Defective ones are taken in turn from each defect type. ConfigError: a limit of 1 for two
    classes.
    """
    if limit is None or limit >= len(test):
        return list(test)
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed)).tolist()
    normal: list[int] = []
    drawn: dict[str, list[int]] = {}
    for i in order:
        bad = test[i].label == DEFECTIVE
        (drawn.setdefault(test[i].defect, []) if bad else normal).append(i)
    defective = [i for turn in zip_longest(*drawn.values()) for i in turn if i is not None]
    normals = round(limit * len(normal) / len(test))
    if normal and defective:
        if limit < 2:
            do = "set data.limit_test=2 or more, or null for all images"
            raise ConfigError("data.limit_test is too small.", found=f"{limit}", do=do)
        normals = min(max(normals, 1), limit - 1)
    chosen = normal[:normals] + defective[: limit - normals]
    return [test[i] for i in sorted(chosen)]
