"""From named folders to samples: every image that is found is used once, or named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from src.data.listing import Listing, walk
from src.data.samples import DEFECTIVE, Finding, Found, Sample, about, normals, some
from src.errors import ConfigError, DataError

# What tools add to the name of an image to call its mask: x_mask, x_gt, x-label2, x_mask1.
_SUFFIX = re.compile(
    r"[ _.-]+(masks?|gt|labels?|seg|segmentation|ground[ _-]?truth|annotation)[ _.-]?\d*$", re.I
)
_GOOD = {"good", "ok", "normal"}  # folders of good parts among those of defects


def gather(
    good: Path,
    good_test: Path | None = None,
    defective: Sequence[Path] = (),
    mask_dir: Path | None = None,
) -> tuple[Found, list[Path]]:
    """List every image of the folders once and give defective ones their masks.

    Args:
        good: good parts for training; a named folder inside another is taken out of the outer one.
        good_test: good parts for the test.
        defective: folders whose subfolders are defect types.
        mask_dir: masks; may be one of `defective`, where they lie beside their images.

    Returns:
        The samples (training, good test parts, defective ones), and the named folders that have
        no image of their own.

    Raises:
        ConfigError: one folder with two meanings.
        DataError: a folder that cannot be read, or masks that cannot be told from their images.
    """
    distinct: dict[Path, Path] = {}  # where a folder really lies -> as it was named first
    for home in defective:
        distinct.setdefault(home.resolve(), home)
    homes = list(distinct.values())
    mask_dir = mask_dir and distinct.get(mask_dir.resolve(), mask_dir)
    beside = mask_dir in homes
    named = [folder for folder in (good, good_test, *homes) if folder]
    named += [mask_dir] if mask_dir and not beside else []
    _require_one_meaning(named)
    seen = {f: walk(f, skip=[other for other in named if other != f]) for f in named}
    masks = seen[mask_dir].images if mask_dir else []
    if mask_dir and beside:
        masks = _beside(mask_dir, masks)
    marks = set(masks)
    owner = {path: home for home in homes for path in seen[home].images if path not in marks}
    inside = [
        path for path, home in owner.items()
        if _GOOD & {part.lower() for part in path.relative_to(home).parts[:-1]}
    ]  # fmt: skip
    for path in inside:
        del owner[path]
    train, tested = seen[good].images, seen[good_test].images if good_test else []
    bad, unpaired = _defective(owner, masks, mask_dir)
    misplaced = _misplaced(inside, [*train, *tested, *owner])
    samples = [*normals(train, "train"), *normals(tested + inside, "test"), *bad]
    empty = [f for f in named if not seen[f].images and not (f in homes and walk(f).images)]
    return Found(samples, [*_unusable([*seen.values()]), *unpaired, *misplaced]), empty


def _defective(
    owner: dict[Path, Path], masks: list[Path], mask_dir: Path | None
) -> tuple[list[Sample], list[Finding]]:
    """Samples of the images in `owner` (image -> its folder), and the masks that fit none."""
    samples = [
        Sample(path, None, DEFECTIVE, _defect(path, home), "test") for path, home in owner.items()
    ]
    if mask_dir is None:
        return samples, []
    masks = _whole(masks, mask_dir, {_name(path, home) for path, home in owner.items()})
    pairs = pair_masks(samples, owner, masks, mask_dir)
    samples = [replace(sample, mask_path=pairs.get(sample.image_path)) for sample in samples]
    return samples, pairing_findings(samples, masks, set(pairs.values()))


def _whole(masks: list[Path], mask_dir: Path, images: set[PurePath]) -> list[Path]:
    """The masks; where several in a folder `dent/007` mark `dent/007.png`, that folder."""
    parents = {mask.parent for mask in masks} - {mask_dir}
    whole = {folder for folder in parents if _name(folder, mask_dir) in images}
    return list(dict.fromkeys(m.parent if m.parent in whole else m for m in masks))


def _defect(path: Path, home: Path) -> str:
    """The first folder below `home` names the defect."""
    below = path.relative_to(home)
    return below.parts[0] if len(below.parts) > 1 else home.name


def _beside(folder: Path, files: list[Path]) -> list[Path]:
    """The masks among images and masks of one folder."""
    masks = look_like_masks(files)
    if files and not masks:
        raise DataError(
            f"Images and masks in {folder} cannot be told apart.",
            found="data.mask_dir is a folder of data.abnormal_dir, and no file is called x_mask",
            do="call the mask of x.png x_mask.png, or put the masks into a folder of their own",
        )
    return masks


def _require_one_meaning(named: Sequence[Path]) -> None:
    real = [folder.resolve() for folder in named]
    for i, folder in enumerate(named):
        if real[i] in real[:i]:
            raise ConfigError(
                f"The folder {folder} has two meanings.",
                found="it is named twice among good parts, defective parts and masks",
                do="give each of them a folder of its own",
            )


def _unusable(listings: Sequence[Listing]) -> list[Finding]:
    """Pictures that no list of images holds."""
    foreign = [path for listing in listings for path in listing.foreign]
    broken = [path for listing in listings for path in listing.broken]
    kinds = Counter(path.suffix.lower() for path in foreign).most_common()
    return [
        *about(
            foreign, "warning", "Pictures of a type that is not read; they are left out.",
            found=f"{', '.join(f'{n} {kind}' for kind, n in kinds)}; {some(foreign)}",
            remedy="save them as png or jpg",
        ),
        *about(
            broken, "warning", "Image names that lead to no file; they are left out.",
            remedy="repair or remove these links",
        ),
    ]  # fmt: skip


def _misplaced(inside: Sequence[Path], images: Sequence[Path]) -> list[Finding]:
    """Good parts `inside` a folder of defects, and masks among the images."""
    folders = ", ".join(sorted({str(path.parent) for path in inside}))
    return [
        *about(
            inside, "note",
            "Good parts inside the folder of defective images; they count as good test images.",
            found=f"{len(inside)} in {folders}",
            remedy="name that folder in data.normal_test_dir, or rename it if these parts are "
            "defective",
        ),
        *about(
            look_like_masks(images), "warning", "Files that look like masks are used as images.",
            remedy="move them to a folder of their own and name it in data.mask_dir",
        ),
    ]  # fmt: skip


# --- which mask belongs to which image: never one of another defect, never a guess --------------


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
