"""One image on disk and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from src.files import shown

NORMAL, DEFECTIVE, UNKNOWN = 0, 1, -1


@dataclass(frozen=True, slots=True)
class Sample:
    """An image, its mask and its label; paths are absolute."""

    image_path: Path
    mask_path: Path | None
    label: int  # NORMAL, DEFECTIVE or UNKNOWN
    defect: str  # folder name of the defect type, "good" for normal images
    split: str  # "train" | "calibration" | "validation" | "test"
    channel_paths: tuple[Path, ...] = ()  # further files that complete the image (height maps)
    bit_depth: int | None = None  # bits that a deep grey file fills; None: 16 (see depth.py)

    def __post_init__(self) -> None:
        object.__setattr__(self, "defect", shown(self.defect))  # it is printed, not opened
