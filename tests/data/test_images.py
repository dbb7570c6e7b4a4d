from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from src.data import images
from src.data.images import image_size, read_image, read_mask, read_sample
from src.data.listing import list_images, natural_key
from src.data.samples import Sample
from src.errors import DataError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)


def saved(path, array_or_image, **options):
    image = array_or_image
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.tif", "a.TIFF", "a.ppm"])
def test_lossless_formats_give_the_same_rgb_in_any_letter_case(tmp_path, name):
    assert np.array_equal(read_image(saved(tmp_path / name, COLOUR)), COLOUR)
    assert list_images(tmp_path) == [tmp_path / name]


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.jfif", "a.webp", "a.avif", "a.jp2"])
def test_lossy_formats_give_nearly_the_same_rgb(tmp_path, name):
    smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    options = {} if name.endswith("jp2") else {"quality": 95}
    read = read_image(saved(tmp_path / name, smooth, **options))
    assert list_images(tmp_path) == [tmp_path / name]
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - smooth).max() <= 4


def test_grey_is_repeated_over_three_channels(tmp_path):
    read = read_image(saved(tmp_path / "a.png", GREY))
    assert np.array_equal(read, np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_is_scaled_by_its_full_range_not_by_its_content(tmp_path, name):
    values = np.array([[0, 128, 129, 257, 4095, 32768, 65535]], np.uint16)
    read = read_image(saved(tmp_path / name, values))[0, :, 0]
    assert read.tolist() == [int(np.floor(v / 257 + 0.5)) for v in values[0].astype(float)]


def test_thirty_two_bit_integers_are_read_as_sixteen_bit_values(tmp_path):
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([[0, 65535, 70000]], np.int32)))
    assert read_image(path)[0, :, 0].tolist() == [0, 255, 255]


def test_floating_point_images_are_refused_because_their_range_is_unknown(tmp_path):
    path = saved(tmp_path / "a.tif", np.ones((4, 4), np.float32))
    with pytest.raises(DataError, match="16-bit"):
        read_image(path)


def test_transparent_pixels_show_white_and_opaque_ones_their_colour(tmp_path):
    rgba = np.dstack([COLOUR, np.zeros_like(GREY)])
    rgba[0, :, 3] = 255
    read = read_image(saved(tmp_path / "a.png", rgba))
    assert np.array_equal(read[0], COLOUR[0])
    assert (read[1:] == 255).all()


def test_palettes_are_looked_up_and_their_transparent_colour_is_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90] + [0] * 759)
    saved(tmp_path / "a.png", image, transparency=1)
    assert read_image(tmp_path / "a.png")[0].tolist() == [[10, 20, 30], [255] * 3, [70, 80, 90]]


