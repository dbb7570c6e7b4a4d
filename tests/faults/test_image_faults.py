"""Faults of image files: each is read rightly or refused by name, never a traceback."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from src.data.images import read_image, read_mask
from src.errors import DataError

RED = np.full((20, 30, 3), (200, 30, 30), dtype=np.uint8)


def png(path, array=RED, **options):
    Image.fromarray(array).save(path, "PNG", **options)
    return path


def header_of_a_bomb(width=60_000, height=60_000):
    """A valid PNG header that promises 3.6 gigapixels in 60 bytes."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + start
        + chunk(b"IDAT", zlib.compress(b"\0" * 9))
        + chunk(b"IEND", b"")
    )


REFUSED = {
    "truncated PNG": lambda p: p.write_bytes(png(p).read_bytes()[:-60]),
    "truncated JPEG": lambda p: (
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
            p, "JPEG"
        ),
        p.write_bytes(p.read_bytes()[:700]),
    ),
    "empty file": lambda p: p.touch(),
    "text file": lambda p: p.write_text("this is not an image"),
    "web page saved as image": lambda p: p.write_text("<!doctype html><html>404</html>"),
    "random bytes": lambda p: p.write_bytes(np.random.default_rng(1).bytes(5000)),
    "decompression bomb": lambda p: p.write_bytes(header_of_a_bomb()),
    "folder named like an image": lambda p: p.mkdir(),
    "link to nowhere": lambda p: p.symlink_to(p.with_name("missing.png")),
    "missing file": lambda p: None,
    "floating-point image": lambda p: Image.fromarray(np.zeros((8, 8), np.float32)).save(p, "TIFF"),
    "damaged PNG chunk": lambda p: p.write_bytes(
        png(p).read_bytes()[:45] + b"\xff\xff" + png(p).read_bytes()[47:]
    ),
    "PostScript program": lambda p: p.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_an_unusable_image_is_named_and_refused(tmp_path, fault):
    path = tmp_path / "part.png"
    REFUSED[fault](path)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert "part.png" in str(caught.value)
    assert caught.value.do
    assert caught.value.found


def grey16(value):
    return Image.fromarray(np.full((20, 30), value, dtype=np.uint16))


READ = {
    "one pixel": (lambda p: png(p, RED[:1, :1]), (1, 1), (200, 30, 30)),
    "16-bit grey": (lambda p: grey16(65535).save(p, "PNG"), (20, 30), (255, 255, 255)),
    "16-bit grey TIFF": (lambda p: grey16(32768).save(p, "TIFF"), (20, 30), (128, 128, 128)),
    "CMYK JPEG": (
        lambda p: Image.new("CMYK", (30, 20), (0, 0, 0, 255)).save(p, "JPEG"),
        (20, 30),
        (0, 0, 0),
    ),
    "transparent over white": (
        lambda p: Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(p, "PNG"),
        (20, 30),
        (255, 255, 255),
    ),
    "palette": (
        lambda p: Image.fromarray(RED).quantize(4).save(p, "PNG"),
        (20, 30),
        (200, 30, 30),
    ),
    "black and white": (lambda p: Image.new("1", (30, 20), 1).save(p, "PNG"), (20, 30), (255,) * 3),
    "animated": (
        lambda p: Image.fromarray(RED).save(
            p, "GIF", save_all=True, append_images=[Image.new("RGB", (30, 20), "blue")]
        ),
        (20, 30),
        (200, 30, 30),
    ),
    "JPEG called PNG": (
        lambda p: Image.fromarray(RED).save(p, "JPEG", quality=95),
        (20, 30),
        (200, 30, 30),
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_an_unusual_image_is_read_rightly(tmp_path, kind):
    write, shape, colour = READ[kind]
    path = tmp_path / "part.png"
    write(path)
    image = read_image(path)
    assert image.shape == (*shape, 3)
    assert np.abs(image.reshape(-1, 3).mean(0) - colour).max() <= 4


def test_exif_rotation_is_undone(tmp_path):
    upright = np.zeros((20, 30, 3), dtype=np.uint8)
    upright[:5] = 255  # white at the top
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees
    stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "turned.png", exif=exif)
    assert (read_image(tmp_path / "turned.png") == upright).all()


@pytest.mark.parametrize(
    "name",
    ["Schraube äöü ß.png", "ネジ.png", "with, comma.png", 'with "quotes".png', "new\nline.png",
     "-rf.png", "$HOME.png", "%s%n.png", "a" * 251 + ".png", "UPPER.PNG"],
)  # fmt: skip
def test_odd_file_names_are_only_names(tmp_path, name):
    png(tmp_path / name)
    assert read_image(tmp_path / name).shape == (20, 30, 3)


def test_faint_16_bit_masks_are_not_lost(tmp_path):
    mask = np.zeros((20, 30), dtype=np.uint16)
    mask[3:5, 3:5] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").sum() == 4
