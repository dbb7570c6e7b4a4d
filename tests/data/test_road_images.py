from __future__ import annotations

import hashlib
import http.server
import io
import json
import threading
import zipfile
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from PIL import Image
from pooch.downloaders import ZenodoRepository

from src.composing import compose_checked
from src.data.datamodule import AnomalyDataModule
from src.data.images import read_sample
from src.data.surveys import index_panorama, index_road_images
from src.data.transforms import ImageTransform
from src.errors import ConfigError, DataError, DownloadError


def write_grey(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 20), value, np.uint8)).save(path)


@pytest.fixture
def road(tmp_path):
    """80 good and 40 bad pairs below a top folder, as the archive might have it."""
    base = tmp_path / "road_images" / "roadimages"
    for folder, count, darkest in (("good_ones", 80, 0), ("bad_ones", 40, 80)):
        for i in range(count):
            write_grey(base / folder / "height_files" / f"tile_{i:03d}_height.png", darkest + i)
            write_grey(base / folder / "intensity_files" / f"tile_{i:03d}_intensity.png", 200 - i)
    return tmp_path / "road_images"


@pytest.fixture
def panorama(tmp_path):
    base = tmp_path / "panorama" / "panorama_converted"
    for folder, count, darkest in (("good_ones", 80, 0), ("bad_ones", 150, 80)):
        for i in range(count):
            write_grey(base / folder / f"{i:03d}.jpg", darkest + i)
    return tmp_path / "panorama"


def counts(samples):
    return {
        (split, label): sum(s.split == split and s.label == label for s in samples)
        for split in ("train", "test")
        for label in (0, 1)
    }


def test_road_images_train_on_the_first_seventy_percent_and_test_on_the_rest(road):
    samples = index_road_images(road, "all", pairing="name")
    assert counts(samples) == {("train", 0): 56, ("train", 1): 0, ("test", 0): 24, ("test", 1): 40}
    assert [s.label for s in samples if s.split == "test"] == [0] * 24 + [1] * 40
    assert [s.image_path.name for s in samples[:2]] == [
        "tile_000_height.png",
        "tile_001_height.png",
    ]
    assert samples[56].image_path.name == "tile_056_height.png"
    assert all(sample.mask_path is None for sample in samples)


@pytest.mark.parametrize("pairing", ["name", "position"])
def test_the_channels_are_height_intensity_intensity_of_one_pair(road, pairing):
    samples = index_road_images(road, "all", pairing=pairing)
    for number in (0, 30, 79):
        pixels = np.asarray(read_sample(samples[number]))
        assert pixels.shape == (12, 20, 3)
        assert pixels[0, 0].tolist() == [number, 200 - number, 200 - number]


def test_a_missing_partner_is_named(road):
    (road / "roadimages/good_ones/intensity_files/tile_017_intensity.png").unlink()
    with pytest.raises(DataError, match="do not fit together") as caught:
        index_road_images(road, "all", pairing="name")
    assert "tile_017_height.png" in caught.value.found
    with pytest.raises(DataError, match="do not fit together") as caught:
        index_road_images(road, "all", pairing="position")
    assert "80 height and 79 intensity" in caught.value.found


def test_pairs_of_other_names_are_refused_by_name_and_taken_by_position(road):
    for path in (road / "roadimages/good_ones/intensity_files").iterdir():
        path.rename(path.with_name(path.name.replace("tile", "scan")))
    with pytest.raises(DataError) as caught:
        index_road_images(road, "all", pairing="name")
    assert "data.pairing=position" in caught.value.do
    assert len(index_road_images(road, "all", pairing="position")) == 120


@pytest.mark.parametrize(
    ("height", "intensity"),
    [
        ("a1.png", "a1.png"),
        ("height12.png", "intensity12.png"),
        ("x-Height.tif", "x_intensity.png"),
    ],
)
def test_names_that_differ_in_the_modality_alone_belong_together(tmp_path, height, intensity):
    for folder in ("good_ones", "bad_ones"):
        write_grey(tmp_path / folder / "height_files" / height, 1)
        write_grey(tmp_path / folder / "intensity_files" / intensity, 2)
    samples = index_road_images(tmp_path, "all", pairing="name")
    assert samples[0].channel_paths[0].name == intensity


def test_an_unknown_pairing_names_the_choices():
    with pytest.raises(ConfigError, match="one of name, position") as caught:
        compose_checked("run", ["data=road_images", "data.pairing=names"])
    assert "data.pairing=name" in caught.value.do


def test_panorama_takes_at_most_twice_as_many_bad_as_training_images(panorama):
    samples = index_panorama(panorama, "all")
    assert counts(samples) == {("train", 0): 56, ("train", 1): 0, ("test", 0): 24, ("test", 1): 112}
    test = [s for s in samples if s.split == "test"]
    assert [s.label for s in test] == [1] * 112 + [0] * 24
    assert test[0].image_path.name == "000.jpg"
    assert test[112].image_path.name == "056.jpg"


def test_the_order_is_that_of_the_official_code_not_the_natural_one(tmp_path):
    for folder in ("good_ones", "bad_ones"):
        for i in (1, 2, 10):
            write_grey(tmp_path / folder / f"{i}.png", i)
    samples = index_panorama(tmp_path, "all")
    assert [s.image_path.name for s in samples if s.split == "train"] == ["1.png", "10.png"]


def test_two_copies_of_a_data_set_are_not_mixed(tmp_path):
    for copy in ("a", "b"):
        write_grey(tmp_path / copy / "good_ones" / "1.png", 1)
        write_grey(tmp_path / copy / "bad_ones" / "1.png", 1)
    with pytest.raises(DataError, match="more than once") as caught:
        index_panorama(tmp_path, "all")
    assert str(tmp_path / "b") in caught.value.found


