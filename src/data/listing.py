"""Which files below a folder are images: every one, once, and nothing passed over in silence."""

import glob
import heapq
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from PIL import features

from src.errors import DataError, did_you_mean

#: What this Pillow decodes by itself (EPS would start another program), and its file names.
FORMATS = {
    "PNG": (".png",), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"), "GIF": (".gif",), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    **({"WEBP": (".webp",)} if features.check("webp") else {}),
    **({"AVIF": (".avif",)} if features.check("avif") else {}),
    **({"JPEG2000": (".jp2", ".j2k")} if features.check("jpg_2000") else {}),
}  # fmt: skip
EXTENSIONS = tuple(chain(*FORMATS.values()))  # in any letter case
# Pictures that are not read; they are named, so that nobody takes them for part of the data set.
_FOREIGN = {
    ".avif", ".webp", ".jp2", ".j2k", ".jpx", ".jxl", ".jxr", ".heic", ".heif", ".hif", ".svg",
    ".eps", ".psd", ".xcf", ".ico", ".icns", ".tga", ".dds", ".exr", ".hdr", ".pfm", ".pcx", ".sgi",
    ".dcm", ".fits", ".czi", ".npy", ".npz", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf",
    ".rw2", ".raf", ".pef", ".mpo",
} - set(EXTENSIONS)  # fmt: skip
DEEPEST = 4  # ours: folders between data.root and a data set; archives bring one or two
_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Listing:
    """Files below a folder, each list in natural order."""

    images: list[Path]
    foreign: list[Path]  # pictures of a type that is not read
    broken: list[Path]  # named like an image, but no file: links to nowhere, devices


def natural_key(path: Path | str) -> tuple[str, str]:
    """Sort key that puts 9.png before 10.png; ties in letter case are broken by the raw name."""
    name = str(path)
    return _NUMBER.sub(lambda digits: digits[0].zfill(20), name.lower()), name


def list_images(directory: Path, *, recursive: bool = False) -> list[Path]:
    """Images in a folder in natural order; an absent folder has none, hidden ones are skipped."""
    return walk(directory, recursive=recursive).images


def walk(folder: Path, *, skip: Collection[Path] = (), recursive: bool = True) -> Listing:
    """Every visible file below `folder`, which may be absent, that is a picture.

    Links to folders are followed. A folder that is reached twice counts once, under its own path if
    that lies below `folder`; links back to `folder` or above it lead nowhere new. Those in `skip`
    are left out, whatever path leads there. DataError: a folder that must not be read.
    """
    listing = Listing([], [], [])
    above = folder.resolve().parents
    seen = {_identity(path) for path in (*skip, *above) if path.is_dir()}
    waiting = [(False, natural_key(folder), folder)] if folder.is_dir() else []
    while waiting:  # in natural order, links last
        place = heapq.heappop(waiting)[2]
        try:
            if (identity := _identity(place)) in seen:
                continue
            seen.add(identity)
            with os.scandir(place) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except FileNotFoundError:  # removed while we looked
            continue
        except OSError as error:
            what = f"The folder {place} cannot be read, so its images would be missed."
            do = "allow reading it (chmod u+rx), or move it out of the data set"
            raise DataError(what, found=error.strerror or str(error), do=do) from error
        for entry in visible:
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122  a tenth of Path's time
            path = place / entry.name
            if entry.is_dir():
                if recursive:
                    heapq.heappush(waiting, (entry.is_symlink(), natural_key(path), path))
            elif suffix in _FOREIGN:
                listing.foreign.append(path)
            elif suffix in EXTENSIONS:
                (listing.images if entry.is_file() else listing.broken).append(path)
    for found in (listing.images, listing.foreign, listing.broken):
        found.sort(key=natural_key)
    return listing


def _identity(folder: Path) -> tuple[int, int]:
    """The same for every path of one folder."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def holders(root: Path, inside: str, *, depth: int) -> Iterator[Path]:
    """Visible folders that hold the path `inside`: `root`, then those up to `depth` below it."""
    for level in range(depth + 1):
        hits = sorted(root.glob("*/" * level + glob.escape(inside)), key=natural_key)
        for folder in (path.parents[inside.count("/")] for path in hits):
            if not any(part.startswith((".", "__")) for part in folder.relative_to(root).parts):
                yield folder


def find_root(root: Path, data_set: str, inside: str) -> Path:
    """The one folder at or below `root` that holds the path `inside`, else a DataError."""
    found = list(holders(root, inside, depth=DEEPEST))
    if len(found) > 1 and root not in found:
        what = f"{data_set} is there more than once below {root}."
        raise DataError(what, found=", ".join(map(str, found)), do="set data.root to one of them")
    if not found:
        raise missing(root, data_set, f"{root}/.../{inside}")
    return found[0]


def category_folder(root: Path, category: str, inside: str, data_set: str) -> Path:
    """The folder `category` at or one below `root`; `inside` is what every category holds.

    DataError: no such root or category, with the nearest names that exist.
    """
    wanted = next(holders(root, f"{category}/{inside}", depth=1), None)
    if wanted is not None:
        return wanted / category
    found = {folder.name for folder in holders(root, inside, depth=2) if folder != root}
    raise missing(root, data_set, str(root / category), category, found)


def missing(
    root: Path, data_set: str, expected: str, category: str = "", known: Collection[str] = ()
) -> DataError:
    """The error for a data set that is not there at all, or not this one of the `known` parts."""
    if known:
        what = f"{data_set} has no category {category!r} in {root}."
        do = f"{did_you_mean(category, known)} Set data.category to it."
        return DataError(what, found=", ".join(sorted(known, key=natural_key)), do=do)
    there = [entry.name for entry in sorted(root.iterdir())[:8]] if root.is_dir() else []
    return DataError(
        f"{data_set} was not found; expected {expected}.",
        found=f"{root} with {', '.join(there) or 'nothing'} in it"
        if root.is_dir()
        else f"no folder {root}",
        do="set data.root to the folder of the data set, or DATA_DIR in .env to the folder above "
        "it; or set data.download=true where the data set can be downloaded",
    )


def no_images(folder: Path) -> DataError:
    """The error for a folder that must not be empty, with what is there instead."""
    there = walk(folder)
    if there.images:
        found = f"its {len(there.images)} images belong to another folder of the configuration"
    elif there.foreign:
        found = f"{len(there.foreign)} pictures of a type that is not read, {there.foreign[0].name}"
    else:
        found = "no image in it" if folder.is_dir() else "no such folder"
    return DataError(
        f"There are no images in {folder}.",
        found=found,
        do=f"put images there ({' '.join(EXTENSIONS)}), or correct the path (data.root and the "
        "folders below it)",
    )
