"""BTAD, the BeanTech data set (Mishra et al., ISIE 2021; CC BY-NC-SA 4.0): categories 01 to 03.

`BTech_Dataset_transformed/<category>/{train/ok, test/ok, test/ko, ground_truth/ko}`; images are
bmp or png, masks share the stem of their image and may differ in extension.
"""

from __future__ import annotations

from pathlib import Path

from src.data.listing import category_folder
from src.data.mvtec import index_layout
from src.data.samples import Found


def index_btad(root: Path, category: str) -> Found:
    """Samples of one category: train/ok, test/ko, test/ok, each in natural order.

    Raises:
        DataError: unknown category or no training images.
    """
    return index_layout(category_folder(root.absolute(), category, "train/ok", "BTAD"), "ok")
