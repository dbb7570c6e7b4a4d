"""MVTec AD (Bergmann et al., CVPR 2019; CC BY-NC-SA 4.0): 15 categories, pixel masks.

`<category>/{train/good, test/<defect>|good, ground_truth/<defect>}/NNN.png`, masks `NNN_mask.png`.
Any data set laid out the same way can be read with `data=mvtec data.root=...`.
"""

from __future__ import annotations

from pathlib import Path

from src.data.gathering import gather
from src.data.listing import category_folder, natural_key, no_images, walk
from src.data.samples import Found, about
from src.errors import DataError


def index_mvtec(root: Path, category: str) -> Found:
    """Samples of one category: train/good, then test by defect name, each in natural order.

    The label comes from the folder directly below `test`, never from "good" elsewhere in a path.
    A defective image without a mask file keeps `mask_path=None`.

    Raises:
        DataError: unknown category, no training images, or no test folder.
    """
    return index_layout(
        category_folder(root.absolute(), category, "train/good", "MVTec AD"), "good"
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
    found, _ = gather(train, test / good, [test], masks)
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
