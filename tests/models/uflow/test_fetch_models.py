"""Published models are fetched from Drive or a release, converted, and failures are explained."""

from __future__ import annotations

import http.server
import io
import json
import threading

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from src.commands.fetch_models import fetch_published
from src.composing import CONF
from src.errors import ConfigError, DownloadError, SavedModelError
from tests.reference_uflow import freia_graph

SHAPES = [(12, 8, 8), (16, 4, 4)]
PAGE = b"<html><title>Google Drive - Quota exceeded</title></html>"


def checkpoint():
    state = freia_graph(SHAPES, flow_steps=1).state_dict()
    stream = io.BytesIO()
    torch.save({"state_dict": {f"model.flow.{k}": v for k, v in state.items()}}, stream)
    return stream.getvalue()


@pytest.fixture
def server():
    """A local stand-in for Drive (/file?id=...) and GitHub (/release); `answers` by path."""
    answers, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            kind, body = answers.get(self.path, ("text/html", PAGE))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    running.answers, running.asked = answers, asked
    running.address = f"http://127.0.0.1:{running.server_port}"
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def config(server, tmp_path):
    def build(**changes):
        cfg = OmegaConf.load(CONF / "fetch_models.yaml")
        for key in ("hydra", "defaults"):
            del cfg[key]
        cfg.folder = str(tmp_path / "weights")
        cfg.published.drive = server.address + "/file?id={id}"
        cfg.published.release = server.address + "/release"
        return OmegaConf.merge(cfg, changes)

    return build


def drive_path(cfg, category, metric):
    return f"/file?id={cfg.published.files[category][metric]}"


BINARY = "application/octet-stream"


def test_files_are_fetched_converted_and_not_fetched_twice(server, config, tmp_path):
    cfg = config(categories=["carpet", "grid"], metrics=["auc"])
    for category in cfg.categories:
        server.answers[drive_path(cfg, category, "auc")] = (BINARY, checkpoint())
    made = fetch_published(cfg)
    assert [path.relative_to(tmp_path / "weights").as_posix() for path in made] == [
        "auc/carpet.safetensors",
        "auc/grid.safetensors",
    ]
    assert "flow.graph.module_list.0.permutation" in load_file(made[0])
    assert sorted(p.name for p in made[0].parent.iterdir()) == [p.name for p in made]
    fetch_published(cfg)
    assert len(server.asked) == 2
    fetch_published(OmegaConf.merge(cfg, {"overwrite": True}))
    assert len(server.asked) == 4


def test_every_category_of_mvtec_has_its_own_three_files(config):
    files = config().published.files
    assert len(files) == 15
    ids = [files[category][metric] for category in files for metric in ("auc", "pro", "miou")]
    assert len(set(ids)) == 45


def test_a_used_up_quota_is_explained_and_leaves_nothing(config, tmp_path):
    with pytest.raises(DownloadError) as error:
        fetch_published(config(categories=["carpet"], metrics=["pro"]))
    assert "web page" in error.value.found
    assert "quota" in error.value.do and "source=release" in error.value.do
    assert "pro/carpet.ckpt" in error.value.do
    assert not list((tmp_path / "weights").rglob("*.safetensors"))


def test_a_file_placed_by_hand_is_converted_without_network(server, config, tmp_path):
    folder = tmp_path / "weights" / "miou"
    folder.mkdir(parents=True)
    (folder / "wood.ckpt").write_bytes(checkpoint())
    (made,) = fetch_published(config(categories=["wood"], metrics=["miou"]))
    assert made.is_file() and (folder / "wood.ckpt").is_file()
    assert server.asked == []


def test_a_release_s_file_is_found_by_its_name(server, config):
    assets = [
        {"name": f"{metric}_{category}.ckpt", "browser_download_url": f"{server.address}/{name}"}
        for name in ("auc-carpet", "auc-grid", "miou-carpet", "miou-grid")
        for metric, category in [name.split("-")]
    ]
    server.answers["/release"] = ("application/json", json.dumps({"assets": assets}).encode())
    server.answers["/auc-grid"] = (BINARY, checkpoint())
    fetch_published(config(categories=["grid"], metrics=["auc"], source="release"))
    assert server.asked == ["/release", "/auc-grid"]
    with pytest.raises(DownloadError, match="no single file for pro of grid"):
        fetch_published(config(categories=["grid"], metrics=["pro"], source="release"))
    server.answers["/release"] = ("text/html", PAGE)
    with pytest.raises(DownloadError, match="could not be read"):
        fetch_published(config(categories=["grid"], metrics=["pro"], source="release"))


def test_a_wrong_checksum_and_a_foreign_file_are_refused(server, config, tmp_path):
    cfg = config(categories=["tile"], metrics=["auc"])
    server.answers[drive_path(cfg, "tile", "auc")] = (BINARY, checkpoint())
    cfg.published.checksums = {"auc/tile": "sha256:" + "0" * 64}
    with pytest.raises(DownloadError, match=r"could not be downloaded"):
        fetch_published(cfg)
    cfg.published.checksums = {}
    server.answers[drive_path(cfg, "tile", "auc")] = (BINARY, b"no checkpoint at all")
    with pytest.raises(SavedModelError, match="read safely"):
        fetch_published(cfg)
    assert not list((tmp_path / "weights").rglob("*.*t*"))  # neither .ckpt nor .safetensors


def test_misspelt_categories_are_answered_with_the_nearest(config):
    with pytest.raises(ConfigError, match="carpet"):
        fetch_published(config(categories=["carpte"]))
    with pytest.raises(ConfigError, match="uflow"):
        fetch_published(config(method="halo"))
    with pytest.raises(ConfigError, match="release"):
        fetch_published(config(source="releas"))
