from __future__ import annotations

import functools
import hashlib
import http.server
import io
import tarfile
import threading
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from src.composing import CONF, compose
from src.data import download
from src.data.acquire import prepare_archives
from src.data.datamodule import AnomalyDataModule
from src.data.mvtec import index_mvtec
from src.errors import DataError, DownloadError


def png():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def archive(path, categories, train=3, top=""):
    with tarfile.open(path, "w:xz") as out:
        for category in categories:
            names = [f"train/good/{i}.png" for i in range(train)]
            for name in [*names, "test/good/0.png", "test/hole/0.png"]:
                info = tarfile.TarInfo(f"{top}{category}/{name}")
                info.size = len(png())
                out.addfile(info, io.BytesIO(png()))
    return path


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Archives on this machine's loopback: of one category, and of the whole set."""
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    (tmp_path / "shelf").mkdir()
    handler = functools.partial(QuietHandler, directory=tmp_path / "shelf")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    bolt = archive(tmp_path / "shelf/bolt.tar.xz", ["bolt"])
    whole = archive(tmp_path / "shelf/whole.tar.xz", ["bolt", "cloth"], top="release-1/")
    digest = hashlib.sha256(whole.read_bytes()).hexdigest()
    yield {
        "bolt": {"file": bolt.name, "mirrors": [{"url": f"{base}/{bolt.name}", "checksum": None}]},
        "all": {
            "file": whole.name,
            "mirrors": [{"url": f"{base}/{whole.name}", "checksum": f"sha256:{digest}"}],
        },
    }
    server.shutdown()
    server.server_close()


def prepare(root, category, archives, **changes):
    options = {
        "data_set": "Parts",
        "download": True,
        "archives": archives,
        "categories": ["bolt", "cloth"],
        "holds": ["{category}/train/good", "{category}/test"],
        "counts": {"bolt": {"train": 3, "test": 2}, "cloth": {"train": 3, "test": 2}},
        "page": "https://example.org",
        "licence": "CC BY 4.0",
    }
    prepare_archives(root, category, **(options | changes))


def test_one_category_is_fetched_alone_and_only_its_folder_stays(tmp_path, shelf):
    root = tmp_path / "data"
    prepare(root, "bolt", shelf)
    assert len(index_mvtec(root, "bolt")) == 5
    assert {p.name for p in root.iterdir()} - {".download.lock"} == {"bolt"}


def test_the_whole_set_is_fetched_for_a_category_without_its_own_archive(tmp_path, shelf):
    prepare(tmp_path / "data", "cloth", shelf)
    assert {p.name for p in (tmp_path / "data").glob("[!.]*")} == {"bolt", "cloth"}


def test_a_category_that_is_there_needs_no_network(tmp_path, shelf, monkeypatch):
    prepare(tmp_path / "data", "bolt", shelf)
    monkeypatch.setattr(download, "fetch", lambda *_, **__: pytest.fail("network"))
    prepare(tmp_path / "data", "bolt", shelf)
    prepare(tmp_path, "bolt", shelf)  # one folder higher also counts as there


def test_the_whole_set_steps_in_when_the_category_archive_is_gone(tmp_path, shelf):
    Path(tmp_path / "shelf/bolt.tar.xz").unlink()
    prepare(tmp_path / "data", "bolt", shelf)
    assert len(index_mvtec(tmp_path / "data", "bolt")) == 5


def test_a_category_archive_with_too_few_images_is_not_kept(tmp_path, shelf):
    archive(tmp_path / "shelf/bolt.tar.xz", ["bolt"], train=2)
    del shelf["all"]
    with pytest.raises(DownloadError, match="2 images in bolt/train, expected 3"):
        prepare(tmp_path / "data", "bolt", shelf)
    assert not list((tmp_path / "data").glob("[!.]*"))


def test_without_download_an_absent_set_is_left_to_the_index_to_explain(tmp_path, shelf):
    prepare(tmp_path / "data", "bolt", shelf, download=False)
    assert not (tmp_path / "data").exists()
    with pytest.raises(DataError, match=r"data\.download=true"):
        index_mvtec(tmp_path / "data", "bolt")


