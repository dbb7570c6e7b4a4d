"""Fetch one file from a list of mirrors: resumed, verified, and never half there.

Uses only the standard library; proxies come from the usual environment variables.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from tqdm import tqdm

from src.errors import DownloadError

_BLOCK = 1 << 18
#: Seconds without a byte after which a connection counts as dead.
STALL_S = 30.0
#: Tries per mirror; each continues where the last one stopped.
TRIES = 4
#: First pause between tries in seconds; doubled each time, never above `MAX_PAUSE_S`.
PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
_AGENT = "goodparts (data set download)"
_RETRY = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Mirror:
    """One address of a file; `checksum` is "sha256:..." or "md5:...", None when unpublished."""

    url: str | None  # None: no address, only a checksum for a file placed by hand
    checksum: str | None


class _FailureError(Exception):
    """This try, or (`final`) this mirror, did not work; the text says why."""

    def __init__(self, reason: str, *, final: bool = False, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.final, self.pause = final, pause


def fetch(mirrors: Sequence[Mirror], target: Path, *, advice: str) -> Path:
    """Download to `target` unless it is already there and verified.

    An unfinished `target.partial` is continued. The file appears under its own name only when it
    is complete and its checksum agrees.

    Args:
        mirrors: tried in order.
        target: file to write.
        advice: what a person can do by hand, for the error when every mirror fails.

    Raises:
        DownloadError: every mirror failed, or the disk is too small.
    """
    known = [mirror.checksum for mirror in mirrors if mirror.checksum]
    if target.is_file() and (not known or any(_matches(target, sum_) for sum_ in known)):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    reasons = [f"{target} has another checksum"] if target.is_file() else []
    for mirror in mirrors:
        if mirror.url is None:
            continue
        try:
            _from_mirror(mirror.url, mirror.checksum, target)
        except _FailureError as failure:
            reasons.append(f"{mirror.url}: {failure}")
        else:
            return target
    raise DownloadError(
        f"{target.name} could not be downloaded.",
        found="; ".join(reasons) or "no address in the configuration",
        do=advice,
    )


def checksum(path: Path, kind: str) -> str:
    """Hexadecimal digest of a file; kind sha256 or md5."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise DownloadError when the disk of `folder` has less than `needed` free bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"There is not enough disk space to {purpose}.",
            found=f"{free / 1e9:.1f} GB free at {folder}, {needed / 1e9:.1f} GB needed",
            do="free some space, or set data.root (or DATA_DIR in .env) to a larger disk",
        )


# --- one mirror -----------------------------------------------------------------------------


def _from_mirror(url: str, expected: str | None, target: Path) -> None:
    """All tries of one mirror; raises _FailureError."""
    # Mirrors may hold different packings of one data set: only equal files may continue each other.
    key = hashlib.sha256((expected or url).encode()).hexdigest()[:8]
    partial = target.with_name(f"{target.name}.{key}.partial")
    pause = PAUSE_S
    for attempt in range(TRIES):
        try:
            resumed = _transfer(url, partial)
            _verify(partial, expected, resumed=resumed)
        except _FailureError as failure:
            if failure.final or attempt == TRIES - 1:
                raise
            time.sleep(min(max(pause, failure.pause), MAX_PAUSE_S))
            pause *= 2
        else:
            partial.replace(target)
            return


def _verify(partial: Path, expected: str | None, *, resumed: bool) -> None:
    """A wrong checksum spoils the whole file; only when it came in one piece, the mirror too."""
    if expected is None or _matches(partial, expected):
        return
    kind = expected.partition(":")[0]
    found = checksum(partial, kind)
    partial.unlink()
    raise _FailureError(f"its {kind} is {found}, expected {expected}", final=not resumed)


def _matches(path: Path, expected: str) -> bool:
    kind, _, digest = expected.partition(":")
    return checksum(path, kind) == digest.lower()


def _transfer(url: str, partial: Path) -> bool:
    """One connection: continue `partial` to its end; whether earlier bytes were kept."""
    done = partial.stat().st_size if partial.is_file() else 0
    headers = {"User-Agent": _AGENT} | ({"Range": f"bytes={done}-"} if done else {})
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=STALL_S) as answer:
            start = _start(answer.status, answer.headers, done)
            total = _total(answer.headers, start)
            if total is not None:
                require_space(partial.parent, total - start, f"download {partial.name}")
            _copy(answer, partial, start, total)
            return start > 0
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing left to send, or the file changed: begin again
            partial.unlink(missing_ok=True)
            raise _FailureError("the server has no such range") from error
        raise _refused(error) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        final = isinstance(error, ValueError)  # not an address at all
        reason = getattr(error, "reason", None) or error
        raise _FailureError(f"{type(reason).__name__}: {reason}", final=final) from error


def _refused(error: urllib.error.HTTPError) -> _FailureError:
    wait = error.headers.get("Retry-After", "") if error.headers else ""
    pause = float(wait) if wait.isdigit() else 0.0
    return _FailureError(
        f"HTTP {error.code} {error.reason}", final=error.code not in _RETRY, pause=pause
    )


def _start(status: int, headers: Message, done: int) -> int:
    """Where the answer begins: `done` when the server continues, 0 when it starts anew."""
    if headers.get("Content-Type", "").startswith("text/html"):
        raise _FailureError("a web page instead of the file", final=True)
    if status != 206:
        return 0
    if not headers.get("Content-Range", "").startswith(f"bytes {done}-"):
        raise _FailureError("the server continued at another place", final=True)
    return done


def _total(headers: Message, start: int) -> int | None:
    length = headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _copy(answer: http.client.HTTPResponse, partial: Path, start: int, total: int | None) -> None:
    """Body to disk, with a progress bar; a short body is a failure."""
    with (
        partial.open("r+b" if start else "wb") as out,
        tqdm(total=total, initial=start, desc=partial.stem, unit="B", unit_scale=True) as bar,
    ):
        out.seek(start)
        out.truncate()
        while block := answer.read(_BLOCK):
            out.write(block)
            bar.update(len(block))
        size = out.tell()
    if total is not None and size != total:
        raise _FailureError(f"the connection ended after {size} of {total} bytes")
