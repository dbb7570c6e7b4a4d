"""Unpack downloaded archives without trusting them.

Member by member: only plain files and folders, only below the target, no file twice, and never
more bytes than agreed, whatever the headers say.
"""

from __future__ import annotations

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from src.errors import DownloadError

_BLOCK = 1 << 20
#: More entries than any data set here has (VisA: 24 000); guards against archives of empty files.
MAX_MEMBERS = 500_000
Progress = Callable[[int], None]  # called with the bytes just written


def unpack(archive: Path, target: Path, *, max_bytes: int, progress: Progress | None = None) -> int:
    """Unpack a tar (any compression) or zip archive into the empty folder `target`.

    Args:
        archive: file to read.
        target: folder to fill; the caller removes it when this fails.
        max_bytes: limit of the unpacked size.
        progress: told of each block written.

    Returns:
        Bytes written.

    Raises:
        DownloadError: not an archive, damaged, unsafe members, or larger than `max_bytes`.
    """
    try:
        members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
        written = 0
        for count, (name, stream) in enumerate(members(archive)):
            if count >= MAX_MEMBERS:
                raise _unsafe(archive, f"more than {MAX_MEMBERS} entries")
            path = target / _safe_name(archive, name)
            if stream is None:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with stream, path.open("xb") as out:  # x: a second file of this name is an attack
                while block := stream.read(_BLOCK):
                    written += len(block)
                    if written > max_bytes:
                        raise _unsafe(archive, f"more than {max_bytes / 1e9:.2f} GB unpacked")
                    out.write(block)
                    if progress is not None:
                        progress(len(block))
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _unsafe(archive, f"two entries for {error.filename}") from error
    except _DAMAGE as error:
        raise DownloadError(
            f"{archive} cannot be unpacked.",
            found=f"{type(error).__name__}: {error}",
            do="delete the file and run again to fetch it anew",
        ) from error
    return written


# What tarfile, zipfile and their decompressors raise on damaged input. OSError: gzip and bz2.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, ValueError,
           RuntimeError, NotImplementedError, OSError)  # fmt: skip


def _tar_members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """(name, stream) of each entry, stream None for a folder; read front to back once."""
    with tarfile.open(archive, mode="r:*") as tar:
        for member in tar:
            if member.isdir():
                yield member.name, None
            elif member.isreg():
                stream = tar.extractfile(member)
                if stream is None:
                    raise _unsafe(archive, f"{member.name} without content")
                yield member.name, stream
            else:
                kinds = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link"}
                kind = kinds.get(member.type, "a device or other special file")
                raise _unsafe(archive, f"{kind}, {member.name!r}")
        # Compressed files carry their checksum at the very end, after tar's own end mark.
        for _ in range(64):
            if tar.fileobj is None or not tar.fileobj.read(_BLOCK):
                break


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """As `_tar_members`; zip keeps Unix file types in the upper half of the attributes."""
    with zipfile.ZipFile(archive) as packed:
        for member in packed.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(archive, f"a link or special file, {member.filename!r}")
            # orig_filename: zipfile itself cuts names at NUL and turns separators around
            yield member.orig_filename, None if member.is_dir() else packed.open(member)


def _safe_name(archive: Path, name: str) -> PurePosixPath:
    """A relative path below the target, or an error."""
    path = PurePosixPath(name)
    foreign = "\\" in name or "\0" in name or ":" in name.split("/")[0]
    if path.is_absolute() or ".." in path.parts or foreign or (not path.parts and name != "."):
        raise _unsafe(archive, f"the name {name!r}")
    return path


def _unsafe(archive: Path, found: str) -> DownloadError:
    return DownloadError(
        f"{archive} is not safe to unpack; nothing of it was kept.",
        found=found,
        do="delete the file, and check where it came from before trying again",
    )
