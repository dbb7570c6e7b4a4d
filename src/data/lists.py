"""Data sets that come with a list of their images: VisA and Real-IAD.

VisA (Zou et al., ECCV 2022): the official one-class split is `split_csv/1cls.csv` with columns
object, split, label, image, mask. Masks hold small integers: anything above 0 is defective.

Real-IAD (Wang et al., CVPR 2024): `realiad_256/<category>/{OK,NG/<defect>}/S0001/*_C1_*.jpg`, where
C1 is a camera, with masks `*_mask.png`; `realiad_jsons/<category>.json` lists train and test.
"""

import contextlib
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from src.data.listing import find_root, holders, missing, natural_key
from src.data.samples import DEFECTIVE, NORMAL, Found, Sample
from src.errors import DataError

_SPLIT = "split_csv/1cls.csv"
_Row = tuple[str, str | None, str | None, str]  # image, mask, defect (None: a good part), split


def index_visa(root: Path, category: str) -> Found:
    """Samples of one category as the official 1cls.csv lists them, in natural order.

    DataError: no list, one of another form, an unknown category, or an absent file in it.
    """
    base = find_root(root.absolute(), "VisA", _SPLIT)
    rows: dict[str, list[_Row]] = {}
    with _reading(base / _SPLIT) as text:
        for row in csv.DictReader(text.splitlines()):
            defect = None if row["label"] == "normal" else "anomaly"
            split = "train" if row["split"] == "train" else "test"
            rows.setdefault(row["object"], []).append((row["image"], row["mask"], defect, split))
    if category not in rows:
        raise missing(base, "VisA", _SPLIT, category, rows)
    return _listed("VisA", base, rows[category])


def index_real_iad(
    root: Path, category: str, *, images: str, lists: str, views: Sequence[str] | None
) -> Found:
    """Samples of one category as its JSON file lists them (conf/data/real_iad.yaml).

    DataError: as of `index_visa`.
    """
    root, name = root.absolute(), f"{lists}/{category}.json"
    path = next(holders(root, name, depth=2), root) / name
    if not path.is_file():
        known = {file.stem for home in holders(root, lists, depth=2)
                 for file in (home / lists).glob("*.json")}  # fmt: skip
        raise missing(root, "Real-IAD", str(path), category, known)
    base = find_root(root, "Real-IAD", f"{images}/{category}") / images / category
    with _reading(path) as text:
        facts = json.loads(text)
        rows = [
            (row["image_path"], row.get("mask_path"), None if kind == "OK" else kind, split)
            for split in ("train", "test")
            for row in facts[split]
            for kind in [row["anomaly_class"]]
            if not views or {*views} & {*Path(row["image_path"]).stem.split("_")}
        ]
    return _listed("Real-IAD", base, rows)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[str]:
    """The text of a list; what the block cannot make sense of is a DataError."""
    try:
        yield path.read_text(encoding="utf-8-sig")
    except (ValueError, KeyError, TypeError) as error:
        what = f"{path} is not the list of a data set."
        do = "copy it from the original archive"
        raise DataError(what, found=f"{type(error).__name__}: {error}", do=do) from error


def _listed(data_set: str, base: Path, rows: Iterable[_Row]) -> Found:
    """Training first, then good and defective ones of the test; every file must be there."""
    samples = [
        Sample(
            base / image, base / mask if mask else None,
            DEFECTIVE if defect else NORMAL, defect or "good", split,
        )
        for image, mask, defect, split in rows
    ]  # fmt: skip
    files = [p for sample in samples for p in (sample.image_path, sample.mask_path) if p]
    if absent := [path for path in files if not path.is_file()]:
        found = f"{len(absent)} listed files are missing, first {absent[0]}"
        do = "unpack the archive again into data.root"
        raise DataError(f"{data_set} in {base} is incomplete.", found=found, do=do)
    samples.sort(key=lambda s: (s.split != "train", s.label, natural_key(s.image_path)))
    return Found(samples)
