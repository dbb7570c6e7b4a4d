"""Hashes of files are remembered exactly as long as they are true."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from src import contents
from src.contents import content_hashes
from src.errors import DataError


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def files(tmp_path, cache, monkeypatch) -> list[Path]:
    """Ten files that are old enough to be remembered."""
    monkeypatch.setattr(contents, "_SETTLED_NS", -(10**9))
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{i}.png" for i in range(10)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 3000)
    return paths


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """Every file that is read to be hashed."""
    seen: list[Path] = []
    real = contents._hash
    monkeypatch.setattr(contents, "_hash", lambda path: seen.append(Path(path)) or real(path))
    return seen


def test_a_file_is_read_once_and_again_when_it_changed(files, reads):
    before = content_hashes(files)
    assert len(set(before.values())) == 10
    assert sorted(reads) == files
    reads.clear()
    assert content_hashes(reversed(files)) == before
    assert reads == []
    times = files[3].stat()
    files[3].write_bytes(bytes([77]) * 3000)
    os.utime(files[3], ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time
    after = content_hashes(files)
    assert reads == [files[3]]
    assert {path for path in files if after[str(path)] != before[str(path)]} == {files[3]}


def test_the_target_of_a_link_counts(files, reads, tmp_path):
    link = tmp_path / "images" / "link.png"
    link.symlink_to(files[0])
    assert content_hashes([link])[str(link)] == content_hashes(files)[str(files[0])]
    link.unlink()
    link.symlink_to(files[1])
    assert content_hashes([link])[str(link)] == content_hashes(files)[str(files[1])]


def test_a_young_file_is_not_remembered(files, reads, monkeypatch):
    monkeypatch.setattr(contents, "_SETTLED_NS", 2 * 10**9)
    content_hashes(files)
    content_hashes(files)
    assert len(reads) == 20


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"x": 3}', b"\xff\xfe"])
def test_a_damaged_memory_is_built_again(files, reads, cache, damage):
    before = content_hashes(files)
    [memory] = (cache / "contents").iterdir()
    memory.write_bytes(damage)
    reads.clear()
    assert content_hashes(files) == before
    assert len(reads) == 10
    reads.clear()
    assert content_hashes(files) == before
    assert reads == []


def test_without_a_place_to_remember_everything_is_hashed(files, tmp_path, monkeypatch):
    before = content_hashes(files)
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "a file"))
    assert content_hashes(files) == before


def test_a_file_that_cannot_be_read_is_named(files):
    files[4].unlink()
    with pytest.raises(DataError, match=r"4\.png cannot be read"):
        content_hashes(files)


def _hash_often(paths: list[Path], expected: dict[str, str]) -> None:
    for round_ in range(10):
        os.utime(paths[round_])  # something to write each time
        assert content_hashes(paths) == expected


def test_several_processes_at_once_never_disagree(files, cache):
    expected = content_hashes(files)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_hash_often, args=(files, expected)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert not list(cache.rglob("*.partial"))


def test_a_thousand_remembered_files_are_checked_at_once(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(contents, "_SETTLED_NS", -(10**9))
    paths = [tmp_path / f"{i}.png" for i in range(1000)]
    for i, path in enumerate(paths):
        path.write_bytes(i.to_bytes(4))
    content_hashes(paths)
    began = time.process_time()
    content_hashes(paths)
    assert time.process_time() - began < 0.3  # measured 0.01; tests/bench has the whole start