def test_an_empty_root_says_what_was_expected(tmp_path):
    with pytest.raises(DataError, match="good_ones/height_files") as caught:
        index_road_images(tmp_path, "all", pairing="name")
    assert "data.root" in caught.value.do


def test_resizing_without_antialias_equals_torch_interpolation_of_the_tensor(tmp_path):
    # The authors resize the [0, 1] tensor with torchvision 0.14, which does not antialias.
    noise = np.random.default_rng(0).integers(0, 256, (100, 60, 3)).astype(np.uint8)
    settings = {"resize": (32, 32), "crop": None, "interpolation": "bilinear"}
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    plain = ImageTransform(antialias=False, **settings, **half)(Image.fromarray(noise))
    tensor = torch.from_numpy(noise).permute(2, 0, 1).float()[None] / 255
    expected = torch.nn.functional.interpolate(tensor, (32, 32), mode="bilinear")[0] * 2 - 1
    torch.testing.assert_close(plain, expected, rtol=0, atol=1e-6)
    smooth = ImageTransform(antialias=True, **settings, **half)(Image.fromarray(noise))
    assert (plain - smooth).abs().mean() > 0.1  # on noise the two are far apart


# --- download: a Zenodo record on this machine's loopback ---------------------------------------


class Record:
    """Serves a record's metadata and its archive; `wrong_sum` publishes a wrong checksum."""

    def __init__(self, content: bytes, name: str, wrong_sum: bool = False):
        digest = "0" * 32 if wrong_sum else hashlib.md5(content).hexdigest()
        self.asked: list[str] = []
        record = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                record.asked.append(self.path)
                body = record.metadata if self.path == "/api/records/7681876" else content
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args):
                """Keeps the test output quiet."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        base = f"http://127.0.0.1:{self.server.server_port}/api/records/7681876"
        entry = {"key": name, "size": len(content), "checksum": f"md5:{digest}",
                 "links": {"self": f"{base}/files/{name}/content"}}  # fmt: skip
        self.metadata = json.dumps({"id": 7, "files": [entry]}).encode()
        self.api = base.removesuffix("/7681876")

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(ZenodoRepository, "base_api_url", self.api)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_args):
        self.patch.undo()
        self.server.shutdown()
        self.server.server_close()


def zipped(folder):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for path in sorted(folder.rglob("*.*")):
            packed.write(path, path.relative_to(folder))
    return stream.getvalue()


def datamodule(name, root, *overrides):
    conf = Path(__file__).parents[2] / "conf"
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        words = [f"data={name}", "model=crn", f"data.root={root}", *overrides]
        return AnomalyDataModule(hydra.compose("run", overrides=words))


@pytest.mark.parametrize(
    ("name", "archive", "train", "test"),
    [("road_images", "roadimages.zip", 50, 64), ("panorama", "panorama_images.zip", 50, 136)],
)
def test_a_missing_data_set_is_fetched_verified_and_found_by_its_contents(
    request, tmp_path, name, archive, train, test
):
    source = request.getfixturevalue({"road_images": "road", "panorama": "panorama"}[name])
    root = tmp_path / "fetched" / name
    with Record(zipped(source), archive) as record:
        data = datamodule(name, root)
        data.prepare_data()
        data.setup()
        assert len(record.asked) == 2
        data.prepare_data()  # it is there now: no second look at the network
        assert len(record.asked) == 2
    assert (len(data.train_samples), len(data.test_samples)) == (train, test)  # 6 held out
    assert len(data.calibration_samples) == 6
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape == (64, 3, 128, 128)
    assert not any(sample.mask_path for sample in data.samples)
    names = {p.name for p in root.iterdir() if not p.name.startswith(".")}
    assert names == {"good_ones", "bad_ones"}  # without the archive's own top folder


def test_a_damaged_archive_is_refused_and_nothing_is_kept(tmp_path, panorama):
    root = tmp_path / "fetched"
    with Record(zipped(panorama), "panorama_images.zip", wrong_sum=True):
        data = datamodule("panorama", root)
        with pytest.raises(DownloadError, match="could not be downloaded") as caught:
            data.prepare_data()
    assert "hash of downloaded file" in caught.value.found
    assert not [p for p in root.iterdir() if not p.name.startswith(".download")]


def test_a_record_without_the_archive_lists_what_it_has(tmp_path, panorama):
    with Record(zipped(panorama), "renamed.zip"):
        data = datamodule("panorama", tmp_path / "x")
        with pytest.raises(DownloadError) as caught:
            data.prepare_data()
    assert "renamed.zip" in caught.value.found
    assert "panorama_images.zip" in caught.value.do


def test_an_archive_of_something_else_is_not_unpacked_into_the_root(tmp_path, panorama):
    with Record(zipped(panorama), "roadimages.zip"):
        data = datamodule("road_images", tmp_path / "x")
        with pytest.raises(DownloadError, match="does not hold the data set"):
            data.prepare_data()
    assert not (tmp_path / "x" / "panorama_converted").exists()


def test_an_archive_placed_by_hand_needs_no_network(tmp_path, panorama):
    root = tmp_path / "fetched"
    root.mkdir()
    (root / "panorama_images.zip").write_bytes(zipped(panorama))
    data = datamodule("panorama", root, "data.download=false")
    data.prepare_data()
    data.setup()
    assert len(data.test_samples) == 136
    assert (root / "panorama_images.zip").exists()


def test_without_download_a_missing_data_set_is_explained(tmp_path):
    data = datamodule("road_images", tmp_path / "none", "data.download=false")
    data.prepare_data()
    with pytest.raises(DataError, match="RoadImages was not found"):
        data.setup()
