"""What is in a file, as a hash that is remembered until the file changes.

Reading 100 000 photographs takes minutes, asking for their sizes and times half a second. So the
hash is kept with size and times in the user's cache, as it is true for one machine only; each
folder of images has one file, replaced as a whole: locks do not work on every network home.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from src.errors import DataError
from src.files import write_text

#: ours: a file younger than this may change again without its times showing it (FAT: 2 s).
_SETTLED_NS = 2 * 10**9
_DIGITS = 32  # 128 bits: no two different files meet by chance


def content_hashes(paths: Iterable[Path]) -> dict[str, str]:
    """Path, as text -> 32 hex digits for the bytes of the file; DataError: it cannot be read."""
    files = list(dict.fromkeys(map(str, paths)))  # hashing 100 000 Paths would take a second
    if not files:
        return {}
    # One memory for each folder that holds all of `files`.
    shared = os.path.commonpath([os.path.dirname(path) for path in (min(files), max(files))])  # noqa: PTH120
    name = hashlib.sha256(os.fsencode(shared)).hexdigest()[:16]
    users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "goodparts"
    place = Path(os.environ.get("CACHE_DIR", "").strip() or users).expanduser()
    memory, now, remembered = place / "contents" / f"{name}.json", time.time_ns(), {}
    with contextlib.suppress(OSError, ValueError, AttributeError):  # else all is hashed anew
        known = json.loads(memory.read_text(encoding="utf-8")).items()
        remembered = {path: entry for path, entry in known if isinstance(entry, str)}
    try:
        stamps = {path: _stamp(path) for path in files}
        fresh = [p for p in files if remembered.get(p, "")[:-_DIGITS] != f"{stamps[p]} "]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            hashes = dict(zip(fresh, pool.map(_hash, fresh), strict=True))
        settled = [  # old enough when they were read, and not written meanwhile
            path
            for path in fresh
            if int(stamps[path].split()[-1]) < now - _SETTLED_NS and _stamp(path) == stamps[path]
        ]
    except OSError as error:
        what = f"{error.filename} cannot be read."
        do = "repair or remove it, or allow this user to read it"
        raise DataError(what, found=error.strerror or str(error), do=do) from error
    if settled:
        remembered |= {path: f"{stamps[path]} {hashes[path]}" for path in settled}
        with contextlib.suppress(OSError):  # a read-only or full home: hashed again next time
            write_text(memory, json.dumps(remembered))
    return {path: hashes.get(path) or remembered[path][-_DIGITS:] for path in files}


def _stamp(path: str) -> str:
    facts = os.stat(path)  # noqa: PTH116  half the time of Path.stat
    return f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"


def _hash(path: str) -> str:
    with open(path, "rb") as stream:  # noqa: PTH123
        return hashlib.file_digest(stream, "sha256").hexdigest()[:_DIGITS]
