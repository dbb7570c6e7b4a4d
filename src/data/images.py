"""Read any common image file to RGB, and any mask to bool, or say clearly why not.

Everything a loader may meet on a factory disk comes to one form here: 8- and 16-bit grey, palettes,
transparency, CMYK, EXIF orientation, animations, broken and oversized files.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from src.data.listing import FORMATS, list_images
from src.data.samples import Sample
from src.errors import DataError

#: Larger images are refused: 2**27 pixels are 400 MB in RGB. Change it here, nowhere else.
MAX_PIXELS = 2**27
# Pillow's own bomb check is a process-wide constant: it must not refuse what we allow.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")


def read_image(path: Path, bit_depth: int | None = None) -> np.ndarray:
    """`open_rgb` as uint8 (H, W, 3)."""
    return np.asarray(open_rgb(path, bit_depth))


def open_rgb(path: Path, bit_depth: int | None = None) -> Image.Image:
    """RGB of the first frame, upright as EXIF says.

    Deep grey (16 and 32 bits) is scaled so that 2**bit_depth - 1 becomes 255, never by the content
    of the image, so that two images of one camera stay comparable; None: 16 bits. Transparent
    pixels are laid over white, as viewers show them. DataError: no image, empty, truncated,
    floating-point, or larger than `MAX_PIXELS`.
    """
    image, _ = _decode(path)
    return _to_rgb(image, path, background="white", white=2 ** (bit_depth or 16) - 1)


def is_deep(mode: str) -> bool:
    """Whether pixels of a Pillow mode have more than 8 bits, of which not all may be used."""
    return mode in _DEEP


def deep_peak(path: Path) -> int:
    """The brightest value of a deep grey image; 0 for any other."""
    image, _ = _decode(path)
    return max(0, int(np.asarray(image).max())) if is_deep(image.mode) else 0


def mask_files(mask: Path) -> list[Path]:
    """The files of a mask: itself, or one for each region where `mask` is a folder."""
    return (list_images(mask) if mask.is_dir() else []) or [mask]


def read_mask(path: Path) -> np.ndarray:
    """Defect mask bool (H, W): True where any channel of any of its files is above 0.

    Palettes are looked up, transparent pixels count as normal. DataError: as `open_rgb`; or files
    of one mask that differ in size.
    """
    levels = _stack(f"The masks in {path}", map(read_levels, mask_files(path)))
    return np.asarray(levels.any(axis=2))


def read_levels(path: Path) -> np.ndarray:
    """Values uint8 (H, W) of one mask file, the brightest channel; 0 where nothing is marked.

    JPEG and WebP carry compression noise around 0: there a pixel must be above half of the range.
    """
    image, kind = _decode(path)
    levels = np.asarray(_to_rgb(image, path, background="black", keep_faint=True)).max(axis=2)
    return np.where(levels > 127, levels, 0) if kind in _LOSSY else levels


class Region(NamedTuple):
    """A defect that counts as found when `saturation` of its pixels are."""

    pixels: np.ndarray  # bool (H, W)
    saturation: float  # how many of them are enough, above 0; more than there are: all


def read_regions(sample: Sample) -> list[Region]:
    """The regions of a sample: of each mask file and value; without a saturation file, whole ones.

    Where something is missing, every place where it could lie is marked, and one of them is enough:
    the file gives each kind of defect, by the value of its pixels, the area at which its region
    counts as found (MVTec LOCO AD, Bergmann et al., IJCV 2022). DataError: the file cannot be read,
    or does not know a value.
    """
    files = mask_files(sample.mask_path) if sample.mask_path else []
    marked = [(levels == value, value) for levels in map(read_levels, files)
              for value in np.unique(levels[levels > 0]).tolist()]  # fmt: skip
    if sample.saturation is None:
        return [Region(pixels, float(pixels.sum())) for pixels, _ in marked]
    try:
        kinds = json.loads(sample.saturation.read_text(encoding="utf-8"))
        known = {int(kind["pixel_value"]): kind for kind in kinds}
        return [Region(pixels, _enough(known[value], pixels)) for pixels, value in marked]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{sample.saturation} does not say when a defect of {sample.mask_path} is found."
        do = "copy the file and the masks from the original archive"
        raise DataError(what, found=f"{type(error).__name__}: {error}", do=do) from error


def _enough(kind: dict[str, Any], pixels: np.ndarray) -> float:
    """`saturation_threshold` in pixels, or as a share of them."""
    area, enough = float(pixels.sum()), float(kind["saturation_threshold"])
    return min(area, enough * area if kind["relative_saturation"] else enough)


def same_view(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two sizes may show the same field of view: one aspect, to a pixel of slack."""
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)