def test_an_archive_placed_by_hand_is_verified_and_unpacked_without_network(tmp_path, shelf):
    root = tmp_path / "data"
    root.mkdir()
    placed = root / "whole.tar.xz"
    placed.write_bytes((tmp_path / "shelf/whole.tar.xz").read_bytes())
    (tmp_path / "shelf/whole.tar.xz").unlink()
    prepare(root, "cloth", shelf, download=False)
    assert len(index_mvtec(root, "cloth")) == 5
    assert placed.is_file()  # it is not ours to delete


def test_a_damaged_archive_placed_by_hand_is_not_unpacked(tmp_path, shelf):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/whole.tar.xz").write_bytes(b"damaged")
    with pytest.raises(DownloadError, match="another checksum"):
        prepare(tmp_path / "data", "cloth", shelf, download=False)


def test_when_nothing_can_be_fetched_the_steps_by_hand_are_given(tmp_path, shelf):
    for file in (tmp_path / "shelf").iterdir():
        file.unlink()
    with pytest.raises(DownloadError) as caught:
        prepare(tmp_path / "data", "bolt", shelf)
    steps = caught.value.do
    for words in ("(1) get whole.tar.xz (sha256:", "https://example.org", "(2) put it at",
                  str(tmp_path / "data/whole.tar.xz"), "(3) run"):  # fmt: skip
        assert words in steps


def test_an_incomplete_folder_in_the_way_is_never_overwritten(tmp_path, shelf):
    (tmp_path / "data/bolt/train/good").mkdir(parents=True)
    with pytest.raises(DataError, match=r"not complete(.|\n)*missing bolt/test"):
        prepare(tmp_path / "data", "bolt", shelf)


def test_an_unknown_category_is_refused_before_any_download(tmp_path, shelf):
    with pytest.raises(DataError, match="'cloth'"):
        prepare(tmp_path / "data", "clot", shelf)
    assert not (tmp_path / "data").exists()


def test_an_archive_without_the_category_is_refused(tmp_path, shelf):
    archive(tmp_path / "shelf/bolt.tar.xz", ["other"])
    del shelf["all"]
    with pytest.raises(DownloadError, match="does not hold the data set"):
        prepare(tmp_path / "data", "bolt", shelf)
    assert not list((tmp_path / "data").glob("[!.]*"))


def test_two_that_ask_at_once_download_once(tmp_path, shelf, monkeypatch):
    calls = []
    fetch = download.fetch
    monkeypatch.setattr(download, "fetch", lambda *a, **k: (calls.append(1), fetch(*a, **k)))
    threads = [
        threading.Thread(target=prepare, args=(tmp_path / "data", "bolt", shelf)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(index_mvtec(tmp_path / "data", "bolt")) == 5


@pytest.mark.parametrize("name", ["mvtec", "visa", "btad", "folder", "synthetic"])
def test_every_data_config_builds_and_names_what_is_missing(tmp_path, name):
    cfg = compose("run", [f"data={name}", f"data.root={tmp_path / 'absent'}"])
    OmegaConf.update(cfg, "data.download", False, force_add=True)
    data = AnomalyDataModule(cfg)
    if name != "synthetic":
        data.prepare_data()
    with pytest.raises(DataError, match="absent"):
        data.setup()


def test_archives_of_the_named_sets_have_well_formed_addresses_and_checksums():
    for name in ("mvtec", "visa", "btad"):
        data = OmegaConf.load(CONF / "data" / f"{name}.yaml")
        assert "all" in data.archives
        for key, item in data.archives.items():
            assert key == "all" or key in data.categories
            for mirror in item.mirrors:
                assert mirror.url.startswith("https://")
                assert mirror.url.endswith(item.file)
                kind, _, digest = (mirror.checksum or "sha256:" + "0" * 64).partition(":")
                assert (kind, len(bytes.fromhex(digest))) == ("sha256", 32)


def test_the_counts_of_mvtec_add_up_to_the_published_totals():
    data = OmegaConf.load(CONF / "data" / "mvtec.yaml")
    assert set(data.counts) == set(data.categories)
    assert sum(c.train for c in data.counts.values()) == 3629
    assert sum(c.test for c in data.counts.values()) == 1725
