"""Your own images: a folder of good parts, and optionally defective ones with or without masks.

`data=folder data.root=photos data.normal_dir=good` is enough to train. When there is no separate
folder of normal test images, a seeded share of the normals is held out for the test; when there
are no defective images, the test holds normals only and shows false alarms, not detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from src.data.gathering import Folders, gather
from src.data.layout import missing_root, no_images, normals
from src.data.samples import Found
from src.data.splits import draw, share


def index_folder(
    root: Path,
    category: str,
    *,
    normal_dir: str,
    abnormal_dir: str | Sequence[str] | None,
    mask_dir: str | None,
    normal_test_dir: str | None,
    test_fraction: float,
    seed: int,
) -> Found:
    """Samples below `root`, which does not depend on the category.

    Args:
        root: folder of the data set; the other folders are relative to it (or absolute).
        category: only names the run.
        normal_dir: images of good parts, searched recursively.
        abnormal_dir: folder(s) of defective images; subfolders are defect types, but one that is
            called good, ok or normal holds good parts for the test.
        mask_dir: masks with the relative path or the stem of their image (`masks.pair_masks`).
        normal_test_dir: good parts for the test; None: `test_fraction` of `normal_dir`.
        test_fraction: share of the normals held out when there are no other good test parts.
        seed: of that draw.

    Raises:
        DataError: a folder that was named is missing or has no images.
        ConfigError: a folder with two meanings.
    """
    root = root.absolute()
    if not root.is_dir():
        raise missing_root(root, "Your image folder", str(root / normal_dir))
    bad_dirs = [abnormal_dir] if isinstance(abnormal_dir, str) else list(abnormal_dir or [])
    folders = Folders(
        good=root / normal_dir,
        good_test=root / normal_test_dir if normal_test_dir else None,
        defective=[root / name for name in bad_dirs],
        masks=root / mask_dir if mask_dir else None,
    )
    found = gather(folders)
    if found.empty:
        raise no_images(found.empty[0])
    train, test = found.train, found.good_test
    if not test:
        train, test = _held_out(train, test_fraction, seed)
    samples = normals(train, "train") + normals(test, "test") + found.defective
    return Found(samples, found.findings)


def _held_out(good: list[Path], fraction: float, seed: int) -> tuple[list[Path], list[Path]]:
    """(train, test) of good parts, both in their original order."""
    generator = torch.Generator().manual_seed(seed)
    chosen = set(draw(len(good), share(fraction, len(good)), generator))
    train = [path for i, path in enumerate(good) if i not in chosen]
    return train, [good[i] for i in sorted(chosen)]
