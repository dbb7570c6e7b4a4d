"""Panorama (Mattes et al., AGILE GISS 4:7, 2023; Zenodo 10.5281/zenodo.7681876).

Hand-labelled panoramas of a survey vehicle, `{good_ones,bad_ones}/*`, without masks; the top folder
of the archive does not matter.

The split of the official code: the first 70 % of the sorted good images train; the test set is the
first bad images, at most twice as many as training images, then the remaining good ones.
"""

from __future__ import annotations

from pathlib import Path

from src.data.road_images import TRAIN_SHARE, find_root, sorted_images
from src.data.samples import DEFECTIVE, Found, Sample, about, normals

BAD_PER_TRAINING_IMAGE = 2  # official code


def index_panorama(root: Path, category: str) -> Found:
    """Samples in the order of the official code: train, bad test, good test; of one category.

    Raises:
        DataError: no such layout, or an empty folder.
    """
    base = find_root(root.absolute(), "Panorama", "good_ones")
    good, bad = sorted_images(base / "good_ones"), sorted_images(base / "bad_ones")
    train = int(TRAIN_SHARE * len(good))
    tested = BAD_PER_TRAINING_IMAGE * train
    samples = [
        *normals(good[:train], "train"),
        *(Sample(path, None, DEFECTIVE, "bad", "test") for path in bad[:tested]),
        *normals(good[train:], "test"),
    ]
    left_out = about(
        bad[tested:], "note", "Bad images that the official split leaves out of the test.",
        remedy="nothing: the paper did the same",
    )  # fmt: skip
    return Found(samples, left_out)
