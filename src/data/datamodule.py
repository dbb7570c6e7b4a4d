"""One category of a data set, or several together, split and served as batches."""

import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import default_convert

from src import processes
from src.data.dataset import CheckedLoader, EpochShuffle, ImageDataset, Share
from src.data.images import image_size
from src.data.measured import empty_masks, measure_masks, settle_depth
from src.data.record import FITTED, DataRecord, Entry, list_samples, place_of
from src.data.record import prepare_data as prepare
from src.data.samples import DEFECTIVE, Found, Sample, some, summary
from src.data.splits import limit_test, split_training
from src.data.transforms import AUTO, ImageTransform, fitting_size, read_roi
from src.errors import ConfigError, DataError

log = logging.getLogger(__name__)

#: Largest set that `data.cache: auto` keeps in memory. ours: five times MVTec's largest category
#: (391 images) at 256 px, and small beside the features.
_CACHE_BYTES = 10**9


class AnomalyDataModule(pl.LightningDataModule):
    """Training normals, held-out normals for calibration, and the test set.

    Training and calibration hold normal images only. Test labels and masks are in the batches, but
    only evaluation may read them. conf/base/data.yaml says what the keys of `cfg.data` mean;
    `listed` replaces its `list_samples`. ConfigError: turned copies for a method without a memory
    bank.
    """

    def __init__(self, cfg: DictConfig, listed: Found | None = None) -> None:
        super().__init__()
        self.cfg, self.options = cfg, cfg.data
        self.name, (self.root, self.category) = cfg.data.name, place_of(cfg.data)
        method: str = (cfg.get("model") or {}).get("_target_", "")
        self.single_pass = bool(method) and getattr(get_class(method), "single_pass", False)
        if cfg.data.get("rotations") and not self.single_pass:
            raise ConfigError(
                "Turned copies fill a memory bank, which this method has not.",
                found=f"data.rotations={cfg.data.rotations} model={cfg.model.name}",
                do="use model=patchcore, or leave data.rotations out",
            )
        self.keeps_aspect = cfg.transform.resize == AUTO  # decided by the images in `setup`
        square = {"resize": [cfg.data.view.side] * 2} if self.keeps_aspect else {}
        self.transform = ImageTransform(**{**cfg.transform, **square})
        self.bit_depth: int | str | None = cfg.data.bit_depth  # a number or None once set up
        self.found = listed or Found([])  # the lists below are what is used of it
        self.record = DataRecord([])
        self._entries: dict[Path, Entry] = {}
        self.samples: list[Sample] = []
        self.train_samples: list[Sample] = []
        self.calibration_samples: list[Sample] = []
        self.validation_samples: list[Sample] = []
        self.test_samples: list[Sample] = []
        self._sets: dict[str, ImageDataset] = {}
        self._shuffle: EpochShuffle | None = None
        self._resume_at: dict[str, Any] = {}

    def prepare_data(self) -> None:
        """Download or generate what is not there; once per machine."""
        prepare(self.options)

    def look(self) -> DataRecord:
        """List the samples with what is in their files; a second call does nothing."""
        if not self.record.entries:
            self.found = self.found or list_samples(self.options)
            self.record = DataRecord.of(self.found, self.root)
            entries = zip(self.found, self.record.entries, strict=True)
            self._entries = {sample.image_path: entry for sample, entry in entries}
        return self.record

    def setup(self, stage: str | None = None) -> None:
        """List and split the samples, in each process; a second call does nothing."""
        if self.samples:
            return
        self.look()
        cfg = self.cfg
        self.found, self.bit_depth = settle_depth(self.found, self.bit_depth)
        train, given, test = (
            [sample for sample in self.found if sample.split == split]
            for split in ("train", "calibration", "test")
        )
        bad = [sample for sample in train if sample.label == DEFECTIVE]
        if bad or not train:
            raise DataError(
                f"{self.name}/{self.category}: training needs normal images, and only those.",
                found=f"{len(train)} training images, {len(bad)} of them defective",
                do=f"check the folders below {self.root}, or run python -m src.check",
            )
        contents = {self.entry_of(sample).content for sample in train}
        if twice := [one.image_path for one in given if self.entry_of(one).content in contents]:
            raise DataError(
                "Pictures that set the threshold are also in training.",
                found=some(twice),
                do="keep calibration.dir outside of the training folder, and take these pictures "
                "out of one of them",
            )
        if self.keeps_aspect:
            paths = [sample.image_path for sample in train]
            size = fitting_size(paths, cfg.data.view.side, cfg.data.view.step)
            self.transform = ImageTransform(**{**cfg.transform, "resize": size})
        self.train_samples, held_out, self.validation_samples = split_training(
            train, cfg, given=bool(given)
        )
        self.calibration_samples = given or held_out
        learnt = [*self.train_samples, *self.calibration_samples, *self.validation_samples]
        test = self._unseen(test, {self.entry_of(sample).content for sample in learnt})
        self.test_samples = limit_test(test, self.options.limit_test, cfg.seed)
        self._arrange()

    def leave_out(self, fitted: Collection[str]) -> None:
        """Keep images with these contents, which a model was fitted on, out of the test."""
        self.setup()
        self.test_samples = self._unseen(self.test_samples, fitted)
        self._arrange()

    def require_unchanged(self) -> None:
        """DataError when an image or mask is not what it was when it was listed."""
        if difference := self.record.difference(DataRecord.of(self.found, self.root)):
            what = "The data changed while the run was at work."
            do = "leave the images alone during a run, and start it again with force=true"
            raise DataError(what, found=f"{difference}, below {self.root}", do=do)

    def entry_of(self, sample: Sample) -> Entry:
        """What is in the files of a listed image."""
        return self._entries[sample.image_path]

    def _unseen(self, test: Sequence[Sample], fitted: Collection[str]) -> list[Sample]:
        """Test images but those that a model was fitted on; protocol=paper keeps them."""
        seen = [sample.image_path for sample in test if self.entry_of(sample).content in fitted]
        if not seen:
            return list(test)
        told = f"{len(seen)} of {len(test)} test images are the very images that were fitted on"
        named = some(seen)
        if self.cfg.protocol == "paper":
            log.warning("%s; they stay in the test, as protocol=paper asks: %s", told, named)
            return list(test)
        if len(seen) == len(test):
            do = "give images that the model has not seen, or protocol=paper to keep them"
            raise DataError("There is nothing to test with.", found=f"{told}: {named}", do=do)
        log.warning("%s and are left out of the test: %s", told, named)
        return [sample for sample in test if self.entry_of(sample).content not in fitted]

    def _arrange(self) -> None:
        """One list of all samples that are used, with a set of images for each split."""
        self.samples = [
            *self.train_samples, *self.calibration_samples, *self.validation_samples,
            *self.test_samples,
        ]  # fmt: skip
        used = {sample.image_path: sample.split for sample in self.samples}
        self.record = self.record.with_use([used.get(one.image_path, "") for one in self.found])
        height, width = self.image_size
        size = height * width * (4 if self.transform.antialias else 13)  # pixels and mask, bytes
        fits = len(self.samples) * size <= _CACHE_BYTES
        cached = self.options.cache == "memory" or (self.options.cache == "auto" and fits)
        for split in (*FITTED, "test"):
            indices = [i for i, sample in enumerate(self.samples) if sample.split == split]
            self._sets[split] = ImageDataset(self.samples, indices, self.transform, cached=cached)

    def write_settled(self) -> None:
        """Put into the config what the images decided: bits of deep grey, size of the view."""
        OmegaConf.update(self.cfg, "data.bit_depth", self.bit_depth, force_add=True)
        if self.keeps_aspect:
            OmegaConf.update(self.cfg, "transform.resize", list(self.image_size))

    def announce(self) -> None:
        """Say what the run consists of, and what was noticed about it."""
        log.info("%s", summary(self.samples, self.options.exclude))
        if self.keeps_aspect:
            log.info("images are seen at %d x %d pixels (data.view)", *self.image_size[::-1])
        height, width = image_size(self.train_samples[0].image_path)
        share = self.transform.seen((height, width)).mean()
        if self.name == "folder" and share < 0.99:  # data sets have papers that crop
            log.warning(
                "The centre crop sees %.0f %% of an image of %d x %d pixels; defects outside are "
                "missed. transform.crop=null sees all of it.", 100 * share, width, height,
            )  # fmt: skip
        masks, _ = measure_masks(self.test_samples)
        for finding in (*self.found.findings, *empty_masks(masks)):
            log.warning("%s", finding)

    # --- loaders; `shared`: of each batch this process's share, else all of it --------------------

    def train_dataloader(self) -> CheckedLoader:
        """Training normals, shuffled with `seed` unless the method is fitted in one pass."""
        data, options, count = self._set("train"), self.options, processes.count()
        if self.single_pass:
            return self._loader(data, shared=True)
        if options.batch_size < count:
            raise ConfigError(
                "A batch has fewer images than there are processes to share it.",
                found=f"data.batch_size={options.batch_size} for {count} processes",
                do=f"set data.batch_size={count} or more, or hardware.devices=1",
            )
        self._shuffle = EpochShuffle(len(data), options.samples_per_epoch, self.cfg.seed)
        self._shuffle.load_state_dict(self._resume_at)
        drop = options.drop_last and len(self._shuffle) >= options.batch_size
        return self._loader(data, sampler=self._shuffle, drop_last=drop, shared=True)

    def ordered_train_dataloader(self) -> CheckedLoader:
        """Every training normal once, in the order of `train_samples`."""
        return self._loader(self._set("train"))

    def calibration_dataloader(self, *, shared: bool = False) -> CheckedLoader:
        """Held-out normals in order; no batch at all when nothing was held out."""
        return self._loader(self._set("calibration"), shared=shared)

    def validation_dataloader(self) -> CheckedLoader:
        """Normals that choose the weights, in order."""
        return self._loader(self._set("validation"))

    def val_dataloader(self) -> CheckedLoader | list[CheckedLoader]:
        """For Lightning: these normals; with `protocol: paper` the test set. Empty: none."""
        if self.cfg.protocol == "paper":
            return self.test_dataloader()
        loader = self.validation_dataloader()
        return loader if self.validation_samples else []

    def test_dataloader(self, *, shared: bool = False) -> CheckedLoader:
        """The test set in order."""
        return self._loader(self._set("test"), shared=shared)

    predict_dataloader = test_dataloader

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position of the shuffled training images."""
        return self._shuffle.state_dict() if self._shuffle is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`; the next training loader starts there.

        Lightning restores loaders too, but not when the length of the training was asked for
        before (2.6, `estimated_stepping_batches`).
        """
        self._resume_at = state_dict

    @property
    def roi_file(self) -> Path | None:
        """The picture that says where to look."""
        return self.root / self.options.roi if self.options.roi else None

    def roi(self) -> Tensor | None:
        """Pixels (H, W) bool of the images that count; None: all. DataError: see `read_roi`."""
        if self.roi_file is None:
            return None
        train = [sample.image_path for sample in self.train_samples]
        return torch.from_numpy(read_roi(self.roi_file, self.transform, train))

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of every image and mask in the batches."""
        return self.transform.size

    def _set(self, split: str) -> ImageDataset:
        self.setup()
        return self._sets[split]

    def _loader(self, data: ImageDataset, *, shared: bool = False, **options: Any) -> CheckedLoader:
        # A cached batch is an index into one tensor: processes would only add copies.
        workers = 0 if data.cached or not len(data) else worker_count(self.cfg.hardware.num_workers)
        return CheckedLoader(
            Share(data) if shared and processes.count() > 1 else data,
            batch_size=self.options.batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=default_convert,  # `__getitems__` made the batch
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.cfg.seed),  # seeds the workers
            **options,
        )


def worker_count(wanted: int | str | None) -> int:
    """Loader processes: a number, or "auto": one per core up to 8, none on one core."""
    if wanted is None or wanted == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        return 0 if cores < 2 else min(cores, 8)
    return int(wanted)
