from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.images import read_sample
from src.data.panorama import index_panorama
from src.data.road_images import index_road_images
from src.data.transforms import ImageTransform
from src.errors import ConfigError, DataError


def write_grey(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 20), value, np.uint8)).save(path)


@pytest.fixture
def road(tmp_path):
    """80 good and 40 bad pairs below a top folder, as the archive might have it."""
    base = tmp_path / "road_images" / "roadimages"
    for folder, count in (("good_ones", 80), ("bad_ones", 40)):
        for i in range(count):
            write_grey(base / folder / "height_files" / f"tile_{i:03d}_height.png", i)
            write_grey(base / folder / "intensity_files" / f"tile_{i:03d}_intensity.png", 200 - i)
    return tmp_path / "road_images"


@pytest.fixture
def panorama(tmp_path):
    base = tmp_path / "panorama" / "panorama_converted"
    for folder, count in (("good_ones", 80), ("bad_ones", 150)):
        for i in range(count):
            write_grey(base / folder / f"{i:03d}.jpg", i)
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


def test_an_unknown_pairing_names_the_choices(road):
    with pytest.raises(ConfigError) as caught:
        index_road_images(road, "all", pairing="names")
    assert "'name'" in caught.value.do


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
