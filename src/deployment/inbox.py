"""Which images to score: a file, a folder, a glob, or a folder that is still filling up."""

import functools
import glob
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from src.data.listing import EXTENSIONS, list_images, natural_key
from src.deployment.ledger import CARD, Version
from src.errors import DataError
from src.files import shown

log = logging.getLogger(__name__)


def find_images(pattern: str) -> tuple[Path, list[Path]]:
    """Common parent folder and the images that `pattern` names, in natural order.

    Folders that this program made are left out, with a word, unless the pattern begins inside of
    them. DataError: nothing there, or no image among it.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        root, found = path, list_images(path, recursive=True)
    else:
        hits = sorted((hit for hit in _matches(path) if hit.is_file()), key=natural_key)
        found = [hit for hit in hits if hit.suffix.lower() in EXTENSIONS]
        folders = [hit.absolute().parent for hit in found]
        root = Path(os.path.commonpath(folders)) if folders else path
    if images := _without_ours(found, root, set()):
        return root, images
    there = "no file of a known type, or results of earlier calls only"
    what = f"There are no images at {pattern}."
    do = f"give a file, folder or quoted glob; known types: {', '.join(EXTENSIONS)}"
    raise DataError(what, found=there if path.exists() or found else "nothing there", do=do)


def _matches(path: Path) -> list[Path]:
    """What a glob matches; `line [7]/*.png` also the images of a folder `line [7]`."""
    start = next(folder for folder in path.parents if folder.is_dir() or folder == Path())
    below = str(path.relative_to(start))
    for pattern in (below, below.replace("[", "[[]")):
        hits = glob.glob(str(Path(glob.escape(str(start))) / pattern), recursive=True)  # noqa: PTH207
        if hits:
            return [Path(hit) for hit in hits]
    return []


def watch(folder: Path, pause_s: float, idle_s: float | None) -> Iterator[list[Path]]:
    """Batches of images as they appear in `folder` or are written again there.

    A file counts once its size and time stand still between two looks. Ends after `idle_s` seconds
    of the monotonic clock without a new image; None: never.
    """
    given: dict[Path, Version] = {}
    before: dict[Path, Version] = {}
    skipped: set[Path] = set()
    last_new = time.monotonic()
    while idle_s is None or time.monotonic() - last_new < idle_s:
        paths = _without_ours(list_images(folder, recursive=True), folder, skipped)
        now = {path: Version.of(path, path.name) for path in paths}
        still = {path: one for path, one in now.items() if one.bytes and before.get(path) == one}
        ready = {path: one for path, one in still.items() if given.get(path) != one}
        before = now
        if ready:
            given |= ready
            last_new = time.monotonic()
            yield list(ready)
        else:
            time.sleep(pause_s)


def _without_ours(paths: Sequence[Path], root: Path, skipped: set[Path]) -> list[Path]:
    """`paths` without what `src.predict` and runs wrote; such folders are said once (`skipped`)."""
    top = root.absolute()

    @functools.cache
    def holder(folder: Path) -> Path | None:
        """The folder of ours that `folder` is or lies in, if any below `top`."""
        up = None if folder in (top, folder.parent) else holder(folder.parent)
        run = all((folder / name).is_file() for name in ("config.yaml", "manifest.json"))
        return up or (folder if run or (folder / CARD).is_file() else None)

    holders = {path: holder(path.absolute().parent) for path in paths}
    for folder in sorted({found for found in holders.values() if found} - skipped):
        log.warning("Skipping %s: it holds results, not images to score.", shown(folder))
        skipped.add(folder)
    return [path for path in paths if holders[path] is None]
