"""The pixels of a test set, kept small: what every pixel metric is computed from.

Each score map is stored as sorted float32 values, split by its mask: 4 bytes a pixel. What exceeds
the memory budget goes to a temporary file. All results are exact in either case.
"""

import copy
import dataclasses
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from src.data.images import Region
from src.evaluation.ranking import Counts, Floats, Ranking, around, finite, table

Scores = NDArray[np.float32]

#: Normal pixels sorted together: 64 MiB of float32; ranking needs two of these beyond the budget.
RUN_LENGTH = 2**24


class ImagePixels(NamedTuple):
    """The scores of one image, ascending."""

    defect: Scores  # (m,)
    overlap: Floats  # (m,) what each defective pixel adds to PRO: 1 / (pixels of its region)
    saturated: Floats  # (m,) what it adds to sPRO, when pixels are found from the highest on
    normal: Scores  # (k,), perhaps mapped from a file


class PixelRanking(NamedTuple):
    """Tables of all test pixels; `_inside` counts false positives in defective images only."""

    pixels: Ranking  # hits: pixels
    regions: Ranking  # hits: 1 / (pixels of the region), so that each region weighs 1
    saturated: Ranking  # hits: shares of saturation areas, so that each region weighs 1
    pixels_inside: Ranking
    regions_inside: Ranking


class PixelHistograms(NamedTuple):
    """Per image, how many pixels fall into each of b bins, highest scores first.

    Bins hold about equal numbers of defective and normal pixels, so AUROC of any re-weighting of
    the images is off by less than 1 / bins, unless more than that share has one and the same score.
    """

    image: NDArray[Any]  # (n,) what the images are known by: an index, or a path in scores.csv
    defect: Counts  # (n, b)
    region: Floats  # (n, b) weights that sum to the number of regions of the image
    normal: Counts  # (n, b)

    def of(self, images: Sequence[Any]) -> "PixelHistograms":
        """The rows of `images`, in that order; KeyError when one is missing."""
        row = {name: i for i, name in enumerate(self.image.tolist())}
        rows = [row[name] for name in images]
        return PixelHistograms(*(part[rows] for part in self))  # type: ignore[arg-type]


