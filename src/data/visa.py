"""VisA (Zou et al., ECCV 2022; CC BY 4.0): 12 categories, photographs with pixel masks.

Raw layout `<category>/Data/Images/{Normal,Anomaly}/*.JPG`, `<category>/Data/Masks/Anomaly/*.png`;
the official one-class split is `split_csv/1cls.csv` with columns object, split, label, image,
mask. Masks hold small integers: anything above 0 is defective.
"""

from __future__ import annotations

import csv
from pathlib import Path

from src.data.listing import holders, missing_root, natural_key
from src.data.samples import DEFECTIVE, NORMAL, Found, Sample
from src.errors import DataError, did_you_mean

_SPLIT = "split_csv/1cls.csv"
_COLUMNS = {"object", "split", "label", "image", "mask"}


def index_visa(root: Path, category: str) -> Found:
    """Samples of one category as the official 1cls.csv lists them, in natural order.

    Raises:
        DataError: no split file, a split file of another form, an unknown category, or a file
            that is listed but not there.
    """
    root = root.absolute()
    base = next(holders(root, _SPLIT, depth=1), None)
    if base is None:
        raise missing_root(root, "VisA", str(root / _SPLIT))
    rows = _read_rows(base / _SPLIT)
    chosen = [row for row in rows if row["object"] == category]
    if not chosen:
        found = sorted({row["object"] for row in rows})
        raise DataError(
            f"VisA has no category {category!r} in {base / _SPLIT}.",
            found=", ".join(found),
            do=f"{did_you_mean(category, found)} Set data.category to it.",
        )
    samples = [_sample(base, row) for row in chosen]
    files = [p for sample in samples for p in (sample.image_path, sample.mask_path) if p]
    if absent := [path for path in files if not path.is_file()]:
        raise DataError(
            f"VisA in {base} is incomplete.",
            found=f"{len(absent)} listed files are missing, first {absent[0]}",
            do="unpack the archive again into data.root",
        )
    samples.sort(key=lambda s: (s.split != "train", s.label, natural_key(s.image_path)))
    return Found(samples)


def _read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = _COLUMNS - set(reader.fieldnames or ())
        if missing:
            raise DataError(
                f"{path} is not VisA's split file.",
                found=f"no column {', '.join(sorted(missing))}",
                do="copy split_csv/1cls.csv from the original archive",
            )
        return [{key: (row[key] or "").strip() for key in _COLUMNS} for row in reader]


def _sample(base: Path, row: dict[str, str]) -> Sample:
    split = "train" if row["split"] == "train" else "test"
    if row["label"] == "normal":
        return Sample(base / row["image"], None, NORMAL, "good", split)
    mask = base / row["mask"] if row["mask"] else None
    return Sample(base / row["image"], mask, DEFECTIVE, "anomaly", split)
