"""Explicit geometry from a file on disk to a network input, and back for anomaly maps.

With `antialias: true` images are resized by Pillow before they become tensors, which is bit for bit
what torchvision's `Resize` does to a PIL image (PatchCore, U-Flow and HaloAE official code). With
`antialias: false` the [0, 1] tensor is resized without a low-pass filter, as torchvision 0.14 did
(CRN official code); on fine textures the two differ by 0.07 on average.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from src.data.images import image_size, read_mask, same_view
from src.data.measured import each
from src.errors import ConfigError, DataError

AUTO = "auto"  # in place of a size, `data.view.resize=auto`
Picture = Image.Image | np.ndarray  # RGB; arrays are uint8 (H, W, 3)


@dataclass(kw_only=True, eq=False)
class ImageTransform:
    """Resize, centre crop and normalisation with one fixed output size; config node `transform`.

    ConfigError: sizes that cannot work.
    """

    resize: Any  # int: the shorter side, aspect kept; (H, W): exactly; None: untouched
    crop: Any  # centre crop, int (square) or (H, W); None: none
    interpolation: str  # nearest, bilinear, bicubic or lanczos; masks always use nearest
    antialias: bool  # low-pass before shrinking, or plain sampling of the tensor
    mean: Sequence[float]  # per channel, subtracted after scaling to [0, 1]
    std: Sequence[float]  # per channel, divisor

    def __post_init__(self) -> None:
        self.resize = self.resize if isinstance(self.resize, int) else _pair(self.resize)
        self.crop = _pair(self.crop)
        self.mean, self.std = tuple(map(float, self.mean)), tuple(map(float, self.std))
        self.size = self._output_size()
        self._mean = torch.tensor(self.mean).view(3, 1, 1)
        self._std = torch.tensor(self.std).view(3, 1, 1)

    def __call__(self, image: Picture) -> Tensor:
        """RGB image -> float32 (3, H, W), normalised."""
        return self.normalise(self.pixels(image))

    def pixels(self, image: Picture) -> Tensor:
        """Geometry only: uint8 (3, H, W), or float32 in [0, 1] when `antialias` is off."""
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        if self.antialias or self.resize is None:
            return _to_tensor(self._cut(picture, Image.Resampling[self.interpolation.upper()]))
        if self.interpolation == "lanczos":
            found = "transform.interpolation=lanczos, transform.antialias=false"
            do = "set transform.antialias=true or transform.interpolation=bilinear"
            raise ConfigError("Lanczos exists only with a low-pass filter.", found=found, do=do)
        resized, (top, left, height, width) = self.geometry((picture.height, picture.width))
        corners = None if self.interpolation == "nearest" else False
        plain = _to_tensor(picture).float().div(255)[None]
        out = F.interpolate(plain, size=resized, mode=self.interpolation, align_corners=corners)[0]
        return out[:, top : top + height, left : left + width].clamp(0, 1).contiguous()

    def normalise(self, pixels: Tensor) -> Tensor:
        """What `pixels` returned, (..., 3, H, W) -> float32 of the same shape."""
        scaled = pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.clone()
        return scaled.sub_(self._mean).div_(self._std)

    def mask(
        self, mask: np.ndarray | Path, *, rule: str = "nearest", crop: bool = True
    ) -> np.ndarray:
        """Mask bool (h, w), or its file -> bool (H, W) with the geometry of the image.

        `rule` "nearest": ours, exact to half a pixel. "eroded": the official PatchCore code resizes
        bilinearly and truncates to integers, so that only fully defective pixels
        stay. Without `crop` the whole resized image, of any size.
        """
        values = read_mask(mask) if isinstance(mask, Path) else mask
        grey = Image.fromarray(values.astype(np.uint8) * 255)
        if rule == "eroded":
            return np.asarray(self._cut(grey, Image.Resampling.BILINEAR, crop)) == 255
        return np.asarray(self._cut(grey, Image.Resampling.NEAREST, crop)) > 0

    def display(self, image: Picture) -> np.ndarray:
        """RGB uint8 (H, W, 3) with the geometry of the network input, for figures."""
        pixels = self.pixels(image)
        if pixels.dtype != torch.uint8:
            pixels = pixels.mul(255).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(1, 2, 0).numpy()

    def geometry(
        self, original: tuple[int, int]
    ) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        """(H, W) after resizing, and (top, left, height, width) of the crop, or a DataError."""
        resized = original
        if isinstance(self.resize, int):  # the longer side is truncated as torchvision does
            rows, columns = (int(self.resize * side / min(original)) for side in original)
            resized = rows, columns
        elif self.resize is not None:
            resized = self.resize
        height, width = self.size
        if self.crop is None and resized != self.size:
            raise DataError(
                "An image is not square, so the network input has no fixed size.",
                found=f"{resized[0]} x {resized[1]} after transform.resize={self.resize}",
                do=f"set transform.crop={self.resize} (centre) or "
                f"transform.resize=[{self.resize},{self.resize}] (distorts)",
            )
        if resized[0] < height or resized[1] < width:
            found = f"{resized[0]} x {resized[1]} pixels, transform.crop={list(self.size)}"
            do = "set transform.resize to at least transform.crop"
            raise DataError("An image is smaller than the centre crop.", found=found, do=do)
        # torchvision rounds half to even here; any other rounding shifts odd margins by a pixel.
        top, left = round((resized[0] - height) / 2), round((resized[1] - width) / 2)
        return resized, (top, left, height, width)

    def to_original(
        self,
        anomaly_map: Tensor | np.ndarray,
        original: tuple[int, int],
        fill: float | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Anomaly map (h, w) on any grid -> float32 (H, W) over the original image.

        Sampled bilinearly at the centre of each original pixel, so nothing shifts, or at those of
        another `grid` over the whole image. Pixels that the centre crop removed were never looked
        at: they get `fill`, or the minimum of the map.
        """
        values = torch.as_tensor(anomaly_map).detach().float().cpu()
        rows, columns = self._positions(original, grid or original)
        points = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # (H, W, 2)
        out = F.grid_sample(
            values[None, None], points[None], mode="bilinear", padding_mode="border",
            align_corners=False,
        )[0, 0]  # fmt: skip
        outside = (rows.abs() > 1)[:, None] | (columns.abs() > 1)[None, :]
        return out.masked_fill(outside, float(values.min()) if fill is None else fill)

    def seen(self, original: tuple[int, int]) -> np.ndarray:
        """Which pixels of an original image the network sees, by their centres: bool (H, W)."""
        rows, columns = self._positions(original, original)
        return ((rows.abs() <= 1)[:, None] & (columns.abs() <= 1)[None, :]).numpy()

    @property
    def crops(self) -> bool:
        """Whether some image may lose its borders."""
        return self.crop is not None and self.crop != self.resize

    def _positions(self, original: tuple[int, int], grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Centres of the rows and columns of a grid over an image, where the crop is [-1, 1]."""
        resized, (top, left, height, width) = self.geometry(original)

        def centres(count: int, resized: int, start: int, length: int) -> Tensor:
            pixels = (torch.arange(count, dtype=torch.float64) + 0.5) * (resized / count)
            return ((pixels - start) / length * 2 - 1).float()

        return centres(grid[0], resized[0], top, height), centres(grid[1], resized[1], left, width)

    def _output_size(self) -> tuple[int, int]:
        size = self.crop or _pair(self.resize)
        if size is None:
            found = "transform.resize and transform.crop are both null"
            do = "set transform.resize=[H,W] (or transform.crop)"
            raise ConfigError("The size of the network input is not fixed.", found=found, do=do)
        least = (min(size),) * 2 if isinstance(self.resize, int) else size
        if any(side > most for side, most in zip(least, _pair(self.resize) or size, strict=True)):
            what = "transform.crop is larger than the resized image."
            do = "make transform.crop at most transform.resize"
            raise ConfigError(what, found=f"resize={self.resize}, crop={self.crop}", do=do)
        return size

    def _cut(
        self, picture: Image.Image, resample: Image.Resampling, crop: bool = True
    ) -> Image.Image:
        """Pillow resize and centre crop."""
        resized, (top, left, height, width) = self.geometry((picture.height, picture.width))
        if resized != (picture.height, picture.width):
            picture = picture.resize((resized[1], resized[0]), resample)
        if not crop or (height, width) == resized:
            return picture
        return picture.crop((left, top, left + width, top + height))


def fitting_size(paths: Sequence[Path], side: int, step: int = 32) -> tuple[int, int]:
    """(H, W) with about side * side pixels and the shape of the median image, else the square.

    Both are the nearest multiples of `step`: 320 x 160 for side 224 and images of 512 x 256.
    """
    sizes, _ = each(paths, image_size)
    if not sizes:
        return side, side
    height, width = np.median(sizes, axis=0)
    stretch = float(height / width) ** 0.5
    rows, columns = side * stretch, side / stretch
    return max(step, step * round(rows / step)), max(step, step * round(columns / step))


def view_of(view: Mapping[str, Any], paths: Sequence[Path]) -> ImageTransform:
    """The geometry that a node `data.view` means for these training images, for the doctor."""
    resize = view["resize"]
    size = fitting_size(paths, view["side"], view["step"]) if resize == AUTO else resize
    return ImageTransform(
        resize=size, crop=view["crop"], interpolation="bilinear", antialias=True,
        mean=[0.0] * 3, std=[1.0] * 3,
    )  # fmt: skip


def read_roi(path: Path, transform: ImageTransform, images: Sequence[Path]) -> np.ndarray:
    """Pixels of the network's view that count, bool (H, W), from the picture `data.roi`.

    DataError: unreadable, of another shape than the images, or black where the network looks.
    """
    mask = read_mask(path)
    for image in images:
        size = image_size(image)
        if not same_view(mask.shape, size):
            raise DataError(
                f"data.roi={path} has another shape than the images.",
                found=f"{mask.shape[1]} x {mask.shape[0]} pixels; {image.name} has "
                f"{size[1]} x {size[0]}",
                do="draw it on one of the images and save it at the size of that image",
            )
    seen = transform.mask(mask)
    if not seen.any():
        found = f"{mask.mean():.0%} of it is white, none of that in the view"
        do = "paint white what is to be looked at, and black the rest"
        raise DataError(f"data.roi={path} leaves nothing to look at.", found=found, do=do)
    return seen


def _to_tensor(picture: Image.Image) -> Tensor:
    """RGB -> uint8 (3, H, W), own memory."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _pair(value: int | Sequence[int] | None) -> tuple[int, int] | None:
    if value is None:
        return None
    height, width = (value, value) if isinstance(value, int) else value
    return height, width
