"""MVTec AD (Bergmann et al., CVPR 2019; CC BY-NC-SA 4.0): 15 categories, pixel masks.

`<category>/{train/good, test/<defect>|good, ground_truth/<defect>}/NNN.png`, masks `NNN_mask.png`.
Any data set laid out the same way can be read with `data=mvtec data.root=...`.
"""

from __future__ import annotations

from pathlib import Path

from src.data.layout import category_folder, index_layout
from src.data.samples import Found


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