class PixelStore:
    """Collects score maps and masks of one grid; images are known by their index.

    `memory_gb` GiB of scores are kept in memory; the rest is spooled to a temporary file.
    """

    def __init__(self, memory_gb: float) -> None:
        self._free = memory_gb * 2**30
        self._images: dict[int, ImagePixels] = {}
        self._ranking: PixelRanking | None = None
        self.saturates = False  # whether an image came with saturating weights
        self.spool: BinaryIO | None = None  # the file, when part of the scores lies on disk

    def __len__(self) -> int:
        return len(self._images)

    @property
    def index(self) -> Counts:
        """Image indices in ascending order, the row order of every array of this class."""
        return np.array(sorted(self._images), dtype=np.int64)

    def add(
        self,
        index: int,
        anomaly_map: Scores,
        mask: NDArray[np.bool_],
        within: NDArray[np.bool_] | None = None,
        saturated: Floats | None = None,
    ) -> None:
        """Keep one image: scores (H, W), else a DataError if not finite, and its mask (H, W).

        Normal pixels outside of `within` (H, W) are left out, where it is given. `saturated` (H, W)
        are the `saturating_weights` of the image; None: those of PRO.
        """
        flat = finite(anomaly_map, what=f"map values of image {index}").astype(np.float32)
        marked = mask.ravel()
        fine = ~marked if within is None else ~marked & within.ravel()
        defect, normal = flat[marked], np.sort(flat[fine])
        order = np.argsort(defect)
        overlap = 1.0 / region_sizes(mask)[order]
        self.saturates |= saturated is not None
        weights = overlap if saturated is None else saturated[mask][order]
        self._free -= normal.nbytes
        if normal.size and self._free < 0:
            if self.spool is None:  # lives as long as the store
                self.spool = tempfile.TemporaryFile(prefix="pixel-scores-")  # noqa: SIM115
            offset = self.spool.seek(0, 2)
            normal.tofile(self.spool)
            self.spool.flush()
            normal = np.memmap(self.spool, np.float32, "r", offset, normal.shape)
        self._images[index] = ImagePixels(defect[order], overlap, weights, normal)
        self._ranking = None

    def images(self) -> Iterator[ImagePixels]:
        """The images, by index."""
        return (self._images[index] for index in self.index.tolist())

    @property
    def defects(self) -> Counts:
        """Defective pixels per image (n,)."""
        return np.array([image.defect.size for image in self.images()], dtype=np.int64)

    def counts_from(self, cuts: NDArray[Any]) -> tuple[Counts, Counts]:
        """True and false positives (n, T) per image when every score >= cut is detected.

        Cuts (T,) for all images, or (n, T) of each.
        """
        low = np.asarray(cuts, dtype=np.float32)
        low = np.broadcast_to(low, (len(self), low.shape[-1]))
        tp, fp = np.empty(low.shape, np.int64), np.empty(low.shape, np.int64)
        for row, image in enumerate(self.images()):
            tp[row] = image.defect.size - np.searchsorted(image.defect, low[row])
            fp[row] = image.normal.size - np.searchsorted(image.normal, low[row])
        return tp, fp

    def counts_above(self, threshold: float | Sequence[float]) -> tuple[Counts, Counts]:
        """`counts_from` (n,) of score > threshold, one for all images or one for each."""
        above = [[first_above(one)] for one in np.broadcast_to(threshold, len(self)).tolist()]
        tp, fp = self.counts_from(np.reshape(above, (-1, 1)))
        return tp[:, 0], fp[:, 0]

    def only(self, images: Collection[int]) -> Self:
        """Some of the images, by their indices; nothing is copied."""
        part = copy.copy(self)
        part._images = {index: self._images[index] for index in images if index in self._images}
        part._ranking = None
        return part

    def histograms(self, bins: int) -> PixelHistograms:
        """Scores of each image counted in about `bins` bins, for resampling images."""
        quantiles = np.linspace(0, 1, bins // 2 + 1)
        images = list(self.images())
        defects = [image.defect for image in images if image.defect.size]
        normals = [image.normal[::16] for image in images if image.normal.size]  # a sample
        cuts = [
            np.quantile(np.concatenate(part), quantiles, method="inverted_cdf")
            for part in (defects, normals)
            if part
        ]
        edges = np.unique(np.concatenate(cuts)).astype(np.float32)
        shape = (len(images), edges.size + 1)
        defect, normal = np.empty(shape, np.int64), np.empty(shape, np.int64)
        region = np.empty(shape)
        for row, image in enumerate(images):
            cut = np.searchsorted(image.defect, edges)
            weight = np.r_[0.0, np.cumsum(image.overlap)]
            defect[row] = np.diff(cut, prepend=0, append=image.defect.size)
            region[row] = np.diff(weight[cut], prepend=0, append=weight[-1])
            cut = np.searchsorted(image.normal, edges)
            normal[row] = np.diff(cut, prepend=0, append=image.normal.size)
        return PixelHistograms(self.index, defect[:, ::-1], region[:, ::-1], normal[:, ::-1])

    def highest_normals(self, share: float) -> tuple[Scores, Floats]:
        """Distinct scores (k,) of good images, highest first, as far as `share` of their pixels.

        With the rate (k,) of each: the mean over good images of the share of pixels at or above it.
        """
        good = [image.normal for image in self.images() if not image.defect.size]
        good = [normal for normal in good if normal.size]

        def rate(cuts: Any) -> Any:
            return np.mean([1 - np.searchsorted(part, cuts) / part.size for part in good], axis=0)

        if not good:
            return np.empty(0, np.float32), np.empty(0)
        low = min(part[-1 - int(share * part.size)] for part in good)  # each reaches the share here
        high = max(part[-1] for part in good)
        for _ in range(64):  # bisection, to neighbours in float32
            middle = low / 2 + high / 2
            low, high = (low, middle) if rate(middle) < share else (middle, high)
        top = np.concatenate([part[np.searchsorted(part, low) :] for part in good])
        values = np.unique(top)[::-1]
        return values, rate(values)

    def rank(self) -> PixelRanking:
        """The tables of all pixel metrics."""
        if self._ranking is not None:
            return self._ranking
        images = list(self.images())
        defect = np.concatenate([np.empty(0, np.float32), *(image.defect for image in images)])
        value, where, hits = np.unique(defect, return_inverse=True, return_counts=True)

        def at_each_value(parts: Iterable[Floats]) -> Floats:
            weights = np.concatenate([np.empty(0), *parts])
            summed = np.bincount(where, weights=weights, minlength=value.size)
            return summed[::-1].astype(np.float64)

        good = [image for image in images if not image.defect.size]
        bad = [image for image in images if image.defect.size]
        inside, outside = self._around(bad, value), self._around(good, value)
        both = inside[0] + outside[0], inside[1] + outside[1], np.maximum(inside[2], outside[2])
        within = table(value, hits, inside, sum(image.normal.size for image in bad))
        everywhere = table(value, hits, both, sum(image.normal.size for image in images))
        by_region = at_each_value(image.overlap for image in images)
        saturated = at_each_value(i.saturated for i in images) if self.saturates else by_region
        self._ranking = PixelRanking(
            pixels=everywhere,
            regions=dataclasses.replace(everywhere, hits=by_region),
            saturated=dataclasses.replace(everywhere, hits=saturated),
            pixels_inside=within,
            regions_inside=dataclasses.replace(within, hits=by_region),
        )
        return self._ranking

    def _around(self, images: list[ImagePixels], value: Scores) -> tuple[Counts, Counts, Scores]:
        """`around` of all normal pixels of `images`, in runs of RUN_LENGTH."""
        above, at_least = np.zeros(value.size, np.int64), np.zeros(value.size, np.int64)
        below = np.full(value.size, -np.inf, dtype=np.float32)
        run: list[Scores] = []
        for image in images:
            run.append(image.normal)
            if sum(part.size for part in run) >= RUN_LENGTH or image is images[-1]:
                merged = np.concatenate(run)
                merged.sort()
                from_here, above_here, below_here = around(merged, value)
                above += above_here
                at_least += from_here
                np.maximum(below, below_here, out=below)
                run.clear()
        return at_least, above, below


def region_sizes(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Size in pixels of the 8-connected region each marked pixel belongs to.

    mask (H, W) bool -> sizes (m,) int32 in the order of `mask.nonzero()`.
    """
    labels, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=int))
    sizes = np.bincount(labels.ravel(), minlength=count + 1).astype(np.int32)
    return sizes[labels[mask]]


def saturating_weights(
    scores: Scores, mask: NDArray[np.bool_], regions: Iterable[Region]
) -> Floats:
    """What each pixel (H, W) adds to the sPRO of the regions, found from the highest score on.

    Of a region min(found pixels / saturation, 1) counts: so its highest pixels share its weight 1,
    the others add nothing. A pixel of several regions adds to each; outside of `mask` none does.
    """
    weights = np.zeros(mask.shape)
    for region in regions:
        inside = region.pixels & mask
        highest = np.argsort(-scores[inside])
        if count := highest.size:
            found = np.arange(count + 1) / min(region.saturation, count)
            added = np.empty(count)
            added[highest] = np.diff(np.minimum(found, 1))
            weights[inside] += added
    return weights


def first_above(threshold: float) -> np.float32:
    """The smallest float32 that is > threshold, so that score > threshold is score >= it."""
    with np.errstate(over="ignore"):
        near = np.float32(threshold)
    return near if float(near) > threshold else np.nextafter(near, np.float32(np.inf))
