"""What is wrong with a data set, how badly, and what to do about it.

Errors would spoil a result without anybody noticing, or stop a run; warnings make it doubtful;
notes are worth knowing. Thresholds are ours and err on the side of silence: `mvtec/bottle` and the
synthetic categories pass without a warning.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from src.data.images import is_deep, same_view
from src.data.measured import (
    ImageFacts,
    MaskFacts,
    empty_masks,
    measure,
    measure_masks,
    near_duplicates,
)
from src.data.samples import DEFECTIVE, NORMAL, SEVERITIES, Finding, Found, Sample, some
from src.data.transforms import ImageTransform
from src.errors import DataError

#: Fewer training images than this hardly show the variation of a product. ours.
FEW_IMAGES = 20
#: Robust deviations (of the median absolute deviation) beyond which an image stands out. ours:
#: the most unusual of 209 MVTec bottles reaches 5.
STANDS_OUT = 8.0
#: Aspect that a view may change, and times that it may shrink a side. ours: images of 512 x 192
#: squeezed to a square lose 13 points of image AUROC and half of their AUPRO.
MOST_STRETCH, MOST_SHRINK = 1.5, 4.0
#: Names that hardly belong to good parts; whole words, in English and German.
SUSPICIOUS = re.compile(
    r"(?<![a-z])(defect\w*|anomal\w*|scratch\w*|crack\w*|broken|reject\w*|nok|ng|ko|bad|faulty"
    r"|defekt\w*|fehler\w*|kratzer\w*|ausschuss)(?![a-z])",
    re.IGNORECASE,
)

#: What the doctor may say: how bad it is, and what to do.
ADVICE: Mapping[str, tuple[str, str]] = {
    "No training images.": ("error", "check the folders below data.root"),
    "Few training images.": (
        "warning", f"collect at least {FEW_IMAGES}; more show more of the allowed variation"),
    "No defective test images.": (
        "note",
        "expect false-alarm rates but no AUROC; add some defective images when you can"),
    "No normal test images.": (
        "warning", "add normal test images: without them false alarms cannot be counted"),
    "Not the published number of images in {}.": (
        "warning", "unpack the archive again; results cannot be compared with published ones"),
    "Images of different sizes.": (
        "note", "check the camera settings; different fields of view look like defects"),
    "Images of different shapes.": (
        "warning", "check the camera settings; different fields of view look like defects"),
    "The view distorts the images.": (
        "warning",
        "leave data.view.resize out, which keeps the shape of most images, or sort them by shape "
        "into runs of their own; squeezed images cost accuracy"),
    "The view shrinks the images to less than a quarter.": (
        "warning",
        "expect to miss fine defects; data.view.side=448 sees twice as much for four times the "
        "work"),
    "Mixed pixel formats.": ("warning", "save all images of a product in one pixel format"),
    "Deep grey images that use a small part of their range.": (
        "warning",
        "look for single hot pixels, or set data.bit_depth to the bits in use, such as 12"),
    "No masks.": ("note", "expect no pixel metrics"),
    "No masks are named.": (
        "note", "expect no pixel metrics; set data.mask_dir if you have masks"),
    "Defective images without a mask.": (
        "warning", "add their masks; pixel metrics do not count these images"),
    "Masks that do not fit their image.": ("error", "export them at the image's size"),
    "Masks of another resolution.": ("note", "fine, but borders become coarse"),
    "Masks that cover most of the image; inverted?": (
        "warning", "white must be the defect, black the rest"),
    "Masks with defects on normal images.": (
        "error", "move the image to the defective ones, or remove the mask"),
    "The same picture is called normal and defective.": (
        "error", "decide which label is right and delete the other file"),
    "The same picture is in training and test.": (
        "error", "remove it from one of them: the test would be too easy"),
    "Nearly the same picture is in training and test.": (
        "warning", "check that they show different parts, not one photograph saved twice"),
    "Pictures saved twice in one split.": ("note", "delete the copies"),
    "Nearly the same pictures in one split.": ("note", "keep one of each, if they are copies"),
    "Normal images with the name of a defect.": ("warning", "check their labels"),
    "Blank images.": ("error", "remove them or photograph the part again"),
    "Training images of unusual {}.": ("warning", "look at them; remove bad shots"),
    "Normal test images differ from training in {}.": (
        "warning", "take both under the same light, or expect false alarms"),
    "Over- or underexposed.": (
        "note", "shorten or lengthen the exposure, unless this is the background"),
}  # fmt: skip


@dataclass
class Report:
    """All findings, and what they were found in."""

    samples: list[Sample]
    images: list[ImageFacts]
    findings: list[Finding]

    @property
    def exit_code(self) -> int:
        """0 nothing worse than a note, 1 warnings, 2 errors."""
        return max((SEVERITIES.index(f.severity) for f in self.findings), default=0)

    def counts(self) -> dict[tuple[str, str], int]:
        """(split, defect) -> number of images, normals first."""
        count = Counter((s.split, s.defect) for s in self.samples)
        order = sorted(count, key=lambda key: (key[0] != "train", key[1] != "good", key[1]))
        return {key: count[key] for key in order}


def examine(
    samples: Sequence[Sample],
    *,
    transform: ImageTransform | None = None,
    published: Mapping[str, int] | None = None,
    masks_named: bool = True,
) -> Report:
    """Look at every image and mask of a data set once.

    Args:
        samples: as an index function lists them.
        transform: also check that its geometry fits every image.
        published: expected number of images in each split.
        masks_named: whether the configuration says where masks are, so that this is no advice.
    """
    images, broken = measure(samples)
    masks, broken_masks = measure_masks(samples)
    findings = [
        *(samples.findings if isinstance(samples, Found) else []),
        *_unreadable("image", {s.image_path: error for s, error in broken}),
        *_unreadable("mask", {s.mask_path or Path(): error for s, error in broken_masks}),
        *_counts(samples, published or {}), *_sizes(images), *_misfits(images, transform),
        *_formats(images), *_missing_masks(samples, masks_named), *empty_masks(masks),
        *_masks(images, masks), *_copies(images), *_names(samples), *_looks(images),
    ]  # fmt: skip
    findings.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    return Report(list(samples), images, findings)


def _say(what: str, found: str = "", files: Sequence[Path] = (), of: str = "") -> Finding:
    """A finding in the words of ADVICE; `of` fills its gap."""
    severity, remedy = ADVICE[what]
    return Finding(
        severity=severity, what=what.format(of), found=found or some(files), remedy=remedy,
        files=tuple(files),
    )  # fmt: skip


# --- what is there --------------------------------------------------------------------------


def _unreadable(kind: str, broken: Mapping[Path, DataError]) -> Iterator[Finding]:
    reasons = Counter(error.found for error in broken.values()).most_common(3)
    for error in [*broken.values()][:1]:
        yield Finding(
            severity="error", what=f"{len(broken)} {kind}s cannot be read.",
            found="; ".join(f"{count} x {reason}" for reason, count in reasons),
            remedy=error.do, files=tuple(broken),
        )  # fmt: skip


def _counts(samples: Sequence[Sample], published: Mapping[str, int]) -> Iterator[Finding]:
    count = Counter((s.split, s.label) for s in samples)
    train, good, bad = count["train", NORMAL], count["test", NORMAL], count["test", DEFECTIVE]
    if train < FEW_IMAGES:
        yield _say("Few training images." if train else "No training images.", f"{train}")
    if not bad:
        yield _say("No defective test images.", f"{good} normal")
    elif not good:
        yield _say("No normal test images.", f"{bad} defective")
    for split, expected in published.items():
        found = sum(s.split == split for s in samples)
        if found != expected:
            told = f"{found}, published {expected}"
            yield _say("Not the published number of images in {}.", told, of=split)


def _sizes(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    sizes = Counter(image.size for image in images).most_common()
    if len(sizes) > 1:
        shapes = {round(width / height, 2) for (height, width), _ in sizes}
        found = ", ".join(f"{count} x {w} x {h}" for (h, w), count in sizes[:4])
        odd = _files(i for i in images if i.size != sizes[0][0])
        yield _say(f"Images of different {'shapes' if len(shapes) > 1 else 'sizes'}.", found, odd)


def _misfits(images: Sequence[ImageFacts], transform: ImageTransform | None) -> Iterator[Finding]:
    """Images that the view does not fit, distorts or shrinks."""
    odd: dict[str, list[tuple[str, list[Path]]]] = {}
    for height, width in {image.size: None for image in images} if transform else {}:
        files = _files(i for i in images if i.size == (height, width))
        try:
            (rows, columns), _ = cast(ImageTransform, transform).geometry((height, width))
        except DataError as error:
            yield Finding(
                severity="error", what=error.what, found=error.found, remedy=error.do,
                files=tuple(files),
            )  # fmt: skip
            continue
        down, across = height / rows, width / columns
        told = f"{len(files)} of {width} x {height} pixels become {columns} x {rows}"
        if max(down / across, across / down) > MOST_STRETCH:
            odd.setdefault("The view distorts the images.", []).append((told, files))
        if max(down, across) > MOST_SHRINK:
            what = "The view shrinks the images to less than a quarter."
            odd.setdefault(what, []).append((told, files))
    for what, cases in odd.items():
        named = [path for _, files in cases for path in files]
        yield _say(what, "; ".join(told for told, _ in cases[:3]), named)


def _formats(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    modes = Counter(image.mode for image in images).most_common()
    if len(modes) > 1:
        found = ", ".join(f"{count} x {mode}" for mode, count in modes)
        odd = _files(i for i in images if i.mode != modes[0][0])
        yield _say("Mixed pixel formats.", found, odd)
    deep = [i for i in images if is_deep(i.mode)]
    if deep and np.median([i.brightness + 4 * i.contrast for i in deep]) < 20:
        found = f"median brightness {np.median([i.brightness for i in deep]):.1f} of 255"
        yield _say("Deep grey images that use a small part of their range.", found)


# --- masks ----------------------------------------------------------------------------------


def _masks(images: Sequence[ImageFacts], masks: Sequence[MaskFacts]) -> Iterator[Finding]:
    size_of = {image.sample.image_path: image.size for image in images}
    shapes = [(m, size_of[m.sample.image_path]) for m in masks if m.sample.image_path in size_of]
    for what, wrong in {
        "Masks that do not fit their image.":
            [m for m, size in shapes if not same_view(m.size, size)],
        "Masks of another resolution.":
            [m for m, size in shapes if m.size != size and same_view(m.size, size)],
        "Masks that cover most of the image; inverted?":
            [m for m in masks if m.sample.label == DEFECTIVE and m.area > 0.6],
        "Masks with defects on normal images.":
            [m for m in masks if m.sample.label == NORMAL and m.area > 0],
    }.items():  # fmt: skip
        if wrong:
            yield _say(what, files=[m.file for m in wrong])


def _missing_masks(samples: Sequence[Sample], masks_named: bool) -> Iterator[Finding]:
    bad = [s for s in samples if s.label == DEFECTIVE]
    without = [s.image_path for s in bad if s.mask_path is None]
    if without and len(without) == len(bad):
        what = "No masks." if masks_named else "No masks are named."
        yield _say(what, f"{len(bad)} defective images")
    elif without:
        yield _say("Defective images without a mask.", files=without)


# --- copies and labels ----------------------------------------------------------------------


def _copies(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Identical pictures (same pixels) and near copies, within and across splits and labels."""
    if len(images) < 2:
        return
    first: dict[str, ImageFacts] = {}
    same = [(first.setdefault(image.digest, image), image) for image in images]
    same = [(a, b) for a, b in same if a is not b]
    alike = [(a, b) for a, b in same if a.sample.label == b.sample.label]
    bits, small = [image.bits for image in images], [image.small for image in images]
    near = [(images[i], images[j]) for i, j in near_duplicates(np.array(bits), np.array(small))]
    near = [(a, b) for a, b in near if a.digest != b.digest]
    for what, pairs in {
        "The same picture is called normal and defective.":
            [(a, b) for a, b in same if a.sample.label != b.sample.label],
        "The same picture is in training and test.":
            [(a, b) for a, b in alike if a.sample.split != b.sample.split],
        "Nearly the same picture is in training and test.":
            [(a, b) for a, b in near if a.sample.split != b.sample.split],
        "Pictures saved twice in one split.":
            [(a, b) for a, b in alike if a.sample.split == b.sample.split],
        "Nearly the same pictures in one split.":
            [(a, b) for a, b in near if a.sample.split == b.sample.split],
    }.items():  # fmt: skip
        if pairs:
            files = _files(image for pair in pairs for image in pair)
            named = " and ".join("/".join(path.parts[-3:]) for path in files[:2])
            yield _say(what, f"{len(pairs)} pairs, first {named}", files)


