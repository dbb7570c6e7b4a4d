"""What is kept of one test image besides its pixels, and what that says about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.data.samples import DEFECTIVE, NORMAL, UNKNOWN
from src.evaluation.threshold import Nfa, Threshold, no_nfa


class ImageRow(NamedTuple):
    """What is kept of one image besides its pixels."""

    label: int  # NORMAL, DEFECTIVE or UNKNOWN
    score: float
    map_max: float  # of the map as the model made it
    mask: str  # "known" | "missing" | "vanished" on the grid | "on a normal image"
    nfa_alarm: bool | None  # log10 NFA < 0 anywhere; None: not computed
    nfa_counts: tuple[int, int] | None  # true and false positive pixels of log10 NFA < 0


def decide(row: ImageRow, threshold: Threshold) -> bool:
    """Whether the image raises an alarm."""
    if threshold.rule != Nfa.name:
        return row.score > threshold.image
    if row.nfa_alarm is None:
        raise no_nfa()
    return row.nfa_alarm


def mask_state(label: int, marked: bool, marked_on_grid: bool) -> str:
    """Whether the pixels of an image are known; see ImageRow.mask."""
    if label == NORMAL:
        return "on a normal image" if marked else "known"
    if label == UNKNOWN or not marked:
        return "missing"
    return "known" if marked_on_grid else "vanished"


def overlap_counts(detected: NDArray[np.bool_], mask: NDArray[np.bool_]) -> tuple[int, int]:
    """True and false positive pixels of a detection (H, W) against a mask (H, W)."""
    hits = int((detected & mask).sum())
    return hits, int(detected.sum()) - hits


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (B, h, w) bool -> (B, H, W) bool, nearest neighbour with half-pixel centres."""
    if masks.shape[-2:] == size:
        return masks
    return torch.nn.functional.interpolate(
        masks[:, None].to(torch.uint8), size=size, mode="nearest-exact"
    )[:, 0].bool()


def has_mask(row: ImageRow) -> bool:
    """Whether the image is defective with a mask that counts."""
    return row.label == DEFECTIVE and row.mask == "known"


def notes_of(rows: Iterable[ImageRow], size: tuple[int, int]) -> list[str]:
    """What is left out of the metrics of these images on this grid, and why."""
    rows = list(rows)
    labels = [row.label for row in rows]
    masks = [row.mask for row in rows if row.label != UNKNOWN]
    masked = any(has_mask(row) for row in rows)
    unknown, vanished = labels.count(UNKNOWN), masks.count("vanished")
    missing, misplaced = masks.count("missing"), masks.count("on a normal image")
    notes = []
    if unknown:
        notes.append(f"{_images(unknown)} without a label: scored, not evaluated.")
    if DEFECTIVE not in labels:
        notes.append("No defective test images: AUROC, AP, F1 and recall are undefined (NaN).")
    elif not masked:
        notes.append("No usable masks: pixel metrics are not computed.")
    if NORMAL not in labels:
        notes.append("No normal test images: AUROC, AP, F1 and false alarms are undefined (NaN).")
    if masked and missing:
        notes.append(f"{_images(missing)} with a defect but no mask: left out of pixel metrics.")
    if vanished:
        notes.append(
            f"{_images(vanished)} whose mask marks no pixel on the {size[0]}x{size[1]} grid: left "
            "out of pixel metrics; a larger evaluation.size keeps them."
        )
    if misplaced:
        notes.append(f"{_images(misplaced)} labelled normal but masked: left out of pixel metrics.")
    return notes


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"
