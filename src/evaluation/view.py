"""What the pixel metrics look at: which part of an image, on which grid, with which masks.

A method may see the centre of an image only (PatchCore: 224 of 256 pixels, 77 % of the image).
By default pixel metrics are measured where it looked, as its paper does, and the share of defect
pixels that it never saw is a number of its own. With `evaluation.whole_image: true` they are
measured over the whole image, and what the crop cut off has the lowest of all scores: it is never
found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.data.images import image_size, read_mask
from src.data.samples import DEFECTIVE, Sample
from src.data.transforms import MASK_RULES, ImageTransform
from src.errors import ConfigError, did_you_mean

#: Score of a pixel that was never looked at; finite, as every score that is ranked.
NEVER_FOUND = float(np.finfo(np.float32).min)


class DefectPixels(NamedTuple):
    """Pixels of a mask as it lies on disk, and how many of them the network cannot see."""

    marked: int
    unseen: int


class Grid:
    """Maps and masks where the network looks, resized to the grid of the pixel metrics.

    Maps are resized bilinearly, masks by nearest neighbour, both with half-pixel centres.

    Args:
        size: (height, width) of the grid in pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def maps(self, index: Sequence[int], maps: Tensor, unseen: float = NEVER_FOUND) -> Tensor:
        """Maps (B, h, w) of any grid -> (B, H, W); pixels that are never seen get `unseen`."""
        return resize_maps(maps, self.size)

    def masks(self, index: Sequence[int], masks: Tensor) -> Tensor:
        """Masks (B, h, w) bool of a batch -> (B, H, W) bool."""
        return resize_masks(masks, self.size)

    def defect_pixels(self, index: int) -> DefectPixels | None:
        """Marked and unseen pixels of a defective image; None: nothing marked or cut off."""
        return None

    def name(self, index: int) -> str:
        """What to call an image in a sentence."""
        return f"image {index}"


class View(Grid):
    """The same by choice over the whole image and with eroded masks, read from their files.

    Args:
        transform: geometry of the network input.
        samples: what `batch["index"]` points into.
        size: (height, width) of the grid in pixels.
        whole_image: measure over the whole image instead of the network's view.
        masks: how masks are resized, one of `MASK_RULES`.

    Raises:
        ConfigError: an unknown rule.
    """

    def __init__(
        self,
        transform: ImageTransform,
        samples: Sequence[Sample],
        size: tuple[int, int],
        *,
        whole_image: bool,
        masks: str,
    ) -> None:
        super().__init__(size)
        if masks not in MASK_RULES:
            raise ConfigError(
                f"evaluation.masks={masks} is not known.",
                found=masks,
                do=did_you_mean(masks, MASK_RULES),
            )
        self.transform, self.samples = transform, samples
        self.whole_image, self.rule = whole_image and transform.crops, masks

    def maps(self, index: Sequence[int], maps: Tensor, unseen: float = NEVER_FOUND) -> Tensor:
        """Maps (B, h, w) of any grid -> (B, H, W); pixels that are never seen get `unseen`."""
        if not self.whole_image:
            return super().maps(index, maps)
        sizes = [image_size(self.samples[i].image_path) for i in index]
        placed = [
            self.transform.to_original(one, size, unseen, grid=self.size)
            for one, size in zip(maps, sizes, strict=True)
        ]
        return torch.stack(placed)

    def masks(self, index: Sequence[int], masks: Tensor) -> Tensor:
        """Masks (B, h, w) bool of a batch -> (B, H, W) bool by the chosen rule.

        The batch has them by nearest neighbour and cropped; otherwise files are read again.
        """
        if not self.whole_image and self.rule == "nearest":
            return super().masks(index, masks)
        return torch.cat([self._mask(i) for i in index])

    def defect_pixels(self, index: int) -> DefectPixels | None:
        """Marked and unseen pixels of a defective image; None: nothing marked or cut off."""
        sample = self.samples[index]
        if not self.transform.crops or sample.label != DEFECTIVE or sample.mask_path is None:
            return None
        mask = read_mask(sample.mask_path)
        if not mask.any():
            return None
        unseen = mask & ~self.transform.seen((mask.shape[0], mask.shape[1]))
        return DefectPixels(int(mask.sum()), int(unseen.sum()))

    def name(self, index: int) -> str:
        """Folder and file of an image."""
        return "/".join(self.samples[index].image_path.parts[-2:])

    def _mask(self, index: int) -> Tensor:
        """Mask of one image, (1, H, W) bool; nothing is marked without a file."""
        path = self.samples[index].mask_path
        if path is None:
            return torch.zeros(1, *self.size, dtype=torch.bool)
        mask = self.transform.mask(path, rule=self.rule, crop=not self.whole_image)
        return resize_masks(torch.from_numpy(mask)[None], self.size)


def build_view(
    options: Mapping[str, Any], transform: ImageTransform, samples: Sequence[Sample]
) -> View:
    """The view of the config group `evaluation`."""
    size = options["size"]
    return View(
        transform,
        samples,
        (size, size) if isinstance(size, int) else (size[0], size[1]),
        whole_image=options["whole_image"],
        masks=options["masks"],
    )


def resize_maps(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Anomaly maps (B, h, w) -> (B, H, W), bilinear with half-pixel centres."""
    target = (size, size) if isinstance(size, int) else size
    if maps.shape[-2:] == target:
        return maps
    return torch.nn.functional.interpolate(
        maps[:, None].float(), size=target, mode="bilinear", align_corners=False
    )[:, 0]


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (B, h, w) bool -> (B, H, W) bool, nearest neighbour with half-pixel centres."""
    if masks.shape[-2:] == size:
        return masks
    return torch.nn.functional.interpolate(
        masks[:, None].to(torch.uint8), size=size, mode="nearest-exact"
    )[:, 0].bool()


def pixel_convention(cfg: Mapping[str, Any]) -> str:
    """One line for every table: which part of an image, which grid, which masks.

    `cfg`: a composed config, or that of a saved run, whose options may be younger than the run.
    """
    options = cfg["evaluation"]
    whole, rule = options.get("whole_image", False), options.get("masks", "nearest")
    masks = {
        "nearest": "masks by nearest neighbour",
        "eroded": "masks eroded as by the official PatchCore code",
    }[rule]
    part = _part(cfg["transform"]["resize"], cfg["transform"]["crop"], whole)
    return f"pixel metrics over {part}, on a {_size(options['size'])} grid, {masks}"


def _part(resize: Any, crop: Any, whole: bool) -> str:
    if crop is None or (not isinstance(resize, int) and resize == crop):
        return "the whole image"
    if resize is None:
        before = "of the original"
    else:
        side = f"a shorter side of {resize}" if isinstance(resize, int) else _size(resize)
        before = f"after resizing to {side}"
    seen = f"the centre {_size(crop)} {before}"
    if whole:
        return f"the whole image (the network sees {seen}; the rest counts as never found)"
    return seen


def _size(value: Any) -> str:
    height, width = (value, value) if isinstance(value, int) else value
    return f"{height}x{width}"