def _names(samples: Sequence[Sample]) -> Iterator[Finding]:
    normal = [s.image_path for s in samples if s.label == NORMAL]
    if odd := [path for path in normal if SUSPICIOUS.search(path.stem)]:
        yield _say("Normal images with the name of a defect.", files=odd)


# --- looks ----------------------------------------------------------------------------------


def _looks(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Blank, overexposed and unusual training images, and light that differs in the test."""
    if blank := _files(i for i in images if i.contrast < 1):
        yield _say("Blank images.", files=blank)
    normal = [i for i in images if i.sample.label == NORMAL and i.contrast >= 1]
    train = [i for i in normal if i.sample.split == "train"]
    test = [i for i in normal if i.sample.split == "test"]
    if len(train) < FEW_IMAGES:
        return
    for name in ("brightness", "contrast", "sharpness"):
        yield from _light(name, train, test)
    clipped = float(np.median([i.clipped for i in normal]))
    if clipped > 0.25:
        found = f"half of the images have more than {clipped:.0%} black or white pixels"
        yield _say("Over- or underexposed.", found)


def _light(name: str, train: Sequence[ImageFacts], test: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Training images that stand out by one statistic, and a test that differs in it."""
    values = np.array([getattr(i, name) for i in train])
    centre, spread = float(np.median(values)), _spread(values)
    far = np.abs(values - centre) > STANDS_OUT * spread
    if odd := _files(image for image, odd in zip(train, far, strict=True) if odd):
        yield _say("Training images of unusual {}.", files=odd, of=name)
    there = float(np.median([getattr(i, name) for i in test])) if len(test) >= 5 else centre
    if abs(there - centre) > 3 * spread:
        found = f"median {there:.1f}, in training {centre:.1f}"
        yield _say("Normal test images differ from training in {}.", found, of=name)


def _spread(values: np.ndarray) -> float:
    """Deviation estimated from the median absolute deviation, at least 1 % of the level."""
    centre = np.median(values)
    return max(1.4826 * float(np.median(np.abs(values - centre))), 0.01 * abs(float(centre)), 1e-6)


def _files(images: Iterable[ImageFacts]) -> list[Path]:
    return [image.sample.image_path for image in images]
