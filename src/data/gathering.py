"""From named folders to samples: every image that is found is used once, or named."""

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

    A named folder inside another is taken out of the outer one. Subfolders of `defective` are
    defect types. `mask_dir` may be one of these, where masks lie beside their images.

    Returns:
        The samples (training, good test parts, defective ones), and the named folders without any.

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
    named = [f for f in (good, good_test, *homes, None if beside else mask_dir) if f]
    if twice := [a for i, a in enumerate(named) if a.resolve() in map(Path.resolve, named[:i])]:
        found = "it is named twice among good parts, defective parts and masks"
        do = "give each of them a folder of its own"
        raise ConfigError(f"The folder {twice[0]} has two meanings.", found=found, do=do)
    seen = {f: walk(f, skip=[other for other in named if other != f]) for f in named}
    files = masks = seen[mask_dir].images if mask_dir else []
    if beside and not (masks := look_like_masks(files)) and files:
        found = "data.mask_dir is a folder of data.abnormal_dir, and no file is called x_mask"
        do = "call the mask of x.png x_mask.png, or put the masks into a folder of their own"
        raise DataError(f"Images and masks in {mask_dir} cannot be told apart.", found=found, do=do)
    marks = set(masks)
    owner = {path: home for home in homes for path in seen[home].images if path not in marks}
    inside = [
        path for path, home in owner.items()
        if _GOOD & {part.lower() for part in path.relative_to(home).parts[:-1]}
    ]  # fmt: skip
    for path in inside:
        del owner[path]
    train, tested = seen[good].images, seen[good_test].images if good_test else []
    bad = [  # the first folder below the one that was named is the defect
        Sample(path, None, DEFECTIVE, (*path.relative_to(home).parts[:-1], home.name)[0], "test")
        for path, home in owner.items()
    ]
    findings = _doubts([*seen.values()], inside, [*train, *tested, *owner])
    if mask_dir:
        bad, unpaired = _with_masks(bad, owner, masks, mask_dir)
        findings += unpaired
    empty = [f for f in named if not seen[f].images and not (f in homes and walk(f).images)]
    samples = [*normals(train, "train"), *normals(tested + inside, "test"), *bad]
    return Found(samples, findings), empty


def _doubts(
    listings: Sequence[Listing], inside: Sequence[Path], images: Sequence[Path]
) -> list[Finding]:
    """Pictures that no list of images holds; good parts `inside` a folder of defects; masks."""
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
        *about(
            inside, "note",
            "Good parts inside the folder of defective images; they count as good test images.",
            found=f"{len(inside)} in {', '.join(sorted({str(path.parent) for path in inside}))}",
            remedy="name that folder in data.normal_test_dir, or rename it if these parts are "
            "defective",
        ),
        *about(
            look_like_masks(images), "warning", "Files that look like masks are used as images.",
            remedy="move them to a folder of their own and name it in data.mask_dir",
        ),
    ]  # fmt: skip


def image_stem(stem: str) -> str:
    """Stem of the image that a mask of this stem marks: `007_mask1` -> `007`."""
    return _SUFFIX.sub("", stem) or stem


def look_like_masks(files: Sequence[Path]) -> list[Path]:
    """Files that lie beside the image whose name and a suffix they bear: `7_gt` beside `7`."""
    marked = {path: stem for path in files if (stem := image_stem(path.stem)) != path.stem}
    names = {path.with_suffix("") for path in files} if marked else set()
    return [path for path, stem in marked.items() if path.with_name(stem) in names]


def _with_masks(
    samples: list[Sample], homes: Mapping[Path, Path], masks: Sequence[Path], mask_dir: Path
) -> tuple[list[Sample], list[Finding]]:
    """Images with their masks, never one of another defect, never a guess; findings of the others.

    A mask has the path of its image: below `mask_dir` as below the folder of defective images,
    which `homes` gives, with or without the name of that folder and a suffix such as `_mask`.
    Otherwise the bare name decides, if only one image and one mask have it and the mask lies in no
    folder of another defect. A path or name that two images or two masks share decides nothing.
    """
    defect = {sample.image_path: sample.defect for sample in samples}
    below = {image: _name(image, homes[image]) for image in defect}
    wanted = {*below.values()}  # several masks in a folder dent/007 of dent/007.png are one
    whole = {
        m.parent for m in masks if m.parent != mask_dir and _name(m.parent, mask_dir) in wanted
    }
    masks = list(dict.fromkeys(m.parent if m.parent in whole else m for m in masks))
    places = {mask: _name(mask, mask_dir) for mask in masks}
    pairs: dict[Path, Path] = {}
    for names in ({image: homes[image].name / path for image, path in below.items()}, below):
        pairs |= _unique(names, places, pairs)
    stems = {image: PurePath(image.stem) for image in defect}
    bare = {mask: PurePath(mask.stem) for mask in masks}
    one_type = len(set(defect.values())) == 1
    for image, mask in _unique(stems, bare, pairs).items():
        folders = places[mask].parts[:-1]
        if one_type or not folders or defect[image] in folders:
            pairs[image] = mask
    used, known = {*pairs.values()}, {image.stem for image in defect}
    spare = {m: bool({m.stem, image_stem(m.stem)} & known) for m in masks if m not in used}
    findings = [
        *about(
            [mask for mask, clashes in spare.items() if clashes],
            "warning", "Masks whose image is not certain, so they are not used.",
            remedy="give each the path of its image: masks/dent/7_mask.png for bad/dent/7.png",
        ),
        *about(
            [mask for mask, clashes in spare.items() if not clashes],
            "warning", "Masks without an image.",
            remedy="rename them to the stem of their image, or remove them",
        ),
    ]  # fmt: skip
    return [replace(one, mask_path=pairs.get(one.image_path)) for one in samples], findings


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
