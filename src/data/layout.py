"""What every folder layout shares: finding the root, the category and its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from src.data.findings import Found, about
from src.data.gathering import Folders, gather
from src.data.listing import EXTENSIONS, natural_key, walk
from src.data.samples import NORMAL, Sample
from src.errors import DataError, did_you_mean

#: Whether a folder holds a category.
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


def no_images(folder: Path) -> DataError:
    """The error for a folder that must not be empty, with what is there instead."""
    there = walk(folder)
    if there.images:
        found = f"its {len(there.images)} images belong to another folder of the configuration"
    elif there.foreign:
        found = f"{len(there.foreign)} pictures of a type that is not read, {there.foreign[0].name}"
    else:
        found = "no image in it" if folder.is_dir() else "no such folder"
    return DataError(
        f"There are no images in {folder}.",
        found=found,
        do=f"put images there ({' '.join(EXTENSIONS)}), or correct the path (data.root and the "
        "folders below it)",
    )


def index_layout(folder: Path, good: str) -> Found:
    """Samples of a category laid out as MVTec AD: train first, then the test in natural order.

    Args:
        folder: of the category.
        good: name of the folders of good parts below train and test.

    Raises:
        DataError: no training images, or no test folder.
    """
    train, test, masks = folder / "train" / good, folder / "test", folder / "ground_truth"
    found = gather(Folders(train, test / good, [test], masks))
    if not found.train:
        raise no_images(train)
    if not test.is_dir():
        raise DataError(
            f"{folder} has no test set.",
            found=", ".join(entry.name for entry in subfolders(folder)),
            do=f"put test/{good} and test/<defect> there, or use data=folder for normals only",
        )
    tested = normals(found.good_test, "test") + found.defective
    tested.sort(key=lambda sample: natural_key(sample.image_path))
    stray = walk(folder, skip=[train, test, masks]).images
    unused = about(
        stray, "warning", what="Images that are not used.",
        remedy=f"move them to train/{good}, test or ground_truth, or out of the category",
    )  # fmt: skip
    return Found(normals(found.train, "train") + tested, found.findings + unused)
