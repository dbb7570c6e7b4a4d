"""Fetch one file from a list of mirrors: resumed, verified, and never half there.

requests retries a busy server and pooch knows Zenodo; what is added here is that a broken transfer
continues where it stopped, as MVTec AD has 4.9 GB.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import pooch
import requests
from pooch.downloaders import ZenodoRepository
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from src.errors import DownloadError

_BLOCK = 1 << 14  # bytes; what arrived of a block is lost when the connection breaks
STALL_S = 30.0  # without a byte: the connection counts as dead
TRIES = 4  # per mirror; each continues where the last one stopped
PAUSE_S = 1.0  # a busy server is asked again after 0, 2, 4, 8 times this
_AGENT = "goodparts (data set download)"
_BUSY = (408, 425, 429, 500, 502, 503, 504)
ZENODO = "zenodo:"  # zenodo:<record>: address and checksum are asked of the record


#: An address (None: the file is placed by hand) and "sha256:...", "md5:..." or None (unpublished).
Mirror = tuple[str | None, str | None]


def fetch(mirrors: Sequence[Mirror], target: Path, *, advice: str) -> Path:
    """Download to `target` unless it is already there and verified, from the first mirror that can.

    The file appears under its own name only when it is complete and its checksum agrees. `advice`:
    what a person can do by hand. DownloadError: every mirror failed, or the disk is too small.
    """
    known = [checksum for _, checksum in mirrors if checksum]
    if target.is_file() and (not known or any(_matches(target, sum_) for sum_ in known)):
        return target
    reasons = [f"{target} has another checksum"] if target.is_file() else []
    target.parent.mkdir(parents=True, exist_ok=True)
    for url, checksum in mirrors:
        if url is None:
            continue
        try:
            _from_mirror(url, checksum, target)
        except (requests.RequestException, ValueError) as error:
            reasons.append(f"{url}: {error}")
        else:
            return target
    found = "; ".join(reasons) or "no address in the configuration"
    raise DownloadError(f"{target.name} could not be downloaded.", found=found, do=advice)


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise DownloadError when the disk of `folder` has less than `needed` free bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        found = f"{free / 1e9:.1f} GB free at {folder}, {needed / 1e9:.1f} GB needed"
        do = "free some space, or set data.root (or DATA_DIR in .env) to a larger disk"
        raise DownloadError(f"There is not enough disk space to {purpose}.", found=found, do=do)


def _from_mirror(url: str, checksum: str | None, target: Path) -> None:
    if url.startswith(ZENODO):
        url, checksum = _on_zenodo(url.removeprefix(ZENODO), target.name)
    # Mirrors may hold different packings of one data set: only equal files may continue each other.
    key = hashlib.sha256((checksum or url).encode()).hexdigest()[:8]
    partial = target.with_name(f"{target.name}.{key}.partial")
    again = partial.is_file()  # a damaged remainder of an earlier run must not blame the mirror
    _continue(url, partial)
    if again and not _matches(partial, checksum):
        partial.unlink()
        _continue(url, partial)
    if not _matches(partial, checksum):
        partial.unlink()
        raise ValueError(f"the hash of downloaded file {target.name} is not {checksum}")
    partial.replace(target)


def _on_zenodo(record: str, name: str) -> tuple[str, str]:
    """Address and md5 of a file of a Zenodo record, as its metadata say today."""
    repository = ZenodoRepository(
        doi=record, archive_url=f"https://zenodo.org/records/{record}", timeout=STALL_S
    )
    known = pooch.create(path="", base_url="")
    try:
        repository.populate_registry(known)
    except (KeyError, TypeError) as error:
        raise ValueError("the answer is not the metadata of a Zenodo record") from error
    if name not in known.registry:
        raise ValueError(f"the Zenodo record has no {name}, it has {sorted(known.registry)}")
    return repository.download_url(name), known.registry[name]


def _matches(path: Path, checksum: str | None) -> bool:
    """Whether a file is the one that was published; any is where no checksum was."""
    kind, _, digest = (checksum or "").partition(":")
    return not checksum or bool(pooch.file_hash(str(path), alg=kind) == digest.lower())


class _BrokenOffError(requests.RequestException):
    """A transfer that can be continued."""


def _continue(url: str, partial: Path) -> None:
    """Bring `url` to `partial`, in several connections if need be."""
    retry = Retry(TRIES - 1, status_forcelist=_BUSY, backoff_factor=PAUSE_S, backoff_max=60, read=0)
    with requests.Session() as session:
        # identity: ranges count plain bytes
        session.headers.update({"User-Agent": _AGENT, "Accept-Encoding": "identity"})
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        for left in reversed(range(TRIES)):
            try:
                _transfer(session, url, partial)
                break
            except _BrokenOffError:
                if not left:
                    raise


def _transfer(session: requests.Session, url: str, partial: Path) -> None:
    """One connection: continue the partial file to its end."""
    done = partial.stat().st_size if partial.is_file() else 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    with session.get(url, headers=headers, stream=True, timeout=STALL_S) as answer:
        if answer.status_code == 416:  # nothing left to send, or the file changed: begin again
            partial.unlink()
            raise _BrokenOffError("the server has no such range")
        answer.raise_for_status()
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise ValueError("a web page instead of the file")
        start = done if answer.status_code == 206 else 0
        place = answer.headers.get("Content-Range", "")
        if start and not place.startswith(f"bytes {start}-"):
            raise ValueError("the server continued at another place")
        length = int(answer.headers.get("Content-Length", 0))
        require_space(partial.parent, length, f"download {partial.name}")
        total = start + length if length else None
        with (
            partial.open("ab" if start else "wb") as out,
            tqdm(total=total, initial=start, desc=partial.stem, unit="B", unit_scale=True) as bar,
        ):
            try:
                for block in answer.iter_content(_BLOCK):  # refuses a body that is too short
                    bar.update(out.write(block))
            except requests.RequestException as error:
                raise _BrokenOffError(f"the connection broke: {error}") from error
