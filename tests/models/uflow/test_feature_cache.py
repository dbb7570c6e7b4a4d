"""Cached features are the features; bounded, shared, safe, never stale."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time

import pytest
import torch

from src.backbones.cache import GB, FeatureCache
from src.errors import ConfigError

IMAGE_BYTES = 4 * (2 * 4 * 4 + 3 * 2 * 2)  # of one image's maps below, float32


def maps_of(image):
    """A stand-in backbone: two scales."""
    mean = image.mean(dim=1, keepdim=True)
    return [mean[:, :, :4, :4].repeat(1, 2, 1, 1), mean[:, :, :2, :2].repeat(1, 3, 1, 1) * 2]


class Counted:
    def __init__(self):
        self.images = 0

    def __call__(self, image):
        self.images += len(image)
        return maps_of(image)


def cache(tmp_path, place="memory", limit_gb=1.0, dtype="float32", identity="net@1"):
    return FeatureCache(place, tmp_path, limit_gb, dtype, identity)


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_each_image_is_computed_once_and_comes_back_exactly(tmp_path, place):
    features, compute = cache(tmp_path, place), Counted()
    images, index = torch.randn(5, 3, 8, 8), torch.arange(5)
    features.fetch(images[:3], index[:3], compute)
    mixed = torch.tensor([4, 1, 0, 3])
    found = features.fetch(images[mixed], mixed, compute)
    for ours, expected in zip(found, maps_of(images[mixed]), strict=True):
        assert torch.equal(ours, expected)
    assert compute.images == 5


def test_off_computes_every_time(tmp_path):
    features, compute = cache(tmp_path, "off"), Counted()
    for _ in range(2):
        features.fetch(torch.randn(2, 3, 8, 8), torch.arange(2), compute)
    assert compute.images == 4


def test_without_positions_the_pixels_are_the_key(tmp_path):
    features, compute = cache(tmp_path), Counted()
    images = torch.randn(2, 3, 8, 8)
    features.fetch(images, None, compute)
    features.fetch(images.flip(0), None, compute)
    assert compute.images == 2
    features.fetch(images + 1e-6, None, compute)
    assert compute.images == 4


def test_a_new_list_of_samples_does_not_get_old_maps(tmp_path):
    features = cache(tmp_path)
    first, second = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    features.fetch(first, torch.arange(2), maps_of)
    features.forget_positions()
    found = features.fetch(second, torch.arange(2), maps_of)
    assert torch.equal(found[0], maps_of(second)[0])


@pytest.mark.parametrize("change", [{"identity": "net@2"}, {"dtype": "float16"}])
def test_another_backbone_or_dtype_never_reads_the_entries(tmp_path, change):
    images, compute = torch.randn(2, 3, 8, 8), Counted()
    cache(tmp_path, "disk").fetch(images, None, compute)
    cache(tmp_path, "disk", **change).fetch(images, None, compute)
    assert compute.images == 4
    cache(tmp_path, "disk").fetch(images, None, compute)
    assert compute.images == 4


def test_half_precision_halves_the_size_and_returns_float32(tmp_path):
    features, images = cache(tmp_path, dtype="float16"), torch.randn(2, 3, 8, 8)
    for _ in range(2):
        found = features.fetch(images, None, maps_of)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], maps_of(images)[0], rtol=1e-3, atol=1e-3)
    assert features._held == 2 * IMAGE_BYTES // 2


def test_memory_beyond_the_limit_is_computed_anew_without_losing_the_rest(tmp_path, caplog):
    features, compute = cache(tmp_path, limit_gb=3.5 * IMAGE_BYTES / GB), Counted()
    images, index = torch.randn(5, 3, 8, 8), torch.arange(5)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            features.fetch(images, index, compute)
    assert compute.images == 5 + 2 + 2  # three stay
    assert len(caplog.records) == 1 and "limit_gb" in caplog.text


def test_disk_drops_what_earlier_runs_left_longest_unused_first(tmp_path):
    images = torch.randn(4, 3, 8, 8)
    cache(tmp_path, "disk").fetch(images, None, maps_of)
    files = sorted((tmp_path).glob("*/*.safetensors"))
    size = files[0].stat().st_size
    for age, path in enumerate(files):
        os.utime(path, (time.time() - 1000 * (age + 1),) * 2)
    later = cache(tmp_path, "disk", limit_gb=4.5 * size / GB)
    later.fetch(torch.randn(2, 3, 8, 8), None, maps_of)
    left = set(tmp_path.glob("*/*.safetensors"))
    assert len(left) == 4
    assert files[0] in left and files[1] in left
    assert files[2] not in left and files[3] not in left


def test_a_damaged_entry_is_computed_anew(tmp_path, caplog):
    images, compute = torch.randn(1, 3, 8, 8), Counted()
    cache(tmp_path, "disk").fetch(images, None, compute)
    (path,) = tmp_path.glob("*/*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    found = cache(tmp_path, "disk").fetch(images, None, compute)
    assert compute.images == 2 and "unreadable" in caplog.text
    assert torch.equal(found[0], maps_of(images)[0])
    assert torch.equal(cache(tmp_path, "disk").fetch(images, None, compute)[0], found[0])
    assert compute.images == 2


def fill(folder, seed):
    images = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    features = FeatureCache("disk", folder, 1.0, "float32", "net@1")
    for row in order.tolist():
        found = features.fetch(images[row : row + 1], None, maps_of)
        assert torch.equal(found[0], maps_of(images[row : row + 1])[0])


def test_two_runs_share_a_folder_without_harm(tmp_path):
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=fill, args=(tmp_path, seed)) for seed in (1, 2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0]
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 20
    assert not list(tmp_path.glob("*/*.partial"))


def test_unknown_places_and_dtypes_are_explained(tmp_path):
    with pytest.raises(ConfigError, match="memory"):
        cache(tmp_path, "memroy")
    with pytest.raises(ConfigError, match="float16"):
        cache(tmp_path, dtype="float1")
