"""What the pixel metrics look at: which part of an image, on which grid, with which masks.

The grid has `evaluation.size` pixels, or is that of each image file: `evaluation.size=original`, as
the official evaluation code of MVTec AD does.

A method may see the centre of an image only (PatchCore: 224 of 256 pixels). By default pixel
metrics are measured where it looked, as its paper does. With `evaluation.whole_image: true` they
are measured over the whole image, and what the crop cut off has the lowest of all scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.data.images import Region, image_size, read_mask, read_regions
from src.data.samples import DEFECTIVE, Sample
from src.data.transforms import ImageTransform
from src.evaluation.pixels import saturating_weights

ORIGINAL = "original"

#: Score of a pixel that was never looked at; finite, as every score that is ranked.
NEVER_FOUND = float(np.finfo(np.float32).min)


@dataclass(eq=False)
class View:
    """Maps and masks of test images on the grid of the pixel metrics.

    Maps are resized bilinearly, masks by nearest neighbour, both with half-pixel centres.
    """

    grid: int | Sequence[int] | str  # its side or (height, width); ORIGINAL: of each image file
    transform: ImageTransform | None = None  # of the network input; None: it sees whole images
    samples: Sequence[Sample] = ()  # what `batch["index"]` points into
    _: KW_ONLY
    whole_image: bool = False  # measure over the whole image instead of the network's view
    rule: str = "nearest"  # how masks are resized, nearest or eroded (`ImageTransform.mask`)
    roi: Tensor | None = None  # pixels (h, w) of the network's view that count; None: all

    def __post_init__(self) -> None:
        self.size = None if isinstance(self.grid, str) else _pair(self.grid)
        self.cropped = self.transform if self.transform and self.transform.crops else None
        self.whole_image = self.whole_image and self.cropped is not None
        self.roi = None if self.roi is None else self.roi.cpu().float()

    def maps(
        self, index: Sequence[int], maps: Tensor, unseen: float = NEVER_FOUND
    ) -> list[NDArray[np.float32]]:
        """Maps (B, h, w) of any grid -> B of (H, W); pixels that are never seen get `unseen`."""
        if self.transform is None or (self.size and not self.whole_image):
            return list(resize_maps(maps, self.size or maps.shape[-2:]).cpu().numpy())
        placed = []
        for i, one in zip(index, maps, strict=True):
            size = image_size(self.samples[i].image_path)
            found = self.transform.to_original(one, size, unseen, grid=self.size).numpy()
            placed.append(found if self.size else self._window(found))
        return placed

    def within(self, index: Sequence[int]) -> list[NDArray[np.bool_]] | None:
        """Pixels B of (H, W) bool of the grid that count; None: all."""
        if self.roi is None:
            return None
        maps = self.roi.expand(len(index), *self.roi.shape)
        return [one > 0.5 for one in self.maps(index, maps, 0.0)]

    def masks(self, index: Sequence[int], masks: Tensor) -> list[NDArray[np.bool_]]:
        """Masks (B, h, w) bool of a batch -> B of (H, W) bool by the chosen rule.

        The batch has them by nearest neighbour and cropped; otherwise files are read again.
        """
        nearest = not self.whole_image and self.rule == "nearest"
        if self.transform is None or (self.size and nearest):
            return list(resize_masks(masks, self.size or masks.shape[-2:]).cpu().numpy())
        found = []
        for sample in (self.samples[i] for i in index):
            size = image_size(sample.image_path)
            mask = read_mask(sample.mask_path) if sample.mask_path else np.zeros(size, dtype=bool)
            found.append(self._on_grid(mask, size))
        return found

    def defect_pixels(self, index: int) -> tuple[int, int] | None:
        """Pixels that the mask file of a defective image marks, and those that the crop cuts off.

        None: nothing is marked, or nothing can be cut off.
        """
        sample = self.samples[index] if self.cropped else None
        if not (sample and self.cropped and sample.label == DEFECTIVE and sample.mask_path):
            return None
        mask = read_mask(sample.mask_path)
        unseen = mask & ~self.cropped.seen((mask.shape[0], mask.shape[1]))
        return (int(mask.sum()), int(unseen.sum())) if mask.any() else None

    def saturating(
        self, index: int, scores: NDArray[Any], mask: NDArray[np.bool_]
    ) -> NDArray[np.float64] | None:
        """`saturating_weights` (H, W) of an image; None: its data set has no saturation areas."""
        sample = self.samples[index] if self.samples else None
        if sample is None or sample.saturation is None:
            return None
        regions = []
        for pixels, enough in read_regions(sample):
            seen = self._on_grid(pixels, image_size(sample.image_path))
            regions.append(Region(seen, enough * seen.sum() / pixels.sum()))
        return saturating_weights(scores, mask, regions)

    def _on_grid(self, mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
        """A mask (h, w) of a whole image file of `size` -> (H, W)."""
        if self.size is None:
            return self._window(resize_masks(torch.from_numpy(mask)[None], size)[0].numpy())
        assert self.transform is not None
        cut = self.transform.mask(mask, rule=self.rule, crop=not self.whole_image)
        return resize_masks(torch.from_numpy(cut)[None], self.size)[0].numpy()

    def _window(self, whole: NDArray[Any]) -> NDArray[Any]:
        """The part of a whole image (H, W) that is measured."""
        if self.cropped is None or self.whole_image:
            return whole
        seen = self.cropped.seen((whole.shape[0], whole.shape[1]))
        return whole[np.ix_(seen.any(axis=1), seen.any(axis=0))]


def resize_maps(maps: Tensor, size: int | Sequence[int]) -> Tensor:
    """Anomaly maps (B, h, w) -> (B, H, W), bilinear with half-pixel centres."""
    target = _pair(size)
    if maps.shape[-2:] == target:
        return maps
    return torch.nn.functional.interpolate(
        maps[:, None].float(), size=target, mode="bilinear", align_corners=False
    )[:, 0]


def resize_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks (B, h, w) bool -> (B, H, W) bool, nearest neighbour with half-pixel centres."""
    if masks.shape[-2:] == tuple(size):
        return masks
    return torch.nn.functional.interpolate(
        masks[:, None].to(torch.uint8), size=tuple(size), mode="nearest-exact"
    )[:, 0].bool()


def pixel_convention(cfg: Mapping[str, Any]) -> str:
    """One line for every table: which part of an image, which grid, which masks.

    `cfg`: a composed config, or that of a saved run, whose options may be younger than the run.
    """
    options, resize, crop = cfg["evaluation"], cfg["transform"]["resize"], cfg["transform"]["crop"]
    part = "the whole image"
    if crop is not None and (isinstance(resize, int) or resize != crop):
        side = (
            f"a shorter side of {resize}" if isinstance(resize, int) else resize and _size(resize)
        )
        before = f"after resizing to {side}" if side else "of the original"
        seen = f"the centre {_size(crop)} {before}"
        whole = f"{part} (the network sees {seen}; the rest counts as never found)"
        part = whole if options.get("whole_image", False) else seen
    if options["size"] == ORIGINAL:
        return f"pixel metrics over {part}, on the pixels of the original images and masks"
    masks = {
        "nearest": "masks by nearest neighbour",
        "eroded": "masks eroded as by the official PatchCore code",
    }[options.get("masks", "nearest")]
    return f"pixel metrics over {part}, on a {_size(options['size'])} grid, {masks}"


def _size(value: int | Sequence[int]) -> str:
    return "x".join(map(str, _pair(value)))


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width
