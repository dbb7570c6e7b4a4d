"""Data sets on Zenodo: addresses and checksums are asked of the record when they are needed.

The record's metadata (https://zenodo.org/api/records/<id>) lists `files`, each with `key` (the file
name), `checksum` ("md5:...") and `links.self`. The layout inside the archives is found by contents.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from src.data.archives import unpack
from src.data.download import Mirror, fetch, require_space
from src.errors import DownloadError


def prepare_zenodo(
    root: Path,
    category: str,
    *,
    download: bool,
    record: str,
    archive: str,
    holds: Callable[[Path], bool],
    page: str,
) -> None:
    """Make sure that the data set lies below `root`; safe when several processes ask at once.

    Args:
        root: folder of the data set.
        category: ignored; the archive holds one.
        download: whether the network may be used.
        record: address of the record's metadata.
        archive: file name in the record; one placed in `root` by hand is used instead.
        holds: whether the data set lies somewhere below a folder.
        page: where a person can get it.

    Raises:
        DownloadError: it could not be fetched, verified or unpacked, or holds something else.
    """
    file = root / archive
    if holds(root) or not (download or file.is_file()):
        return  # if it is missing, the index says so
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".download.lock"):
        if holds(root):
            return
        placed = file.is_file()
        scratch = Path(tempfile.mkdtemp(prefix=".unpack-", dir=root))
        try:
            if not placed:
                _fetch(record, file, scratch, page)
            _unpack(file, scratch / "content", holds)
            for entry in sorted((scratch / "content").iterdir()):
                if not (root / entry.name).exists():
                    entry.rename(root / entry.name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if not placed:
            file.unlink()


def find_file(metadata: Path, archive: str) -> Mirror:
    """Address and checksum of `archive` in a record's metadata.

    Raises:
        DownloadError: not the metadata of a record, or no such file in it.
    """
    try:
        files = {entry["key"]: entry for entry in json.loads(metadata.read_text())["files"]}
        if archive in files:
            entry = files[archive]
            return Mirror(entry["links"]["self"], entry["checksum"])
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(
            "Zenodo's answer is not the metadata of a record.",
            found=f"{type(error).__name__}: {error}",
            do="check data.record: https://zenodo.org/api/records/<number>",
        ) from error
    raise DownloadError(
        f"The Zenodo record has no file {archive}.",
        found=", ".join(sorted(files)) or "no files at all",
        do="set data.archive to one of them",
    )


def _fetch(record: str, file: Path, scratch: Path, page: str) -> None:
    advice = (
        f"get {file.name} from {page} with a browser, put it at {file} and run the same command "
        "again"
    )
    metadata = fetch([Mirror(record, None)], scratch / "record.json", advice=advice)
    fetch([find_file(metadata, file.name)], file, advice=advice)


def _unpack(file: Path, target: Path, holds: Callable[[Path], bool]) -> None:
    target.mkdir()
    size = file.stat().st_size
    require_space(target, 2 * size, f"unpack {file.name}")  # ours: images hardly compress
    unpack(file, target, max_bytes=20 * size + 10**9)
    if not holds(target):
        raise DownloadError(
            f"{file} does not hold the data set.",
            found=", ".join(sorted(entry.name for entry in target.iterdir())[:8]) or "nothing",
            do="delete the file and check data.record and data.archive",
        )
