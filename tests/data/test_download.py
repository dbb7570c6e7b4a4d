from __future__ import annotations

import hashlib
import http.server
import threading
import time

import pytest

from src.data import download
from src.data.download import fetch, require_space
from src.errors import DownloadError

BODY = bytes((i * 31 + i // 256) % 256 for i in range(300_000))
KEPT = 100_000 // 2**14 * 2**14  # of the 100 000 bytes that arrive, whole blocks are kept
SHA = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"


class Handler(http.server.BaseHTTPRequestHandler):
    """A server with every vice; the path says which."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        vice = self.path.strip("/")
        requests = self.server.requests
        requests.append((vice, self.headers.get("Range")))
        turn = sum(name == vice for name, _ in requests)
        if vice.isdigit():
            return self.refuse(int(vice))
        if vice == "busy" and turn < 3:
            return self.refuse(429 if turn == 1 else 503, {"Retry-After": "0"})
        if vice == "page":
            return self.send(200, b"<html>gone</html>", {"Content-Type": "text/html"})
        if vice == "corrupt":
            return self.send(200, BODY[:-1] + b"!")
        start = 0
        if "Range" in self.headers and vice != "norange":
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(BODY):
                return self.refuse(416)
        extra = {}
        if start:
            first = 7 if vice == "elsewhere" else start
            extra["Content-Range"] = f"bytes {first}-{len(BODY) - 1}/{len(BODY)}"
        body = BODY[start:]
        if vice in ("truncate", "norange", "elsewhere") and turn == 1:
            return self.send(200, body[:100_000], extra, length=len(body))
        if vice == "stall" and turn == 1:
            self.send(200, body[:50_000], extra, length=len(body), keep=True)
            self.server.stop.wait(5)
            return None
        if vice == "nolength":
            return self.send(200, body, {}, length=None)
        return self.send(206 if start else 200, body, extra)

    def refuse(self, code, headers=None):
        self.send(code, b"", headers)

    def send(self, code, body, headers=None, *, length=-1, keep=False):
        self.send_response(code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        if not keep:
            self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE_S", 0.01)
    monkeypatch.setattr(download, "STALL_S", 0.3)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.requests, httpd.stop = [], threading.Event()
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.stop.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def mirrors(server, *vices, checksum=SHA):
    return [(f"http://127.0.0.1:{server.server_port}/{vice}", checksum) for vice in vices]


@pytest.mark.parametrize("checksum", [SHA, SHA.upper().replace("SHA256", "sha256"), MD5, None])
@pytest.mark.parametrize("vice", ["fine", "nolength"])
def test_a_file_arrives_whole_and_under_its_own_name_only(server, tmp_path, checksum, vice):
    got = fetch(mirrors(server, vice, checksum=checksum), tmp_path / "d" / "a.tar", advice="")
    assert got.read_bytes() == BODY
    assert [p.name for p in got.parent.iterdir()] == ["a.tar"]


def test_a_file_that_is_there_and_verified_is_not_fetched_again(server, tmp_path):
    (tmp_path / "a.tar").write_bytes(BODY)
    fetch(mirrors(server, "fine"), tmp_path / "a.tar", advice="")
    assert server.requests == []


def test_a_broken_connection_is_continued_where_it_stopped(server, tmp_path):
    assert fetch(mirrors(server, "truncate"), tmp_path / "a", advice="").read_bytes() == BODY
    assert server.requests == [("truncate", None), ("truncate", f"bytes={KEPT}-")]


def test_a_partial_file_of_an_earlier_run_is_continued(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    with pytest.raises(DownloadError, match=r"connection broke.*100000 bytes read"):
        fetch(mirrors(server, "truncate"), tmp_path / "a", advice="")
    assert not (tmp_path / "a").exists()
    assert fetch(mirrors(server, "truncate"), tmp_path / "a", advice="").read_bytes() == BODY
    assert server.requests[-1] == ("truncate", f"bytes={KEPT}-")


@pytest.mark.parametrize("vice", ["norange", "stall"])
def test_servers_without_ranges_and_stalls_are_survived(server, tmp_path, vice):
    begin = time.monotonic()
    assert fetch(mirrors(server, vice), tmp_path / "a", advice="").read_bytes() == BODY
    assert time.monotonic() - begin < 4
    assert len(server.requests) == 2


def test_a_server_that_continues_at_another_place_is_not_believed(server, tmp_path):
    with pytest.raises(DownloadError, match="another place"):
        fetch(mirrors(server, "elsewhere"), tmp_path / "a", advice="")


def test_a_complete_partial_file_is_not_lost_when_the_range_is_refused(server, tmp_path):
    vice = mirrors(server, "fine")
    monkey = hashlib.sha256(SHA.encode()).hexdigest()[:8]
    (tmp_path / f"a.{monkey}.partial").write_bytes(BODY + b"too long")
    assert fetch(vice, tmp_path / "a", advice="").read_bytes() == BODY


def test_a_busy_server_is_asked_again(server, tmp_path):
    assert fetch(mirrors(server, "busy"), tmp_path / "a", advice="").read_bytes() == BODY
    assert len(server.requests) == 3


def test_a_damaged_partial_file_is_begun_again_instead_of_blaming_the_mirror(server, tmp_path):
    name = f"a.{hashlib.sha256(SHA.encode()).hexdigest()[:8]}.partial"
    (tmp_path / name).write_bytes(b"garbage" * 100)
    assert fetch(mirrors(server, "fine"), tmp_path / "a", advice="").read_bytes() == BODY
    assert server.requests == [("fine", "bytes=700-"), ("fine", None)]


@pytest.mark.parametrize("bad", ["404", "403", "410", "corrupt", "page"])
def test_the_next_mirror_is_tried_at_once_when_one_is_hopeless(server, tmp_path, bad):
    assert fetch(mirrors(server, bad, "fine"), tmp_path / "a", advice="").read_bytes() == BODY
    assert [name for name, _ in server.requests] == [bad, "fine"]


def test_mirrors_of_different_packings_do_not_continue_each_other(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    both = mirrors(server, "truncate", "fine", checksum=None)
    assert fetch(both, tmp_path / "a", advice="").read_bytes() == BODY
    assert server.requests[1] == ("fine", None)


def test_when_every_mirror_fails_the_error_lists_them_and_says_what_to_do(server, tmp_path):
    every = [*mirrors(server, "404", "corrupt", "503"), ("http://127.0.0.1:9/x", SHA),
             ("nonsense", None)]  # fmt: skip
    with pytest.raises(DownloadError) as caught:
        fetch(every, tmp_path / "a", advice="put it there by hand")
    for words in ("404 Client Error", "hash of downloaded file", "503", "refused", "Invalid URL"):
        assert words in caught.value.found
    assert caught.value.do == "put it there by hand"
    assert not (tmp_path / "a").exists()


def test_a_file_placed_by_hand_with_a_wrong_checksum_is_named(tmp_path):
    (tmp_path / "a").write_bytes(b"something else")
    with pytest.raises(DownloadError, match="another checksum"):
        fetch([(None, SHA)], tmp_path / "a", advice="")
    assert (tmp_path / "a").read_bytes() == b"something else"


def test_a_full_disk_is_noticed_before_the_download(server, tmp_path, monkeypatch):
    usage = download.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DownloadError, match=r"not enough disk space.*\n.*data\.root|larger disk"):
        fetch(mirrors(server, "fine"), tmp_path / "a", advice="")
    require_space(tmp_path, 1000, "x")
    with pytest.raises(DownloadError):
        require_space(tmp_path, 1001, "x")
