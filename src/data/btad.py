"""BTAD, the BeanTech data set (Mishra et al., ISIE 2021; CC BY-NC-SA 4.0): categories 01 to 03.

`BTech_Dataset_transformed/<category>/{train/ok, test/ok, test/ko, ground_truth/ko}`; images are
bmp or png, masks share the stem of their image and may differ in extension.
"""

from __future__ import annotations

from pathlib import Path

from src.data.images import list_images
from src.data.layout import category_folder, defects, normals, require_images
from src.data.samples import Sample


def holds_category(folder: Path) -> bool:
    """Whether the folder looks like one category."""
    return (folder / "train" / "ok").is_dir()


def index_btad(root: Path, category: str) -> list[Sample]:
    """Samples of one category: train/ok, test/ko, test/ok, each in natural order.

    Raises:
        DataError: unknown category or no training images.
    """
    folder = category_folder(root.absolute(), category, holds_category, "BTAD")
    train = require_images(folder / "train" / "ok", "normal training images")
    masks = list_images(folder / "ground_truth" / "ko")
    return [
        *normals(train, "train"),
        *defects(list_images(folder / "test" / "ko"), masks, "ko"),
        *normals(list_images(folder / "test" / "ok"), "test"),
    ]
