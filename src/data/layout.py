"""What every folder layout shares: finding the root, the category and the mask of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from src.data.images import list_images, natural_key
from src.data.samples import DEFECTIVE, NORMAL, Sample
from src.errors import DataError, did_you_mean

#: A category name, and whether a folder holds that category.
Holds = Callable[[Path], bool]


def subfolders(directory: Path) -> list[Path]:
    """Visible folders in natural order."""
    found = (p for p in directory.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(found, key=natural_key)


def category_folder(root: Path, category: str, holds: Holds, data_set: str) -> Path:
    """`root/category`, also when the archive's own top folder lies in between.

    Raises:
        DataError: no such root or category, with the nearest names that exist.
    """
    for base in content_roots(root):
        if holds(base / category):
            return base / category
    found = [f.name for base in content_roots(root) for f in subfolders(base) if holds(f)]
    if found:
        raise DataError(
            f"{data_set} has no category {category!r} in {root}.",
            found=", ".join(sorted(set(found), key=natural_key)),
            do=f"{did_you_mean(category, found)} Set data.category to it.",
        )
    raise missing_root(root, data_set, f"{root / category}")


def content_roots(root: Path) -> list[Path]:
    """The root, then its direct subfolders (archives often bring their own top folder)."""
    return [root, *subfolders(root)] if root.is_dir() else []


def missing_root(root: Path, data_set: str, expected: str) -> DataError:
    """The error for a data set that is not there at all."""
    if root.is_dir():
        names = [entry.name for entry in sorted(root.iterdir())[:8]]
        found = f"{root} with {', '.join(names) if names else 'nothing'} in it"
    else:
        found = f"no folder {root}"
    return DataError(
        f"{data_set} was not found; expected {expected}.",
        found=found,
        do="set data.root to the folder of the data set, or DATA_DIR in .env to the folder above "
        "it; or set data.download=true where the data set can be downloaded",
    )


def normals(paths: Iterable[Path], split: str) -> list[Sample]:
    """Normal samples of a split."""
    return [Sample(path, None, NORMAL, "good", split) for path in paths]


def require_images(folder: Path, expected: str) -> list[Path]:
    """Images of a folder that must not be empty."""
    images = list_images(folder)
    if not images:
        raise DataError(
            f"There are no images in {folder}.",
            found="an empty folder" if folder.is_dir() else "no such folder",
            do=f"put {expected} there (png, jpg, bmp, tif or webp), or correct data.root",
        )
    return images


def defects(images: Sequence[Path], masks: Sequence[Path], defect: str) -> list[Sample]:
    """Defective test samples, each with the mask of its stem (`NNN` or `NNN_mask`) if any."""
    by_stem = {mask.stem.removesuffix("_mask"): mask for mask in masks}
    by_stem |= {mask.stem: mask for mask in masks}  # an image may itself be called x_mask
    return [Sample(path, by_stem.get(path.stem), DEFECTIVE, defect, "test") for path in images]
