"""Which images to score: a file, a folder, a glob, or a folder that is still filling up."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator
from pathlib import Path

from src.data.images import EXTENSIONS, list_images, natural_key
from src.errors import DataError


def find_images(pattern: str) -> tuple[Path, list[Path]]:
    """Common parent folder and the images that `pattern` names, in natural order.

    Raises:
        DataError: nothing there, or no image among it.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        found = list_images(path, recursive=True)
        return path, _some(found, pattern)
    hits = sorted(
        (Path(hit) for hit in glob.glob(str(path), recursive=True) if Path(hit).is_file()),  # noqa: PTH207
        key=natural_key,
    )
    found = [hit for hit in hits if hit.suffix.lower() in EXTENSIONS]
    return _common_parent(_some(found, pattern)), found


def watch(folder: Path, pause_s: float, idle_s: float | None) -> Iterator[list[Path]]:
    """Batches of images as they appear in `folder`; a file counts once its size stands still.

    Ends after `idle_s` seconds without a new image; None: never. Times come from the monotonic
    clock, so a change of the wall clock neither ends nor prolongs the watch.
    """
    seen: set[Path] = set()
    sizes: dict[Path, int] = {}
    last_new = time.monotonic()
    while idle_s is None or time.monotonic() - last_new < idle_s:
        ready = []
        for path in list_images(folder, recursive=True):
            if path in seen:
                continue
            size = _size(path)
            if size and sizes.get(path) == size:
                ready.append(path)
            sizes[path] = size
        if ready:
            seen.update(ready)
            last_new = time.monotonic()
            yield ready
        else:
            time.sleep(pause_s)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # moved away between listing and looking
        return 0


def _common_parent(paths: list[Path]) -> Path:
    parents = [path.absolute().parent for path in paths]
    common = parents[0]
    while not all(parent.is_relative_to(common) for parent in parents):
        common = common.parent
    return common


def _some(found: list[Path], pattern: str) -> list[Path]:
    if not found:
        raise DataError(
            f"There are no images at {pattern}.",
            found="nothing there" if not Path(pattern).exists() else "no file of a known type",
            do=f"give a file, folder or quoted glob; known types: {', '.join(EXTENSIONS)}",
        )
    return found
