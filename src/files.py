"""Writing files so that nobody ever meets half of one, whatever is in a file name."""

import contextlib
import csv
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

#: How bytes of a file name that are not UTF-8 are written: the byte FC becomes `\udcfc`, as in
#: JSON and in Python's own messages. In a Python string that text names the same file again.
ESCAPE = "backslashreplace"
_LINE_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # and other control characters
_LONGEST_NAME = 255  # bytes; what common file systems allow


def shown(path: Path | str) -> str:
    r"""A path or name as one printable line; bytes that are not UTF-8 are written as `\udcfc`."""
    text = path if isinstance(path, str) else path.as_posix()
    text = _LINE_BREAKS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return text.encode(errors=ESCAPE).decode()


def fitting(path: Path) -> Path:
    """`path`, or one with a shorter name where a disk would refuse it as too long."""
    name = os.fsencode(path.name)
    if len(name) <= _LONGEST_NAME:
        return path
    start = os.fsdecode(name[: _LONGEST_NAME - 40]).encode(errors="ignore").decode()
    return path.with_name(f"{start}-{hashlib.sha256(name).hexdigest()[:16]}{path.suffix[:20]}")


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
