"""Data sets laid out as MVTec AD: good parts to learn from, a test by defect, masks beside it.

`<category>/{train/good, test/<defect>|good, ground_truth/<defect>}/NNN.png`, masks `NNN_mask.png`
or a folder `NNN` with a mask of each region. Files of conf/data say where a data set differs.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from src.data.gathering import gather
from src.data.listing import category_folder, natural_key, no_images, walk
from src.data.samples import UNKNOWN, Found, Sample, about, normals
from src.errors import DataError


def index_mvtec(
    root: Path,
    category: str,
    *,
    data_set: str = "MVTec AD",
    good: str = "good",
    test: str = "test",
    masks: str = "ground_truth",
    calibration: str | None = None,
    unlabelled: Sequence[str] = (),
    take_unlabelled: bool = False,
) -> Found:
    """Samples of one category: training, calibration, then the test; conf/base/mvtec_like.yaml.

    The label comes from the folder directly below the test, never from "good" elsewhere in a path.
    DataError: unknown category, no training images, or no test folder.
    """
    folder = category_folder(root.absolute(), category, f"train/{good}", data_set)
    learn, tests = folder / "train" / good, folder / test
    found, _ = gather(learn, tests / good, [tests], folder / masks)
    learnt, tested = ([s for s in found if s.split == split] for split in ("train", "test"))
    if not learnt:
        raise no_images(learn)
    if not tests.is_dir():
        raise DataError(
            f"{folder} has no test set.",
            found=", ".join(sorted(entry.name for entry in folder.iterdir())),
            do=f"put {test}/{good} and {test}/<defect> there, or use data=folder for normals only",
        )
    tested.sort(key=lambda sample: natural_key(sample.image_path))
    if (enough := folder / "defects_config.json").is_file():
        tested = [replace(s, saturation=enough) if s.mask_path else s for s in tested]
    held = [folder / calibration] if calibration else []
    hidden = [folder / name for name in unlabelled]
    unused = about(
        walk(folder, skip=[learn, tests, folder / masks, *held, *hidden]).images,
        "warning", "Images that are not used.",
        remedy=f"move them to train/{good}, {test} or {masks}, or out of the category",
    )  # fmt: skip
    samples = [
        *learnt,
        *normals((path for place in held for path in walk(place).images), "calibration"),
        *tested,
        *(
            Sample(path, None, UNKNOWN, place.name, "test")
            for place in (hidden if take_unlabelled else [])
            for path in walk(place).images
        ),
    ]
    return Found(samples, found.findings + unused)
