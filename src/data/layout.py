"""What every folder layout shares: finding the root, the category and its samples."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from src.data.gathering import Folders, gather
from src.data.listing import EXTENSIONS, natural_key, walk
from src.data.samples import Found, about, normals
from src.errors import DataError, did_you_mean

DEEPEST = 4  # ours: folders between data.root and a data set; archives bring one or two


def holders(root: Path, inside: str, *, depth: int) -> Iterator[Path]:
    """Visible folders that hold the path `inside`: `root`, then those up to `depth` below it.

    Archives often bring their own top folder.
    """
    for level in range(depth + 1):
        hits = sorted(root.glob("*/" * level + glob.escape(inside)), key=natural_key)
        for folder in (path.parents[inside.count("/")] for path in hits):
            if not any(part.startswith((".", "__")) for part in folder.relative_to(root).parts):
                yield folder


def category_folder(root: Path, category: str, inside: str, data_set: str) -> Path:
    """The folder `category` at or one below `root`; `inside` is what every category holds.

    Raises:
        DataError: no such root or category, with the nearest names that exist.
    """
    wanted = next(holders(root, f"{category}/{inside}", depth=1), None)
    if wanted is not None:
        return wanted / category
    found = {folder.name for folder in holders(root, inside, depth=2) if folder != root}
    if found:
        raise DataError(
            f"{data_set} has no category {category!r} in {root}.",
            found=", ".join(sorted(found, key=natural_key)),
            do=f"{did_you_mean(category, found)} Set data.category to it.",
        )
    raise missing_root(root, data_set, f"{root / category}")


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


def with_calibration(found: Found, folder: Path) -> Found:
    """The samples and those of good parts in `folder`, which set the threshold and nothing else.

    Raises:
        DataError: there are no images.
    """
    there = walk(folder)
    if not there.images:
        raise no_images(folder)
    return Found([*found, *normals(there.images, "calibration")], found.findings)


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
    found, _ = gather(Folders(train, test / good, [test], masks))
    learnt = [sample for sample in found if sample.split == "train"]
    if not learnt:
        raise no_images(train)
    if not test.is_dir():
        raise DataError(
            f"{folder} has no test set.",
            found=", ".join(sorted(entry.name for entry in folder.iterdir())),
            do=f"put test/{good} and test/<defect> there, or use data=folder for normals only",
        )
    tested = [sample for sample in found if sample.split == "test"]
    tested.sort(key=lambda sample: natural_key(sample.image_path))
    unused = about(
        walk(folder, skip=[train, test, masks]).images,
        "warning", "Images that are not used.",
        remedy=f"move them to train/{good}, test or ground_truth, or out of the category",
    )  # fmt: skip
    return Found(learnt + tested, found.findings + unused)
