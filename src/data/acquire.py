"""A named data set on disk: use it when it is there, else download, verify and unpack it.

Addresses, checksums and image counts live in `conf/data/*.yaml`, because addresses die.
"""

import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from src.data.listing import DEEPEST, holders, list_images, missing
from src.errors import DataError, DownloadError

# What tarfile, zipfile and their decompressors raise on damaged input. OSError: gzip and bz2.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, ValueError,
           RuntimeError, NotImplementedError, OSError)  # fmt: skip

Counts = Mapping[str, Mapping[str, int]]  # category -> folder in it -> number of images
Archive = Mapping[str, Any]  # `file` and `mirrors` (url, checksum)


def prepare_archives(
    root: Path,
    category: str,
    *,
    data_set: str,
    download: bool,
    archives: Mapping[str, Archive],
    categories: Sequence[str],
    holds: Sequence[str],
    counts: Counts | None,
    page: str,
    licence: str,
) -> None:
    """Make sure that `category` lies below `root`; safe when several processes ask at once.

    conf/base/archives.yaml explains the arguments. An archive may bring folders of its own above
    the paths it `holds`; one placed below `root` by hand is used instead of the network.

    Raises:
        DataError: not there and not to be downloaded, or something is in the way.
        DownloadError: it could not be fetched, verified or unpacked.
    """
    paths = [path.format(category=category) for path in holds]
    usable = [archives[name] for name in (category, "all") if name in archives]
    placed = [archive for archive in usable if (root / archive["file"]).is_file()]
    if _complete(root, paths) or not (download or placed):
        return  # the index says what is missing
    if category not in categories:
        raise missing(root, data_set, paths[0], category, categories)
    if (root / category).exists():
        found = f"missing {', '.join(p for p in paths if not (root / p).exists())}"
        do = "move that folder away and run again to download it, or complete it by hand"
        raise DataError(f"{root / category} is there but not complete.", found=found, do=do)
    if not usable:
        what = f"{data_set} has to be fetched by a person."
        do = f"read its licence ({licence}) at {page}, get it there, and unpack it into {root}"
        raise DataError(what, found=f"no {paths[0]} at or below {root}", do=do)
    failure = None
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".download.lock")
    with ExitStack() as held:
        try:
            held.enter_context(lock.acquire(timeout=0))
        except Timeout:
            tqdm.write(f"waiting for another process that downloads to {root}")
            held.enter_context(lock.acquire())
        for archive in placed or usable:
            if _complete(root, paths):
                return
            try:
                _install(root, archive, paths, counts or {}, page)
            except DownloadError as error:
                failure = error
    if failure and not _complete(root, paths):
        raise failure


def _complete(folder: Path, paths: Sequence[str]) -> Path | None:
    """The folder at or below `folder` that holds all paths of a category."""
    bases = holders(folder, paths[0], depth=DEEPEST)
    return next((base for base in bases if all((base / path).exists() for path in paths)), None)


def _install(root: Path, archive: Archive, paths: Sequence[str], counts: Counts, page: str) -> None:
    """Fetch one archive, unpack it beside the data, check it, and move its folders in place."""
    from src.data.download import fetch, require_space  # slow to load, rarely needed

    file = root / archive["file"]
    placed = file.exists()
    mirrors = [(None if placed else m["url"], m.get("checksum")) for m in archive["mirrors"]]
    checksum = next((f" ({known})" for _, known in mirrors if known), "")
    fetch(mirrors, file, advice=(
        f"(1) get {file.name}{checksum} from {page} or a colleague; (2) put it at {file}; (3) run "
        "the same command again, it will be verified and unpacked. Or unpack it yourself into "
        f"{root}. Addresses can be changed with data.archives (conf/data)."
    ))  # fmt: skip
    size = file.stat().st_size
    require_space(root, int(1.1 * size), f"unpack {file.name}")  # ours: images hardly compress
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".unpack-", dir=root) as scratch,
            tqdm(desc=f"unpack {file.name}", unit="B", unit_scale=True) as bar,
        ):
            # ours: 20-fold is beyond any data set of images and short of a bomb
            unpack(file, Path(scratch), max_bytes=20 * size + 10**9, progress=bar.update)
            base = _complete(Path(scratch), paths)
            if base is None:
                there = sorted(path.name for path in Path(scratch).iterdir())
                what = f"{file} does not hold the data set."
                do = f"delete {file.name} and correct data.archives in conf/data"
                raise DownloadError(what, found=", ".join(there[:8]) or "nothing", do=do)
            _check_counts(base, counts)
            for entry in sorted(base.iterdir()):
                if not (root / entry.name).exists():
                    entry.rename(root / entry.name)
    finally:
        if not placed:  # unpacked, or not worth keeping; a file placed by hand is left alone
            file.unlink()


def _check_counts(base: Path, counts: Counts) -> None:
    """Compare the unpacked categories with the published numbers of images."""
    for category, parts in counts.items():
        for part, expected in parts.items() if (base / category).is_dir() else ():
            found = len(list_images(base / category / part, recursive=True))
            if found != expected:
                raise DownloadError(
                    f"The archive of {category} is not complete.",
                    found=f"{found} images in {category}/{part}, expected {expected}",
                    do="delete the archive and run again; another mirror may be better",
                )


def unpack(
    archive: Path, target: Path, *, max_bytes: int, progress: Callable[[int], object]
) -> None:
    """Unpack a tar (any compression) or zip archive, which nobody trusts, into the folder `target`.

    Only plain files and folders below it are written, and never more than `max_bytes`; `progress`
    is told of each file's. The caller removes `target` when this fails. DownloadError: not an
    archive, damaged, unsafe members, or larger than `max_bytes`.
    """
    left = max_bytes
    target.mkdir(parents=True, exist_ok=True)

    def unsafe(found: str) -> DownloadError:
        what = f"{archive} is not safe to unpack; nothing of it was kept."
        do = "delete the file, and check where it came from before trying again"
        return DownloadError(what, found=found, do=do)

    def account(name: str, size: int) -> None:
        nonlocal left
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name.split("/")[0]:
            raise unsafe(f"the name {name!r}")
        left -= size
        if left < 0:
            raise unsafe(f"more than {max_bytes / 1e9:.2f} GB unpacked")
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
                    raise unsafe(f"a link or special file, {member.name!r}")
                account(member.name, member.size)
                tar.extract(member, target, filter="data")
            # Compressed files carry their checksum at the very end, after tar's own end mark.
            while tar.fileobj is not None and tar.fileobj.read(1 << 20):
                pass
    except _DAMAGE as error:
        what = f"{archive} cannot be unpacked."
        do = "delete the file and run again to fetch it anew"
        raise DownloadError(what, found=f"{type(error).__name__}: {error}", do=do) from error
