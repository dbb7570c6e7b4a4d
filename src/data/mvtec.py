"""MVTec AD (Bergmann et al., CVPR 2019; CC BY-NC-SA 4.0): 15 categories, pixel masks.

`<category>/{train/good, test/<defect>|good, ground_truth/<defect>}/NNN.png`, masks `NNN_mask.png`.
Any data set laid out the same way can be read with `data=mvtec data.root=...`.
"""

from __future__ import annotations

from pathlib import Path

from src.data.images import list_images
from src.data.layout import category_folder, defects, normals, require_images, subfolders
from src.data.samples import Sample
from src.errors import DataError


def holds_category(folder: Path) -> bool:
    """Whether the folder looks like one category."""
    return (folder / "train" / "good").is_dir()


def index_mvtec(root: Path, category: str) -> list[Sample]:
    """Samples of one category: train/good, then test by defect name, each in natural order.

    The label comes from the folder directly below `test`, never from "good" elsewhere in a path.
    A defective image without a mask file keeps `mask_path=None`.

    Raises:
        DataError: unknown category, no training images, or no test folder.
    """
    folder = category_folder(root.absolute(), category, holds_category, "MVTec AD")
    train = require_images(folder / "train" / "good", "normal training images")
    samples = normals(train, "train")
    if not (folder / "test").is_dir():
        raise DataError(
            f"{folder} has no test set.",
            found=", ".join(entry.name for entry in subfolders(folder)),
            do="put test/good and test/<defect> there, or use data=folder for normals only",
        )
    for group in subfolders(folder / "test"):
        images = list_images(group)
        if group.name == "good":
            samples += normals(images, "test")
        else:
            masks = list_images(folder / "ground_truth" / group.name)
            samples += defects(images, masks, group.name)
    return samples
