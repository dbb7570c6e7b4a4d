"""Your own images: a folder of good parts, and optionally defective ones with or without masks.

`data=folder data.root=photos data.normal_dir=good` is enough to train. When there is no separate
folder of normal test images, a seeded share of the normals is held out for the test; when there
are no defective images, the test holds normals only and shows false alarms, not detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from src.data.images import list_images
from src.data.layout import missing_root, normals, require_images
from src.data.samples import DEFECTIVE, Sample
from src.data.splits import draw, share
from src.errors import DataError


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
) -> list[Sample]:
    """Samples below `root`, which does not depend on the category.

    Args:
        root: folder of the data set; the other folders are relative to it (or absolute).
        category: only names the run.
        normal_dir: images of good parts, searched recursively.
        abnormal_dir: folder(s) of defective images; subfolders are defect types.
        mask_dir: masks with the relative path or the stem of their image, `_mask` allowed.
        normal_test_dir: good parts for the test; None: `test_fraction` of `normal_dir`.
        test_fraction: share of the normals held out when there is no `normal_test_dir`.
        seed: of that draw.

    Raises:
        DataError: a folder that was named is missing or has no images.
    """
    root = root.absolute()
    if not root.is_dir():
        raise missing_root(root, "Your image folder", str(root / normal_dir))
    bad_dirs = [abnormal_dir] if isinstance(abnormal_dir, str) else list(abnormal_dir or [])
    extra = [name for name in (normal_test_dir, mask_dir) if name]
    elsewhere = [root / name for name in (*bad_dirs, *extra)]
    good = [p for p in _images(root / normal_dir) if not _below_any(p, elsewhere)]
    if not good:
        require_images(root / normal_dir, "images of good parts")
        raise _overlap(root / normal_dir)
    if normal_test_dir:
        train, test = good, _images(root / normal_test_dir)
    else:
        generator = torch.Generator().manual_seed(seed)
        chosen = set(draw(len(good), share(test_fraction, len(good)), generator))
        train = [path for i, path in enumerate(good) if i not in chosen]
        test = [good[i] for i in sorted(chosen)]
    samples = normals(train, "train") + normals(test, "test")
    masks = root / mask_dir if mask_dir else None
    for name in bad_dirs:
        samples += _defective(root / name, masks)
    return samples


def _images(folder: Path) -> list[Path]:
    """Images below a folder that the configuration names, so it must have some."""
    return list_images(folder, recursive=True) or require_images(folder, "images")


def _defective(folder: Path, mask_dir: Path | None) -> list[Sample]:
    """Defective samples; the first folder below `folder` names the defect."""
    masks = _masks_by_name(mask_dir) if mask_dir else {}
    samples = []
    for path in _images(folder):
        if mask_dir and path.is_relative_to(mask_dir):
            continue  # masks kept inside the folder of defective images
        below = path.relative_to(folder)
        defect = below.parts[0] if len(below.parts) > 1 else folder.name
        wanted = [(folder.name / below).with_suffix("").as_posix(),
                  below.with_suffix("").as_posix(), path.stem]  # fmt: skip
        mask = next((masks[key] for key in wanted if key in masks), None)
        samples.append(Sample(path, mask, DEFECTIVE, defect, "test"))
    return samples


def _masks_by_name(mask_dir: Path) -> dict[str, Path]:
    """Masks by relative path without extension and, where that is unique, by stem."""
    found: dict[str, Path] = {}
    stems: dict[str, list[Path]] = {}
    for path in _images(mask_dir):
        name = path.relative_to(mask_dir).with_suffix("").as_posix().removesuffix("_mask")
        found[name] = path
        stems.setdefault(path.stem.removesuffix("_mask"), []).append(path)
    return {stem: paths[0] for stem, paths in stems.items() if len(paths) == 1} | found


def _below_any(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _overlap(folder: Path) -> DataError:
    return DataError(
        f"All images in {folder} also belong to another folder of the configuration.",
        found="no image is left as a good part",
        do="set data.normal_dir to a folder of its own",
    )
