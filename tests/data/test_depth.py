"""Deep grey images: one scale for the data set, kept by the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.composing import compose_checked
from src.data.images import read_image, read_sample
from src.data.measured import settle_depth
from src.data.samples import Found, Sample, summary
from src.errors import ConfigError


def deep(path: Path, high: int, dtype=np.uint16) -> Path:
    values = np.linspace(0, high, 256).reshape(16, 16).astype(dtype)
    Image.fromarray(values).save(path)
    return path


def found(*paths: Path, split: str = "train") -> Found:
    return Found([Sample(path, None, 0, "good", split) for path in paths])


@pytest.mark.parametrize(
    ("high", "dtype", "bits"),
    [(4000, np.uint16, 12), (1023, np.uint16, 10), (1024, np.uint16, 11), (200, np.uint16, 8),
     (65535, np.uint16, 16), (70000, np.int32, 17), (2_000_000_000, np.int32, 31)],
)  # fmt: skip
def test_the_brightest_training_pixel_sets_one_scale_for_all(tmp_path, high, dtype, bits):
    dim = deep(tmp_path / "0.tif", high // 2, dtype)
    samples = found(dim, deep(tmp_path / "1.tif", high, dtype), dim)
    samples += found(deep(tmp_path / "t.tif", high // 2, dtype), split="test")
    settled, depth = settle_depth(samples, "auto")
    assert depth == bits
    assert {sample.bit_depth for sample in settled} == {bits}
    white = 2**bits - 1
    assert np.asarray(read_sample(settled[1])).max() == round(high * 255 / white)
    assert np.asarray(read_sample(settled[3])).max() == round(high // 2 * 255 / white)
    assert f"deep grey of {bits} bits (white is {white}" in summary(settled)


def test_the_bytes_may_be_in_either_order(tmp_path):
    values = np.full((4, 4), 0x0FFF, ">u2")
    path = tmp_path / "big.tif"
    Image.frombytes("I;16B", (4, 4), values.tobytes()).save(path)
    assert Image.open(path).mode == "I;16B"
    assert settle_depth(found(path), "auto")[1] == 12
    assert read_image(path, 12).max() == 255


def test_full_range_sets_read_as_before_and_shallow_ones_are_untouched(tmp_path):
    values = np.arange(0, 65536, 13, dtype=np.uint16)[None]
    Image.fromarray(values).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", 16) == read_image(tmp_path / "a.png")).all()
    assert (read_image(tmp_path / "a.png")[0, :, 0] == (values[0].astype(int) + 128) // 257).all()
    Image.new("L", (4, 4), 77).save(tmp_path / "b.png")
    samples = found(tmp_path / "b.png")
    assert settle_depth(samples, "auto") == (samples, None)
    assert read_image(tmp_path / "b.png", 12).max() == 77


def test_a_deep_image_among_many_is_found_and_a_broken_one_is_left_to_the_reader(tmp_path):
    (tmp_path / "0.png").write_bytes(b"")
    paths = [tmp_path / "0.png", *(deep(tmp_path / f"{i}.png", 4095) for i in range(1, 40))]
    assert settle_depth(found(*paths), "auto")[1] == 12


def test_a_given_depth_is_taken_and_nonsense_refused(tmp_path):
    samples = found(deep(tmp_path / "a.png", 900))
    assert settle_depth(samples, 12)[1] == 12
    for wrong in (0, 7, 33, "twelve", 9.5):
        with pytest.raises(ConfigError, match=r"data\.bit_depth"):
            compose_checked("run", [f"data.bit_depth={wrong}"])
