"""What is kept of one test image besides its pixels, and what that says about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from src.data.samples import DEFECTIVE, NORMAL, UNKNOWN
from src.evaluation.view import DefectPixels
from src.result import Threshold, no_own_mask

NAMES = 20  # file names in one sentence


class ImageRow(NamedTuple):
    """What is kept of one image besides its pixels."""

    label: int  # NORMAL, DEFECTIVE or UNKNOWN
    score: float
    map_max: float  # of the map as the model made it
    mask: str  # "known" | "missing" | "vanished" | "outside" | "on a normal image"
    pixels: DefectPixels | None = None  # of a mask that the network may not see all of
    own_alarm: bool | None = None  # the method's own mask marks a pixel; None: it made none
    own_counts: tuple[int, int] | None = None  # true and false positive pixels of that mask

    @property
    def has_mask(self) -> bool:
        """Whether the image is defective with a mask that counts."""
        return self.label == DEFECTIVE and self.mask == "known"

    def decision(self, threshold: Threshold) -> bool:
        """Whether the image raises an alarm."""
        if not threshold.own_mask:
            return self.score > threshold.image
        if self.own_alarm is None:
            raise no_own_mask()
        return self.own_alarm


def mask_state(
    label: int, marked: bool, marked_on_grid: bool, pixels: DefectPixels | None = None
) -> str:
    """Whether the pixels of an image are known.

    A defect is `outside` when it is marked, but nowhere in the network's view, and `vanished`
    when it is too small for the grid or for the rule that resizes masks.
    """
    if label == NORMAL:
        return "on a normal image" if marked or marked_on_grid else "known"
    if label == UNKNOWN or not (marked or marked_on_grid or pixels):
        return "missing"
    if marked_on_grid:
        return "known"
    return "vanished" if pixels is None or pixels.unseen < pixels.marked else "outside"


def notes_of(
    by_index: Mapping[int, ImageRow], size: tuple[int, int], name: Callable[[int], str]
) -> list[str]:
    """What is left out of the metrics of these images on this grid, and why; `name` of an index."""
    rows = list(by_index.values())
    outside = [name(index) for index, row in by_index.items() if row.mask == "outside"]
    labels = [row.label for row in rows]
    masks = [row.mask for row in rows if row.label != UNKNOWN]
    masked = any(row.has_mask for row in rows)
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
            "out of pixel metrics; a larger evaluation.size or evaluation.masks=nearest keeps them."
        )
    if outside:
        notes.append(_outside_note(outside))
    if misplaced:
        notes.append(f"{_images(misplaced)} labelled normal but masked: left out of pixel metrics.")
    return notes


def _outside_note(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return (
        f"{_images(len(names))} with the whole defect outside the centre crop: left out of pixel "
        f"metrics for that reason, counted in image metrics ({', '.join(names[:NAMES])}{more}). "
        "evaluation.whole_image=true counts such pixels as never found; transform.crop=null looks "
        "at all of an image."
    )


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"
