"""scores.csv of a run: one row per test image. Whoever writes or reads it does so here.

A further column is a further field of `ScoreRow`. Readers refuse a table that lacks one: a missing
column must not pass for a missing value.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from src.errors import SavedModelError
from src.saved_run import SavedRun

FILE_NAME = "scores.csv"


class ScoreRow(NamedTuple):
    """What a run found for one test image; the fields are the columns, in their order."""

    path: str  # below the data root
    label: int  # 0 normal, 1 defective, -1 unknown
    defect: str  # folder of the defect type, "good" for normal images
    score: float  # raw units; higher is more anomalous
    decision: bool  # alarm at the threshold of the run
    map_max: float = math.nan  # highest value of the anomaly map
    split: str = "test"
    iou: float = math.nan  # of prediction and mask at the threshold, 0..1; NaN: no usable mask
    image: str = ""  # what is in the image file, as a hash
    mask: str = ""  # the same of its mask; empty without one


def write_scores(run: SavedRun, rows: Sequence[ScoreRow]) -> None:
    """Write scores.csv into the folder of a run."""
    run.write_rows(FILE_NAME, [_as_text(row) for row in rows])


def read_scores(folder: Path) -> list[ScoreRow]:
    """The rows of a finished run's scores.csv.

    Raises:
        SavedModelError: there is none, a column is missing, or a value is of the wrong kind.
    """
    try:
        with (folder / FILE_NAME).open(newline="", encoding="utf-8") as stream:
            return [ScoreRow(**_parsed(row)) for row in csv.DictReader(stream)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise SavedModelError(
            f"{folder} has no usable {FILE_NAME}.",
            found=f"{type(error).__name__}: {error}",
            do="give the path of a finished run, as `python -m src.run` prints it; a run of an "
            "older version must be repeated with force=true",
        ) from error


def _as_text(row: ScoreRow) -> dict[str, Any]:
    values = row._asdict() | {"decision": int(row.decision)}
    return {name: "" if value != value else value for name, value in values.items()}


def _parsed(row: Mapping[str, str]) -> dict[str, Any]:
    return {name: read(row[name]) for name, read in _READERS.items()}


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _truth(text: str) -> bool:
    return bool(int(text))


_BY_TYPE: dict[type, Callable[[str], Any]] = {float: _number, bool: _truth, int: int, str: str}
_READERS = {name: _BY_TYPE[kind] for name, kind in get_type_hints(ScoreRow).items()}
