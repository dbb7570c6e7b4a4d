"""A named data set on disk: use it when it is there, else download, verify and unpack it.

Addresses, checksums and image counts live in `conf/data/*.yaml`, because addresses die: a user can
change them there or on the command line.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from src.data.archives import unpack
from src.data.download import Mirror, fetch, require_space
from src.data.images import list_images
from src.data.layout import content_roots
from src.errors import DataError, DownloadError, did_you_mean

Counts = Mapping[str, int]  # folder below the category -> number of images


def prepare_archives(
    root: Path,
    category: str,
    *,
    data_set: str,
    download: bool,
    archives: Mapping[str, Mapping[str, Any]],
    categories: Sequence[str],
    needs: Sequence[str],
    counts: Mapping[str, Counts] | None,
    page: str,
) -> None:
    """Make sure that `category` lies below `root`; safe when several processes ask at once.

    Args:
        root: folder of the data set.
        category: the one that is wanted.
        data_set: its name in messages.
        download: whether the network may be used.
        archives: by category, or "all" for the whole set: `file` and `mirrors` (url, checksum).
            An archive placed below `root` by hand is used instead of the network.
        categories: that the archives hold.
        needs: paths that make a category complete; {category} is filled in.
        counts: images in each folder of a category, checked after unpacking.
        page: where a person can get the data set.

    Raises:
        DataError: not there and not to be downloaded, or something is in the way.
        DownloadError: it could not be fetched, verified or unpacked.
    """
    paths = [need.format(category=category) for need in needs]
    if _complete(root, paths) or not (download or _placed(root, category, archives)):
        return  # the index says what is missing
    if category not in categories:
        raise DataError(
            f"{data_set} has no category {category!r}.",
            found=", ".join(categories),
            do=f"{did_you_mean(category, categories)} Set data.category, or data.root to your own.",
        )
    if (root / category).exists():
        raise DataError(
            f"{root / category} is there but not complete.",
            found=f"missing {', '.join(p for p in paths if not (root / p).exists())}",
            do="move that folder away and run again to download it, or complete it by hand",
        )
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root):
        if not _complete(root, paths):
            usable = archives if download else _offline(archives)
            _acquire(root, category, paths, usable, counts or {}, data_set, page)


def _acquire(
    root: Path,
    category: str,
    paths: Sequence[str],
    archives: Mapping[str, Mapping[str, Any]],
    counts: Mapping[str, Counts],
    data_set: str,
    page: str,
) -> None:
    """Try the archive of the category, then the whole set; keep the first that is complete."""
    failures: list[DownloadError] = []
    for name in (category, "all"):
        if name not in archives:
            continue
        try:
            _install(root, category, paths, archives[name], counts, page)
        except DownloadError as error:
            failures.append(error)
        else:
            return
    if len(failures) == 1:
        raise failures[0]
    raise DownloadError(
        f"{data_set} could not be downloaded.",
        found="; ".join(f"{error.what} {error.found}" for error in failures) or "no archive listed",
        do=failures[-1].do if failures else f"get it from {page} and set data.root",
    )


def _install(
    root: Path,
    category: str,
    paths: Sequence[str],
    archive: Mapping[str, Any],
    counts: Mapping[str, Counts],
    page: str,
) -> None:
    """Fetch one archive, unpack it beside the data, check it, and move its folders in place."""
    file = root / archive["file"]
    ours = not file.exists()
    mirrors = [Mirror(mirror["url"], mirror.get("checksum")) for mirror in archive["mirrors"]]
    fetch(mirrors, file, advice=_by_hand(file, mirrors, paths[0], page))
    size = file.stat().st_size
    require_space(root, _unpacked_bytes(file), f"unpack {file.name}")
    scratch = Path(tempfile.mkdtemp(prefix=".unpack-", dir=root))
    try:
        with tqdm(desc=f"unpack {file.name}", unit="B", unit_scale=True) as bar:
            # Images hardly compress; 20-fold is beyond any data set and short of a bomb.
            unpack(file, scratch, max_bytes=20 * size + 10**9, progress=bar.update)
        base = next((b for b in content_roots(scratch) if _all_there(b, paths)), None)
        if base is None:
            raise DownloadError(
                f"{file} does not hold {category}.",
                found=", ".join(sorted(entry.name for entry in scratch.iterdir())[:8]),
                do=f"delete {file.name} and correct data.archives in conf/data",
            )
        _check_counts(base, counts)
        for entry in sorted(base.iterdir()):
            if not (root / entry.name).exists():
                entry.rename(root / entry.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if ours:  # unpacked, or not worth keeping; a file placed by hand is left alone
            file.unlink()


def _check_counts(base: Path, counts: Mapping[str, Counts]) -> None:
    """Compare the unpacked categories with the published numbers of images."""
    for category, folders in counts.items():
        for folder, expected in folders.items():
            if not (base / category).is_dir():
                continue
            found = len(list_images(base / category / folder, recursive=True))
            if found != expected:
                raise DownloadError(
                    f"The archive of {category} is not complete.",
                    found=f"{found} images in {category}/{folder}, expected {expected}",
                    do="delete the archive and run again; another mirror may be better",
                )


def _complete(root: Path, paths: Sequence[str]) -> bool:
    return any(_all_there(base, paths) for base in content_roots(root))


def _all_there(base: Path, paths: Sequence[str]) -> bool:
    return all((base / path).exists() for path in paths)


def _placed(root: Path, category: str, archives: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether somebody put an archive into the root by hand."""
    return any((root / archives[n]["file"]).is_file() for n in (category, "all") if n in archives)


def _offline(archives: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same archives with their checksums but without addresses."""
    return {
        name: {
            "file": archive["file"],
            "mirrors": [{"url": None, "checksum": m.get("checksum")} for m in archive["mirrors"]],
        }
        for name, archive in archives.items()
    }


def _unpacked_bytes(file: Path) -> int:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as packed:
            return sum(member.file_size for member in packed.infolist())
    return int(file.stat().st_size * 1.1)  # tar: unknown, but images hardly compress


def _by_hand(file: Path, mirrors: Sequence[Mirror], need: str, page: str) -> str:
    """Step by step, for a person with a browser."""
    sums = [mirror.checksum for mirror in mirrors if mirror.checksum]
    check = f" ({sums[0]})" if sums else ""
    return (
        f"(1) get {file.name}{check} from {page} or a colleague; "
        f"(2) put it at {file}; (3) run the same command again, it will be verified and unpacked. "
        f"Or unpack it yourself so that {file.parent / need} exists. "
        "Addresses can be changed with data.archives (conf/data)."
    )


def _locked(root: Path) -> FileLock:
    """The lock of a data set's folder, with a word while another process holds it."""
    lock = FileLock(root / ".download.lock")
    try:
        lock.acquire(timeout=0)
        lock.release()
    except Timeout:
        tqdm.write(f"waiting for another process that downloads to {root}")
    return lock
