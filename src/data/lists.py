"""Data sets that come with a list of their images: VisA and Real-IAD.

VisA (Zou et al., ECCV 2022): `<category>/Data/Images/{Normal,Anomaly}/*.JPG`,
`<category>/Data/Masks/Anomaly/*.png`; the official one-class split is `split_csv/1cls.csv` with
columns object, split, label, image, mask. Masks hold small integers: anything above 0 is defective.

Real-IAD (Wang et al., CVPR 2024): `realiad_256/<category>/{OK,NG/<defect>}/S0001/*_C1_*.jpg`, where
C1 is a camera, with masks `*_mask.png`; `realiad_jsons/<category>.json` lists train and test.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from src.data.listing import holders, missing_root, natural_key
from src.data.samples import DEFECTIVE, NORMAL, Found, Sample
from src.errors import DataError, did_you_mean

_SPLIT = "split_csv/1cls.csv"
_COLUMNS = {"object", "split", "label", "image", "mask"}
_GOOD = "OK"  # Real-IAD's word


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
        raise _no_category("VisA", category, base / _SPLIT, {row["object"] for row in rows})
    return _listed("VisA", base, [_visa_sample(base, row) for row in chosen])


def index_real_iad(
    root: Path, category: str, *, images: str, lists: str, views: Sequence[str] | None
) -> Found:
    """Samples of one category as its JSON file lists them, in natural order.

    Args:
        root: holds the folders `images` and `lists`, each at most two folders deep.
        category: name of the JSON file and of the folder of images.
        images: folder of the images of all categories.
        lists: folder of the JSON files; another folder is another split.
        views: cameras to use, as C1; None: all five.

    Raises:
        DataError: no lists, an unknown category, a list of another form, or a file that is listed
            but not there.
    """
    root = root.absolute()
    base = next(holders(root, f"{lists}/{category}.json", depth=2), None)
    if base is None:
        known = {path.stem for home in holders(root, lists, depth=2)
                 for path in (home / lists).glob("*.json")}  # fmt: skip
        if not known:
            raise missing_root(root, "Real-IAD", f"{root / lists}/{category}.json")
        raise _no_category("Real-IAD", category, root / lists, known)
    home = next(holders(root, f"{images}/{category}", depth=2), None)
    if home is None:
        raise missing_root(root, "Real-IAD", f"{root / images / category}")
    path = base / lists / f"{category}.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        samples = [
            _real_iad_sample(home / images / category, row, split)
            for split in ("train", "test")
            for row in facts[split]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a list of Real-IAD.",
            found=f"{type(error).__name__}: {error}",
            do="copy it from the original archive",
        ) from error
    seen = [s for s in samples if not views or {*s.image_path.stem.split("_")} & {*views}]
    return _listed("Real-IAD", root, seen)


def _listed(data_set: str, base: Path, samples: list[Sample]) -> Found:
    """Training first, then good and defective ones of the test; every file must be there."""
    files = [p for sample in samples for p in (sample.image_path, sample.mask_path) if p]
    if absent := [path for path in files if not path.is_file()]:
        raise DataError(
            f"{data_set} in {base} is incomplete.",
            found=f"{len(absent)} listed files are missing, first {absent[0]}",
            do="unpack the archive again into data.root",
        )
    return Found(
        sorted(samples, key=lambda s: (s.split != "train", s.label, natural_key(s.image_path)))
    )


def _no_category(data_set: str, category: str, place: Path, known: Collection[str]) -> DataError:
    return DataError(
        f"{data_set} has no category {category!r} in {place}.",
        found=", ".join(sorted(known)),
        do=f"{did_you_mean(category, known)} Set data.category to it.",
    )


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


def _visa_sample(base: Path, row: dict[str, str]) -> Sample:
    split = "train" if row["split"] == "train" else "test"
    if row["label"] == "normal":
        return Sample(base / row["image"], None, NORMAL, "good", split)
    mask = base / row["mask"] if row["mask"] else None
    return Sample(base / row["image"], mask, DEFECTIVE, "anomaly", split)


def _real_iad_sample(images: Path, row: dict[str, Any], split: str) -> Sample:
    kind, mask = str(row["anomaly_class"]), row.get("mask_path")
    if kind == _GOOD:
        return Sample(images / row["image_path"], None, NORMAL, "good", split)
    return Sample(
        images / row["image_path"], images / mask if mask else None, DEFECTIVE, kind, split
    )
