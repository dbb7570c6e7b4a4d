"""Which images a run uses, and how they become batches. Values come from conf/."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Cache(Enum):
    """Whether decoded images stay in memory."""

    auto = "auto"  # when all fit in 1 GB
    memory = "memory"
    none = "none"


class Protocol(Enum):
    """What chooses the epoch of a trained method."""

    honest = "honest"  # held-out normals
    paper = "paper"  # the test set, as the paper did


@dataclass
class DataOptions:
    """What every data set has (conf/base/data.yaml) with its name; node `data`."""

    name: str  # of the data set, for run folders and tables
    category: str | None  # which product; None: the name of the root folder
    root: str  # folder of the data set
    batch_size: int  # of every loader
    bit_depth: int | str | None  # of deep grey: bits, "auto", or None: 16 (see depth.py)
    cache: Cache
    drop_last: bool  # leave out an incomplete last training batch
    samples_per_epoch: int | None  # length of a training epoch with repeats; None: each once
    exclude: list[str]  # images that are not used: paths below root as in data.csv, or their ends
    roi: str | None  # picture below root, white where to look; None: everywhere
    limit_train: int | None  # at most so many training images, before the hold-out; None: all
    limit_test: int | None  # at most so many test images, of both classes; None: all


@dataclass
class UseOptions:
    """What the rest of the config says about the use of the images."""

    seed: int  # of the hold-outs, the limits and the shuffling
    protocol: Protocol
    calibration_fraction: float  # share of the training normals that sets the threshold
    validation_fraction: float  # share that chooses the epoch; none of them calibrates
    shuffle_train: bool  # False for methods fitted in a single pass
    keep_aspect: bool  # the transform's square becomes a rectangle of the images' shape
    num_workers: int  # loader processes for sets that are not cached
