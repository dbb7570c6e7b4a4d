"""RoadImages and Panorama (Mattes et al., AGILE GISS 4:7, 2023; Zenodo 10.5281/zenodo.7681876).

RoadImages are renders of laser scans: a height and an intensity file, read as the channels (height,
intensity, intensity), in `{good_ones,bad_ones}/{height_files,intensity_files}/`. Panoramas lie in
`{good_ones,bad_ones}/`. There are no masks. The splits are those of the official code.
"""

import re
from pathlib import Path

from src.data.listing import find_root, list_images, no_images
from src.data.samples import DEFECTIVE, NORMAL, Found, Sample, about, normals
from src.errors import DataError

TRAIN_SHARE = 0.7  # official code
BAD_PER_TRAINING_IMAGE = 2  # official code

_HEIGHT, _INTENSITY = "height_files", "intensity_files"
_INSIDE = f"good_ones/{_HEIGHT}"
_MODALITIES = ("height", "heights", "intensity", "intensities")


def index_road_images(root: Path, category: str, *, pairing: str) -> Found:
    """The first 70 % of the sorted good images train, the others and all bad ones test.

    `pairing` by name matches files whose names agree once "height" and "intensity" are left out; by
    position it takes the n-th of each sorted folder, unchecked, as the official code does.
    DataError: no such layout below `root`, or files without a partner.
    """
    base = find_root(root.absolute(), "RoadImages", _INSIDE)
    good, bad = _pairs(base / "good_ones", pairing), _pairs(base / "bad_ones", pairing)
    train = int(TRAIN_SHARE * len(good))
    return Found(
        Sample(height, None, label, defect, split, channel_paths=(intensity,))
        for pairs, label, defect, split in (
            (good[:train], NORMAL, "good", "train"),
            (good[train:], NORMAL, "good", "test"),
            (bad, DEFECTIVE, "bad", "test"),
        )
        for height, intensity in pairs
    )


def index_panorama(root: Path, category: str) -> Found:
    """The first 70 % of the sorted good images train.

    The test are the first bad images, at most twice as many as training images, then the other good
    ones. DataError: no such layout, or an empty folder.
    """
    base = find_root(root.absolute(), "Panorama", "good_ones")
    good, bad = _sorted_images(base / "good_ones"), _sorted_images(base / "bad_ones")
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


def _sorted_images(folder: Path) -> list[Path]:
    """Images in the plain order of their names, which fixes the official split."""
    images = sorted(list_images(folder), key=lambda path: path.name)
    if not images:
        raise no_images(folder)
    return images


def _pairs(folder: Path, pairing: str) -> list[tuple[Path, Path]]:
    """(height, intensity) files, sorted by the height file."""
    heights, intensities = (_sorted_images(folder / name) for name in (_HEIGHT, _INTENSITY))
    one, other = (
        {str(i) if pairing == "position" else _key(path): path for i, path in enumerate(paths)}
        for paths in (heights, intensities)
    )
    unshared = one.keys() ^ other.keys()
    alone = [path for key, path in [*one.items(), *other.items()] if key in unshared]
    if len(one) < len(heights) or len(other) < len(intensities):
        found = "two files whose names differ only in punctuation"
    elif alone:
        found = f"{len(alone)} files without a partner, first {alone[0].name}"
    else:
        return [(height, other[key]) for key, height in one.items()]
    raise DataError(
        f"The height and intensity files of {folder} do not fit together.",
        found=f"{len(heights)} height and {len(intensities)} intensity files; {found}",
        do="unpack the archive again; if only the names differ and the order is right, "
        "set data.pairing=position",
    )


def _key(path: Path) -> str:
    """What the two files of an image have in common: words and numbers but the modality."""
    words = re.findall(r"[a-z]+|[0-9]+", path.stem.lower())
    return "_".join(word for word in words if word not in _MODALITIES)
