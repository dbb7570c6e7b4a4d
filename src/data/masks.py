"""Which mask belongs to which image: never one of another defect, never a guess."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from src.data.samples import Finding, Sample, about

# What tools add to the name of an image to call its mask: x_mask, x_gt, x-label2, x_mask1.
_SUFFIX = re.compile(
    r"[ _.-]+(masks?|gt|labels?|seg|segmentation|ground[ _-]?truth|annotation)[ _.-]?\d*$", re.I
)


def image_stem(stem: str) -> str:
    """Stem of the image that a mask of this stem marks: `007_mask1` -> `007`."""
    return _SUFFIX.sub("", stem) or stem


def look_like_masks(files: Sequence[Path]) -> list[Path]:
    """Files that lie beside the image whose name and a suffix they bear: `7_gt` beside `7`."""
    stems = ((path, path.stem) for path in files)
    marked = {path: stem for path, name in stems if (stem := image_stem(name)) != name}
    names = {path.with_suffix("") for path in files} if marked else set()
    return [path for path, stem in marked.items() if path.with_name(stem) in names]


def pair_masks(
    samples: Sequence[Sample], homes: Mapping[Path, Path], masks: Sequence[Path], mask_dir: Path
) -> dict[Path, Path]:
    """Image -> its mask.

    A mask has the path of its image: below `mask_dir` as below the folder of defective images,
    with or without the name of that folder and a suffix such as `_mask`. Otherwise the bare name
    decides, if only one image and one mask have it and the mask lies in no folder of another
    defect. A path or name that two images or two masks share decides nothing.

    Args:
        samples: all defective images.
        homes: for each image the folder of defective images in which it was found.
        masks: files below `mask_dir`.
        mask_dir: folder of the masks.
    """
    defect = {sample.image_path: sample.defect for sample in samples}
    below = {image: _name(image, homes[image]) for image in defect}
    named = {image: homes[image].name / path for image, path in below.items()}
    places = {mask: _name(mask, mask_dir) for mask in masks}
    pairs: dict[Path, Path] = {}
    for wanted in (named, below):
        pairs = _unique(wanted, places, pairs) | pairs
    stems = {image: PurePath(image.stem) for image in defect}
    bare = {mask: PurePath(mask.stem) for mask in masks}
    one_type = len(set(defect.values())) == 1
    for image, mask in _unique(stems, bare, pairs).items():
        folders = places[mask].parts[:-1]
        if one_type or not folders or defect[image] in folders:
            pairs.setdefault(image, mask)
    return pairs


def pairing_findings(
    samples: Sequence[Sample], masks: Sequence[Path], used: set[Path]
) -> list[Finding]:
    """Masks that mark nothing, with the reason: a name that no image has, or that several have."""
    stems = {sample.image_path.stem for sample in samples}
    spare = [mask for mask in masks if mask not in used]
    known = {m: m.stem in stems or image_stem(m.stem) in stems for m in spare}
    clashing = [mask for mask in spare if known[mask]]
    lost = [mask for mask in spare if not known[mask]]
    return [
        *about(
            clashing, "warning", "Masks whose image is not certain, so they are not used.",
            remedy="give each the path of its image: masks/dent/7_mask.png for bad/dent/7.png",
        ),
        *about(
            lost, "warning", "Masks without an image.",
            remedy="rename them to the stem of their image, or remove them",
        ),
    ]  # fmt: skip


def _name(path: Path, folder: Path) -> PurePath:
    """Path below `folder` without its extension."""
    return PurePath(path.relative_to(folder).with_suffix(""))


def _unique(
    images: Mapping[Path, PurePath], masks: Mapping[Path, PurePath], pairs: Mapping[Path, Path]
) -> dict[Path, Path]:
    """Pairs of a name that exactly one image and one mask have; `pairs` are settled."""
    owners: dict[PurePath, list[Path]] = {}
    for image, name in images.items():
        owners.setdefault(name, []).append(image)
    claims: dict[PurePath, list[Path]] = {}
    settled = set(pairs.values())
    for mask, name in masks.items():
        for key in {name, name.with_name(image_stem(name.name))}:
            if mask not in settled:
                claims.setdefault(key, []).append(mask)
    return {
        chosen[0]: claims[name][0]
        for name, chosen in owners.items()
        if len(chosen) == len(claims.get(name, ())) == 1 and chosen[0] not in pairs
    }
