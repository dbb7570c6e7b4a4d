from __future__ import annotations

import io
import stat
import tarfile
import zipfile

import pytest

from src.data.acquire import unpack
from src.errors import DownloadError


def silent(_):
    """Progress that nobody watches."""


PLAIN = {"set/a/1.png": b"one" * 100, "set/a/2.png": b"", "set/b c/ä.png": b"three"}


def entry(name, kind=tarfile.REGTYPE, data=b"", link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data), link
    return info, io.BytesIO(data)


def tar(path, entries, mode="w"):
    with tarfile.open(path, mode) as out:
        for info, stream in entries:
            out.addfile(info, stream)
    return path


def packed(path, content=PLAIN):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            out.writestr("set/", b"")
            for name, data in content.items():
                out.writestr(name, data)
        return path
    mode = "w" if path.suffix == ".tar" else f"w:{path.suffix[1:]}"
    folder = entry("set", tarfile.DIRTYPE)
    return tar(path, [folder, *(entry(n, data=d) for n, d in content.items())], mode)


def below(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("name", ["a.tar", "a.tar.xz", "a.tar.gz", "a.tar.bz2", "a.zip"])
def test_an_archive_of_any_kind_comes_out_byte_for_byte(tmp_path, name):
    reported = []
    target = tmp_path / "out"
    unpack(packed(tmp_path / name), target, max_bytes=10**6, progress=reported.append)
    assert below(target) == PLAIN
    assert sum(reported) == sum(map(len, PLAIN.values()))


EVIL_TARS = {
    "dotdot": [entry("../evil.png", data=b"x")],
    "hidden dotdot": [entry("set/../../evil.png", data=b"x")],
    "absolute": [entry("/tmp/evil.png", data=b"x")],
    "absolute folder": [entry("/tmp/evil", tarfile.DIRTYPE)],
    "symlink": [entry("set/link", tarfile.SYMTYPE, link="/etc/passwd")],
    "symlinked folder": [entry("set", tarfile.SYMTYPE, link=".."), entry("set/evil", data=b"x")],
    "hard link": [entry("set/link", tarfile.LNKTYPE, link="/etc/passwd")],
    "device": [entry("set/null", tarfile.CHRTYPE)],
    "pipe": [entry("set/pipe", tarfile.FIFOTYPE)],
    "backslash": [entry("..\\evil.png", data=b"x")],
    "drive": [entry("C:/evil.png", data=b"x")],
}


@pytest.mark.parametrize("kind", list(EVIL_TARS))
def test_a_tar_that_reaches_outside_is_refused_before_anything_lands_there(tmp_path, kind):
    target = tmp_path / "deep" / "out"
    target.mkdir(parents=True)
    path = tar(tmp_path / "evil.tar", EVIL_TARS[kind])
    with pytest.raises(DownloadError, match="not safe"):
        unpack(path, target, max_bytes=10**6, progress=silent)
    inside = [p for p in tmp_path.rglob("*") if p.is_relative_to(target)]
    assert {p for p in tmp_path.rglob("*") if p not in inside} == {path, target.parent}
    assert not any(p.is_symlink() for p in inside)


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "C:\\evil.png"])
def test_a_zip_that_reaches_outside_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as out:
        info = zipfile.ZipInfo("x")
        info.filename = name
        out.writestr(info, b"x")
    with pytest.raises(DownloadError, match="not safe"):
        unpack(tmp_path / "evil.zip", tmp_path / "out", max_bytes=10**6, progress=silent)
    assert below(tmp_path).keys() == {"evil.zip"}


def test_a_symbolic_link_inside_a_zip_is_never_made(tmp_path):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as out:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        out.writestr(info, "/etc/passwd")
    unpack(tmp_path / "evil.zip", tmp_path / "out", max_bytes=10**6, progress=silent)
    assert not (tmp_path / "out" / "link").is_symlink()
    assert below(tmp_path / "out") == {"link": b"/etc/passwd"}


@pytest.mark.parametrize("name", ["bomb.zip", "bomb.tar.xz", "bomb.tar.gz"])
def test_a_bomb_is_stopped_at_the_limit_by_what_it_writes(tmp_path, name):
    path = packed(tmp_path / name, {"set/zeros": bytes(30_000_000)})
    assert path.stat().st_size < 60_000
    with pytest.raises(DownloadError, match=r"0\.01 GB"):
        unpack(path, tmp_path / "out", max_bytes=10_000_000, progress=silent)
    assert sum(len(data) for data in below(tmp_path / "out").values()) <= 10_000_000


@pytest.mark.parametrize("name", ["a.tar.xz", "a.tar.gz", "a.tar", "a.zip"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty"])
def test_a_damaged_archive_is_a_clear_error_or_is_read_in_full(tmp_path, name, damage):
    noise = {f"set/{i}.png": bytes((i * j * 7919) % 251 for j in range(4000)) for i in range(5)}
    path = packed(tmp_path / name, noise)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle] ^= 255
    broken = {
        "truncated": data[:middle],
        "flipped": data,
        "text": b"<html>moved</html>",
        "empty": b"",
    }
    path.write_bytes(broken[damage])
    if (name, damage) == ("a.tar", "flipped"):  # plain tar has no checksum of its content
        unpack(path, tmp_path / "out", max_bytes=10**6, progress=silent)
        return
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        unpack(path, tmp_path / "out", max_bytes=10**6, progress=silent)
