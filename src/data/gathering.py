"""From named folders to samples: every image that is found is used once, or named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from src.data.listing import Listing, walk
from src.data.masks import look_like_masks, pair_masks, pairing_findings
from src.data.samples import DEFECTIVE, Finding, Sample, about, some
from src.errors import ConfigError, DataError

_GOOD = ("good", "ok", "normal")  # folders of good parts among those of defects


@dataclass(frozen=True)
class Folders:
    """The named folders of a data set; one inside another is taken out of the outer one."""

    good: Path
    good_test: Path | None = None
    defective: Sequence[Path] = ()  # their subfolders are defect types
    masks: Path | None = None  # may be one of `defective`: masks beside their images


@dataclass(frozen=True)
class Gathered:
    """What the folders hold."""

    train: list[Path]
    good_test: list[Path]
    defective: list[Sample]
    findings: list[Finding]
    empty: list[Path]  # named folders without an image of their own


def gather(folders: Folders) -> Gathered:
    """List every image of the folders once and give defective ones their masks.

    Raises:
        ConfigError: one folder with two meanings.
        DataError: a folder that cannot be read, or masks that cannot be told from their images.
    """
    homes = _distinct(folders.defective)
    mask_dir = next((h for h in homes if folders.masks and _same(h, folders.masks)), folders.masks)
    good = [folder for folder in (folders.good, folders.good_test) if folder]
    _require_one_meaning(good, homes if mask_dir in homes or not mask_dir else [*homes, mask_dir])
    named = [*good, *homes, *([mask_dir] if mask_dir else [])]

    def look(folder: Path | None) -> Listing:
        if folder is None:
            return Listing([], [], [])
        return walk(folder, skip=[other for other in named if not _same(other, folder)])

    train, good_test, marks = look(folders.good), look(folders.good_test), look(mask_dir)
    bad = {home: look(home) for home in homes}
    findings = _unusable([train, good_test, marks, *bad.values()])
    masks = _beside(mask_dir, marks.images) if mask_dir in homes else marks.images
    owner = {path: home for home, found in bad.items() for path in found.images}
    for path in masks:
        owner.pop(path, None)
    inside = [path for path, home in owner.items() if _is_good(path, home)]
    for path in inside:
        del owner[path]
    samples, unpaired = _defective(owner, masks, mask_dir)
    images = [*train.images, *good_test.images, *owner]
    findings += [*unpaired, *_misplaced(inside, images)]
    listed = {folders.good: train, folders.good_test: good_test, mask_dir: marks}
    empty = [folder for folder, found in listed.items() if folder and not found.images]
    empty += [home for home in homes if not walk(home).images]
    return Gathered(train.images, good_test.images + inside, samples, findings, empty)


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


# --- one folder, one meaning ----------------------------------------------------------------


def _same(a: Path, b: Path) -> bool:
    """Whether two paths lead to one folder."""
    return a == b or (a.exists() and b.exists() and a.samefile(b))


def _distinct(folders: Sequence[Path]) -> list[Path]:
    """Folders without those that were named before, under this or another path."""
    kept: list[Path] = []
    for folder in folders:
        if not any(_same(folder, other) for other in kept):
            kept.append(folder)
    return kept


def _require_one_meaning(good: Sequence[Path], others: Sequence[Path]) -> None:
    named = [*good, *others]
    for i, folder in enumerate(named):
        if any(_same(folder, other) for other in named[:i]):
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
            foreign, "warning", what="Pictures of a type that is not read; they are left out.",
            found=f"{', '.join(f'{n} {kind}' for kind, n in kinds)}; {some(foreign)}",
            remedy="save them as png or jpg",
        ),
        *about(
            broken, "warning", what="Image names that lead to no file; they are left out.",
            remedy="repair or remove these links",
        ),
    ]  # fmt: skip


def _misplaced(inside: Sequence[Path], images: Sequence[Path]) -> list[Finding]:
    """Good parts `inside` a folder of defects, and masks among the images."""
    folders = ", ".join(sorted({str(path.parent) for path in inside}))
    return [
        *about(
            inside, "note", found=f"{len(inside)} in {folders}",
            what="Good parts inside the folder of defective images; they count as good test "
            "images.",
            remedy="name that folder in data.normal_test_dir, or rename it if these parts are "
            "defective",
        ),
        *about(
            look_like_masks(images), "warning",
            what="Files that look like masks are used as images.",
            remedy="move them to a folder of their own and name it in data.mask_dir",
        ),
    ]  # fmt: skip
