"""Unpack downloaded archives without trusting them."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from src.errors import DownloadError

# What tarfile, zipfile and their decompressors raise on damaged input. OSError: gzip and bz2.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, ValueError,
           RuntimeError, NotImplementedError, OSError)  # fmt: skip
Progress = Callable[[int], object]  # told of each file's bytes


def unpack(archive: Path, target: Path, *, max_bytes: int, progress: Progress) -> None:
    """Unpack a tar (any compression) or zip archive into the folder `target`.

    Only plain files and folders below the target are written (Python's "data" filter), and never
    more than `max_bytes`. The caller removes `target` when this fails.

    Raises:
        DownloadError: not an archive, damaged, unsafe members, or larger than `max_bytes`.
    """
    left = max_bytes
    target.mkdir(parents=True, exist_ok=True)

    def account(name: str, size: int) -> None:
        nonlocal left
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name.split("/")[0]:
            raise _unsafe(archive, f"the name {name!r}")
        left -= size
        if left < 0:
            raise _unsafe(archive, f"more than {max_bytes / 1e9:.2f} GB unpacked")
        progress(size)

    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for entry in packed.infolist():  # a link in a zip becomes a plain text file
                    account(entry.orig_filename, entry.file_size)
                    packed.extract(entry, target)
            return
        with tarfile.open(archive, mode="r:*") as tar:
            for member in tar:
                if not (member.isreg() or member.isdir()):
                    raise _unsafe(archive, f"a link or special file, {member.name!r}")
                account(member.name, member.size)
                tar.extract(member, target, filter="data")
            # Compressed files carry their checksum at the very end, after tar's own end mark.
            while tar.fileobj is not None and tar.fileobj.read(1 << 20):
                pass
    except _DAMAGE as error:
        raise DownloadError(
            f"{archive} cannot be unpacked.",
            found=f"{type(error).__name__}: {error}",
            do="delete the file and run again to fetch it anew",
        ) from error


def _unsafe(archive: Path, found: str) -> DownloadError:
    return DownloadError(
        f"{archive} is not safe to unpack; nothing of it was kept.",
        found=found,
        do="delete the file, and check where it came from before trying again",
    )
