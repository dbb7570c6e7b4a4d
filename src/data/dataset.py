"""Samples to batches: decoding, an optional in-memory cache, shuffling that can be resumed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler

from src import processes
from src.data.images import read_mask, read_sample, same_view
from src.data.measured import each
from src.data.samples import Sample
from src.data.transforms import ImageTransform
from src.errors import DataError

Batch = dict[str, Tensor]


@dataclass(eq=False)
class ImageDataset(Dataset[Batch]):
    """The samples at `indices` as batches."""

    samples: Sequence[Sample]
    indices: Sequence[int]
    transform: ImageTransform
    cached: bool  # keep them in memory after the first use
    # pixels (n, 3, H, W) uint8 or float32, masks (n, H, W) bool
    _kept: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, positions: list[int]) -> Batch | DataError:
        """A whole batch for the loader; a broken file travels as a value out of the worker."""
        try:
            return self.batch(positions)
        except DataError as error:
            return error

    def batch(self, positions: Sequence[int]) -> Batch:
        """Batch of image (B, 3, H, W), mask (B, H, W), label (B,), index (B,), or a DataError."""
        rows = [self.indices[p] for p in positions]
        if self.cached:
            pixels, masks = (kept[list(positions)] for kept in self._cache())
        else:
            pixels, masks = _stacked([self._load(self.samples[row]) for row in rows])
        return {
            "image": self.transform.normalise(pixels),
            "mask": masks,
            "label": torch.tensor([self.samples[row].label for row in rows]),
            "index": torch.tensor(rows),
        }

    def _load(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Pixels (3, H, W) before normalisation and mask (H, W) of one sample."""
        try:
            picture = read_sample(sample)
            pixels = self.transform.pixels(picture)
            if sample.mask_path is None:
                return pixels, torch.zeros(self.transform.size, dtype=torch.bool)
            mask = read_mask(sample.mask_path)
            if not same_view(mask.shape, (picture.height, picture.width)):
                raise DataError(
                    f"The mask {sample.mask_path} does not fit its image.",
                    found=f"mask {mask.shape[1]} x {mask.shape[0]}, "
                    f"image {picture.width} x {picture.height} pixels",
                    do="export the mask again at the size of its image",
                )
            return pixels, torch.from_numpy(self.transform.mask(mask))
        except DataError as error:
            if str(sample.image_path) in error.what:
                raise
            what = f"{error.what} ({sample.image_path})"
            raise DataError(what, found=error.found, do=error.do) from error

    def _cache(self) -> tuple[Tensor, Tensor]:
        """All pixels and masks, decoded once."""
        if self._kept is None:
            pairs, broken = each([self.samples[row] for row in self.indices], self._load)
            for _, error in broken:
                raise error
            self._kept = _stacked(pairs)
        return self._kept


class Share(Dataset[Batch]):
    """Of every batch the part that this process works on; `of` (scalar) is the whole's length.

    A batch with fewer images than processes leaves the last ones its first image as a stand-in.
    """

    def __init__(self, data: ImageDataset) -> None:
        self.data, self.rank, self.count = data, processes.rank(), processes.count()

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, positions: list[int]) -> Batch | DataError:
        """This process's share of the batch at `positions`."""
        batch = self.data.__getitems__(positions[self.rank :: self.count] or positions[:1])
        if not isinstance(batch, DataError):
            batch["of"] = torch.tensor(len(positions))
        return batch


class EpochShuffle(Sampler[int]):
    """Positions 0..count-1 in an order that depends on (seed, epoch) alone.

    `length` of an epoch, with repeats if larger than `count`; None: each position once.
    """

    def __init__(self, count: int, length: int | None, seed: int) -> None:
        self.count, self.length, self.seed = count, length or count, seed
        self.epoch = -1  # of the order being given out; counts up with each pass
        self.given = 0  # positions handed over in this epoch, set by the loader
        self._resumed = False

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        """The next epoch's order, or the rest of the one that was loaded."""
        if not self._resumed or self.given >= self.length:
            self.epoch, self.given = self.epoch + 1, 0
        self._resumed = False
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        order = RandomSampler(range(self.count), num_samples=self.length, generator=generator)
        return iter(list(order)[self.given :])

    def state_dict(self) -> dict[str, Any]:
        """Where we are."""
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there at the next pass; an empty state changes nothing."""
        if state:
            self.epoch, self.given = int(state["epoch"]), int(state["given"])
            self._resumed = True


class CheckedLoader(DataLoader[Batch]):
    """A DataLoader over `ImageDataset` that raises a worker's DataError in the main process.

    torch rebuilds exceptions of workers from one string, without our three parts, so they come as
    values. With an `EpochShuffle` Lightning's checkpoints resume at the next batch.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches in order."""
        batches = super().__iter__()
        for batch in batches:
            if isinstance(batch, DataError):
                # The traceback would keep the workers alive, and torch then waits 5 s for each.
                getattr(batches, "_shutdown_workers", lambda: None)()
                self._iterator = None
                raise batch
            if isinstance(self.sampler, EpochShuffle):
                self.sampler.given += int(batch.get("of", len(batch["index"])))
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Position in the shuffled epochs; empty for ordered loaders."""
        return self.sampler.state_dict() if isinstance(self.sampler, EpochShuffle) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        if isinstance(self.sampler, EpochShuffle):
            self.sampler.load_state_dict(state)


def _stacked(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([pixels for pixels, _ in pairs]), torch.stack([mask for _, mask in pairs])
