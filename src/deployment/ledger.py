"""The folder that `src.predict` writes: whose results it holds, and a row for every image.

`predict.json` says of which detector and images it is; its pictures are never taken for images.
Rows go to `scores.csv.partial` as they come and become `scores.csv` at the end. A row belongs to
one version of a file (`bytes`, `modified_ns`).
"""

import contextlib
import csv
import errno
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from filelock import FileLock, Timeout

from src.errors import ConfigError
from src.files import ESCAPE, write_rows, write_text

CARD = "predict.json"

_TABLES = ("scores.csv", "scores.csv.partial")
_COLUMNS = ("path", "score", "decision", "map_max", "defective_share", "bytes", "modified_ns")


class Version(NamedTuple):
    """One state of an image file. Both numbers are 0 when there is no such file."""

    path: str  # below the common root, as scores.csv shows it
    bytes: int
    modified_ns: int  # since 1970

    @classmethod
    def of(cls, path: Path, name: str) -> Self:
        """The present version of `path`, which results call `name`."""
        with contextlib.suppress(OSError):  # moved away between listing and looking
            facts = path.stat()
            return cls(name, facts.st_size, facts.st_mtime_ns)
        return cls(name, 0, 0)


class Scored(NamedTuple):
    """What became of one image: a row of scores.csv, or a problem."""

    version: Version
    problem: str  # why it could not be scored; empty: it was
    score: float = 0.0  # raw units, higher is more anomalous
    alarm: bool = False
    map_max: float = 0.0  # highest value of its anomaly map
    defective_share: float = 0.0  # of its pixels, 0..1

    def row(self) -> dict[str, str]:
        """The row of scores.csv, by column."""
        (path, *file), share = self.version, f"{self.defective_share:.6f}"
        cells = (path, repr(self.score), int(self.alarm), repr(self.map_max), share, *file)
        return dict(zip(_COLUMNS, map(str, cells), strict=True))


class Ledger:
    """The rows of a folder while it grows; made by `open_ledger`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unreadable: dict[str, str] = {}  # path -> reason
        self._finished, self._partial = (folder / name for name in _TABLES)
        self.rows: dict[Version, dict[str, str]] = {}
        for name in _TABLES:
            for row in csv.reader(io.StringIO(_lines(folder / name), newline="")):
                if len(row) == len(_COLUMNS) and row[-1].isdigit():  # else the head, or damaged
                    version = Version(row[0], int(row[-2]), int(row[-1]))
                    self.rows[version] = dict(zip(_COLUMNS, row, strict=True))
        write_rows(self._partial, list(self.rows.values()), _COLUMNS)
        self._stream = self._partial.open("a", newline="", encoding="utf-8", errors=ESCAPE)

    def add(self, found: Scored) -> None:
        """Keep a row at once; a file that could not be read before is forgiven."""
        if found.problem:
            self.unreadable[found.version.path] = found.problem
            return
        self.unreadable.pop(found.version.path, None)
        self.rows[found.version] = found.row()
        csv.DictWriter(self._stream, _COLUMNS).writerow(self.rows[found.version])
        self._stream.flush()

    def list_unreadable(self) -> None:
        """Write unreadable.csv as things stand; without any problem there is no such file."""
        rows = [{"path": path, "reason": why} for path, why in self.unreadable.items()]
        target = self.folder / "unreadable.csv"
        write_rows(target, rows) if rows else target.unlink(missing_ok=True)

    def finish(self, wanted: Iterable[Version] | None) -> None:
        """Write scores.csv: rows of the `wanted` versions in their order; None: of all."""
        if wanted is not None:
            self.rows = {one: self.rows[one] for one in wanted if one in self.rows}
        write_rows(self._finished, list(self.rows.values()), _COLUMNS)
        self.list_unreadable()
        self.close()
        self._partial.unlink()

    def close(self) -> None:
        """Leave the rows as they are, for a later call to continue."""
        self._stream.close()


@contextlib.contextmanager
def open_ledger(folder: Path, card: Mapping[str, Any]) -> Iterator[Ledger]:
    """Hold `folder` alone, continue its rows; ConfigError: it is in use or of another card."""
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        what = f"Another src.predict is writing out={folder}."
        do = "wait for it, or give another folder with out="
        raise ConfigError(what, found=f"{lock.lock_file} is held", do=do) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        what, do = (
            f"Results cannot be written to out={folder}.",
            "give a folder of your own with out=",
        )
        raise ConfigError(what, found=f"{type(error).__name__}: {error}", do=do) from error
    try:
        _claim(folder, card)
        with contextlib.closing(Ledger(folder)) as ledger:
            yield ledger
    finally:
        lock.release()


def _claim(folder: Path, card: Mapping[str, Any]) -> None:
    """Write the card; refuse a folder with results that have another card, or none."""
    earlier: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        earlier = dict(json.loads((folder / CARD).read_text(encoding="utf-8")))
    other = [key for key in card if key != "run" and earlier.get(key) != card[key]]
    if not other:
        return
    if foreign := [name for name in _TABLES if _lines(folder / name).count("\n") > 1]:
        owner = ", ".join(f"{key}={earlier[key]!r}" for key in (*other, "run") if key in earlier)
        raise ConfigError(
            f"out={folder} holds other results, which must not be mixed with new ones.",
            found=f"{' and '.join(foreign)} of {owner or f'a folder without {CARD}'}",
            do="give another folder with out=, or remove this one if you no longer need it",
        )
    write_text(folder / CARD, json.dumps(card, indent=2) + "\n")


def _lines(path: Path) -> str:
    """The whole lines of a file; what a killed process left of its last one is dropped."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return text[: text.rfind("\n") + 1]