def read_sample(sample: Sample) -> Image.Image:
    """The image of a sample; with `channel_paths`, one grey file per channel.

    The first channel of `image_path` and of each further file become R, G, B; the last one is
    repeated up to three (height + intensity -> height, intensity, intensity; CRN, datasets.py).
    """
    if not sample.channel_paths:
        return open_rgb(sample.image_path, sample.bit_depth)
    files = (sample.image_path, *sample.channel_paths)
    planes = [read_image(path, sample.bit_depth)[..., 0] for path in files]
    planes = (planes + planes[-1:] * 2)[:3]
    return Image.fromarray(_stack(f"The channels of {sample.image_path}", planes))


def image_header(path: Path) -> tuple[tuple[int, int], str]:
    """Size (H, W) after EXIF orientation and pixel format (L, RGB, I;16, ...), not decoded."""
    with _open(path) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5  # orientations 5 to 8 swap the sides
        return (width, height) if turned else (height, width), image.mode


def image_size(path: Path) -> tuple[int, int]:
    """(H, W) in pixels after EXIF orientation, read from the header only."""
    return image_header(path)[0]


def _stack(what: str, planes: Iterable[np.ndarray]) -> np.ndarray:
    """Planes (H, W) as one array (H, W, n)."""
    planes = list(planes)
    if len({plane.shape for plane in planes}) > 1:
        found = ", ".join(f"{plane.shape[1]} x {plane.shape[0]}" for plane in planes)
        do = "export all files of one image at the same size"
        raise DataError(f"{what} have different sizes.", found=found, do=do)
    return np.stack(planes, axis=2)


def _open(path: Path) -> Image.Image:
    """Header of an image file, with every failure turned into a DataError."""
    try:
        image = Image.open(path, formats=list(FORMATS))
    except FileNotFoundError as error:
        do = "check the path; if the data set was moved, set data.root"
        raise DataError(f"There is no image {path}.", found="no such file", do=do) from error
    except Exception as error:  # decoders raise anything on damaged bytes
        raise _unreadable(path, error) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        found = f"{width} x {height} pixels, the limit is {MAX_PIXELS / 1e6:.0f} million"
        do = "cut or shrink the image, or raise MAX_PIXELS in src/data/images.py"
        raise DataError(f"{path} is too large to be read safely.", found=found, do=do)
    return image


def _decode(path: Path) -> tuple[Image.Image, str]:
    """Upright first frame and the name of the file format."""
    with _open(path) as image:
        kind = image.format or ""
        try:
            image.load()
            return ImageOps.exif_transpose(image), kind
        except Exception as error:  # decoders raise anything on damaged bytes
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, Image.DecompressionBombError):
        found = f"more than {MAX_PIXELS / 1e6:.0f} million pixels"
    elif path.is_dir():
        found = "a folder"
    elif path.is_file() and not path.stat().st_size:
        found = "an empty file"
    elif isinstance(error, UnidentifiedImageError):
        found = "bytes of no known image format"
    else:
        found = f"{type(error).__name__}: {error}"
    do = "export or copy the file again, or remove it from the data set"
    return DataError(f"{path} cannot be read as an image.", found=found, do=do)


def _to_rgb(
    image: Image.Image, path: Path, *,
    background: str, white: int = 65535, keep_faint: bool = False,
) -> Image.Image:  # fmt: skip
    """Any mode to RGB, deep `white` to 255; `keep_faint` keeps what is not 0 above 0 (masks)."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        what = f"{path} holds floating-point values, whose range is not known."
        raise DataError(what, found="pixel format float32", do="export it as 8- or 16-bit grey")
    if is_deep(image.mode):
        values = np.asarray(image).astype(np.int64).clip(0, white) * 255
        scaled = -(-values // white) if keep_faint else (values + white // 2) // white
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    try:
        if image.mode in _TRANSPARENT or "transparency" in image.info:
            layer = image.convert("RGBA")
            canvas = Image.new("RGBA", layer.size, background)
            return Image.alpha_composite(canvas, layer).convert("RGB")
        return image.convert("RGB")
    except ValueError as error:  # LAB and other modes without a conversion
        raise _unreadable(path, error) from error
