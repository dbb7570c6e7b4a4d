"""Writing files so that nobody ever meets half of one, whatever is in a file name."""

from __future__ import annotations

import contextlib
import csv
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: How bytes of a file name that are not UTF-8 are written: the byte FC becomes `\udcfc`, as in
#: JSON and in Python's own messages. In a Python string that text names the same file again.
ESCAPE = "backslashreplace"


def shown(path: Path | str) -> str:
    """A path, or text that holds one, as every file and console can take it; see `ESCAPE`."""
    text = path if isinstance(path, str) else path.as_posix()
    return text.encode(errors=ESCAPE).decode()


def write_text(path: Path, text: str) -> None:
    """Write a text file so that no reader ever sees half of it."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=ESCAPE)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Write a CSV file atomically, one mapping a row; `columns` are needed without rows only."""
    with (
        atomic(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors=ESCAPE) as stream,
    ):
        writer = csv.DictWriter(stream, list(rows[0]) if rows else columns)
        writer.writeheader()
        writer.writerows(rows)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The start of the name only: with it whole, the longest names a disk allows would not fit.
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".partial"
    )
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)  # mkstemp makes private files; results are meant to be shared
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
