"""From named folders to samples: every image that is found is used once, or named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from src.data.listing import Listing, walk
from src.data.masks import look_like_masks, pair_masks, pairing_findings
from src.data.samples import DEFECTIVE, Finding, Found, Sample, about, normals, some
from src.errors import ConfigError, DataError

_GOOD = ("good", "ok", "normal")  # folders of good parts among those of defects


@dataclass(frozen=True)
class Folders:
    """The named folders of a data set; one inside another is taken out of the outer one."""

    good: Path
    good_test: Path | None = None
    defective: Sequence[Path] = ()  # their subfolders are defect types
    masks: Path | None = None  # may be one of `defective`: masks beside their images


def gather(folders: Folders) -> tuple[Found, list[Path]]:
    """List every image of the folders once and give defective ones their masks.

    Returns:
        The samples (training, good test parts, defective ones), and the named folders that have
        no image of their own.

    Raises:
        ConfigError: one folder with two meanings.
        DataError: a folder that cannot be read, or masks that cannot be told from their images.
    """
    distinct: dict[Path, Path] = {}  # where a folder really lies -> as it was named first
    for home in folders.defective:
        distinct.setdefault(home.resolve(), home)
    homes = list(distinct.values())
    mask_dir = folders.masks and distinct.get(folders.masks.resolve(), folders.masks)
    beside = mask_dir in homes
    named = [folder for folder in (folders.good, folders.good_test, *homes) if folder]
    named += [mask_dir] if mask_dir and not beside else []
    _require_one_meaning(named)
    seen = {f: walk(f, skip=[other for other in named if other != f]) for f in named}
    masks = seen[mask_dir].images if mask_dir else []
    if mask_dir and beside:
        masks = _beside(mask_dir, masks)
    marks = set(masks)
    owner = {path: home for home in homes for path in seen[home].images if path not in marks}
    inside = [path for path, home in owner.items() if _is_good(path, home)]
    for path in inside:
        del owner[path]
    train, good_test = (seen[f].images if f else [] for f in (folders.good, folders.good_test))
    defective, unpaired = _defective(owner, masks, mask_dir)
    misplaced = _misplaced(inside, [*train, *good_test, *owner])
    samples = [*normals(train, "train"), *normals(good_test + inside, "test"), *defective]
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
    pairs = pair_masks(samples, owner, masks, mask_dir)
    samples = [replace(sample, mask_path=pairs.get(sample.image_path)) for sample in samples]
    return samples, pairing_findings(samples, masks, set(pairs.values()))


def _defect(path: Path, home: Path) -> str:
    """The first folder below `home` names the defect."""
    below = path.relative_to(home)
    return below.parts[0] if len(below.parts) > 1 else home.name


def _is_good(path: Path, home: Path) -> bool:
    return any(part.lower() in _GOOD for part in path.relative_to(home).parts[:-1])


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