def test_cmyk_becomes_rgb(tmp_path):
    cmyk = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    red = read_image(saved(tmp_path / "a.tif", cmyk))[0, 0]
    assert red.tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_known_from_the_header(tmp_path, orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # a white corner, top left
    undo = {1: [], 2: ["x"], 3: ["x", "y"], 4: ["y"], 5: ["t"], 6: ["x", "t"],
            7: ["x", "y", "t"], 8: ["y", "t"]}[orientation]  # fmt: skip
    stored = upright
    for step in undo:
        stored = {"x": stored[:, ::-1], "y": stored[::-1], "t": stored.transpose(1, 0, 2)}[step]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", np.ascontiguousarray(stored), exif=exif)
    read = read_image(path)
    assert image_size(path) == read.shape[:2] == (16, 32)
    assert np.array_equal(read, upright)


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif", "a.gif"])
def test_an_animation_gives_its_first_frame(tmp_path, name):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    options = {"lossless": True} if name.endswith("webp") else {}
    first.save(tmp_path / name, save_all=True, append_images=[second], **options)
    assert read_image(tmp_path / name)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("content", ["empty", "text", "truncated", "folder", "absent", "garbled"])
def test_what_is_no_image_is_refused_with_the_name_of_the_file(tmp_path, content):
    path = tmp_path / "part7.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    if content == "empty":
        path.touch()
    elif content == "text":
        path.write_text("not an image")
    elif content == "folder":
        path.mkdir()
    elif content != "absent":
        data = bytearray(saved(path, noise).read_bytes())
        if content == "garbled":
            data[200:260] = b"\xff" * 60
        path.write_bytes(data[: len(data) // 2] if content == "truncated" else data)
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match="part7"):
            read(path)


def test_a_truncated_jpeg_is_refused_not_filled_with_grey(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    path = saved(tmp_path / "a.jpg", noise)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match="truncated"):
        read_image(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("factor", [0.9, 0.4])
def test_an_image_beyond_the_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch, factor):
    path = saved(tmp_path / "a.png", COLOUR)
    monkeypatch.setattr(images, "MAX_PIXELS", int(48 * factor))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(48 * factor))
    with pytest.raises(DataError, match=r"limit|million"):
        read_image(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_mask_value_above_zero_is_defective(tmp_path, dtype):
    values = np.array([[0, 1, 2, 200], [0, 0, 255, 7]], dtype)
    assert np.array_equal(read_mask(saved(tmp_path / "m.png", values)), values > 0)


def test_masks_of_one_bit_colour_and_palette_agree(tmp_path):
    truth = np.array([[False, True], [True, False]])
    saved(tmp_path / "bit.png", Image.fromarray(truth))
    saved(tmp_path / "colour.png", np.where(truth[..., None], (0, 0, 3), 0).astype(np.uint8))
    swapped = Image.fromarray((~truth).astype(np.uint8), "L").convert("P")
    swapped.putpalette([255, 0, 0, 0, 0, 0] + [9] * 762)  # index 0 is the colour, 1 is black
    saved(tmp_path / "palette.png", swapped)
    for name in ("bit", "colour", "palette"):
        assert np.array_equal(read_mask(tmp_path / f"{name}.png"), truth), name


def test_compression_noise_of_a_jpeg_mask_is_not_a_defect(tmp_path):
    truth = np.zeros((64, 64), bool)
    truth[20:40, 13:50] = True
    path = saved(tmp_path / "m.jpg", truth.astype(np.uint8) * 255, quality=60)
    assert (read_image(path)[..., 0][~truth] > 0).any()  # there is noise
    assert np.array_equal(read_mask(path), truth)


def test_channel_files_become_the_channels_and_the_last_is_repeated(tmp_path):
    height, intensity = saved(tmp_path / "h.png", GREY), saved(tmp_path / "i.png", 255 - GREY)
    sample = Sample(height, None, 0, "good", "train", channel_paths=(intensity,))
    read = np.asarray(read_sample(sample))
    assert np.array_equal(read, np.stack([GREY, 255 - GREY, 255 - GREY], axis=2))


def test_channel_files_of_different_sizes_are_refused(tmp_path):
    height, intensity = saved(tmp_path / "h.png", GREY), saved(tmp_path / "i.png", GREY[:3])
    with pytest.raises(DataError, match="different sizes"):
        read_sample(Sample(height, None, 0, "good", "train", channel_paths=(intensity,)))


def test_natural_order_counts_instead_of_spelling():
    names = ["10.png", "9.png", "a2b10", "a2b9", "A2b9", "", "09.png", "ä1", "²"]
    ordered = sorted(names, key=natural_key)
    assert ordered.index("9.png") < ordered.index("10.png")
    assert ordered.index("a2b9") < ordered.index("a2b10")
    shuffled = [names[i] for i in (4, 2, 8, 0, 6, 1, 7, 3, 5)]
    assert sorted(shuffled, key=natural_key) == ordered


def test_listing_skips_hidden_and_foreign_files(tmp_path):
    for name in ("2.png", "10.PNG", ".hidden.png", "._2.png", "Thumbs.db", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["2.png", "10.PNG"]
    assert list_images(tmp_path / "absent") == []
    (tmp_path / ".trash").mkdir()
    (tmp_path / "sub.png" / "3.png").touch()
    (tmp_path / ".trash" / "4.png").touch()
    names = [p.name for p in list_images(tmp_path, recursive=True)]
    assert names == ["2.png", "10.PNG", "3.png"]


def test_a_phone_jpeg_with_several_pictures_gives_the_first(tmp_path):
    first, second = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert Image.open(tmp_path / "a.jpg").format == "MPO"
    assert read_image(tmp_path / "a.jpg")[0, 0, 0] > 250
