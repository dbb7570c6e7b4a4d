"""What happens to images in a factory: light, focus, pose, compression."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from src.errors import ConfigError, did_you_mean

Change = Callable[[Image.Image, float], Image.Image]


def brighten(image: Image.Image, factor: float) -> Image.Image:
    """Multiply pixel values by `factor`, clipped at white."""
    return ImageEnhance.Brightness(image).enhance(factor)


def blur(image: Image.Image, sigma: float) -> Image.Image:
    """Gaussian blur, sigma in pixels of the original image."""
    return image.filter(ImageFilter.GaussianBlur(sigma))


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Turn about the centre; corners take the mean colour of the border."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (round(float(value)) for value in border.mean(axis=0))
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=(red, green, blue))


def compress(image: Image.Image, quality: float) -> Image.Image:
    """Through JPEG at `quality` (1..95) and back."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


CHANGES: dict[str, Change] = {
    "brightness": brighten,
    "blur": blur,
    "rotation": rotate,
    "jpeg": compress,
}


def find_change(name: str) -> Change:
    """A change by its config name."""
    if name not in CHANGES:
        raise ConfigError("Unknown change.", found=name, do=did_you_mean(name, CHANGES))
    return CHANGES[name]
