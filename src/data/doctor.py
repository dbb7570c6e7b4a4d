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

from src.data.duplicates import near_duplicates
from src.data.findings import SEVERITIES, Finding, Found, about
from src.data.images import is_deep, same_view
from src.data.measured import (
    Measured,
    MeasuredMask,
    empty_masks,
    measure,
    measure_masks,
)
from src.data.samples import DEFECTIVE, NORMAL, Sample
from src.data.transforms import ImageTransform
from src.errors import DataError

#: Fewer training images than this hardly show the variation of a product. ours.
FEW_IMAGES = 20
#: Robust deviations (of the median absolute deviation) beyond which an image stands out. ours:
#: the most unusual of 209 MVTec bottles reaches 5.
STANDS_OUT = 8.0
#: Names that hardly belong to good parts; whole words, in English and German.
SUSPICIOUS = re.compile(
    r"(?<![a-z])(defect\w*|anomal\w*|scratch\w*|crack\w*|broken|reject\w*|nok|ng|ko|bad|faulty"
    r"|defekt\w*|fehler\w*|kratzer\w*|ausschuss)(?![a-z])",
    re.IGNORECASE,
)


@dataclass
class Report:
    """All findings, and what they were found in."""

    samples: list[Sample]
    images: list[Measured]
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
    findings: list[Finding] = [
        *(samples.findings if isinstance(samples, Found) else []),
        *_unreadable("image", {s.image_path: error for s, error in broken}),
        *_unreadable("mask", {s.mask_path or Path(): error for s, error in broken_masks}),
        *_counts(samples, published or {}), *_sizes(images), *_misfits(images, transform),
        *_formats(images), *_missing_masks(samples, masks_named), *_masks(images, masks),
        *_copies(images), *_names(samples), *_looks(images),
    ]  # fmt: skip
    findings.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    return Report(list(samples), images, findings)


# --- what is there --------------------------------------------------------------------------


def _unreadable(kind: str, broken: Mapping[Path, DataError]) -> list[Finding]:
    reasons = Counter(error.found for error in broken.values()).most_common(3)
    return about(
        list(broken), "error", what=f"{len(broken)} {kind}s cannot be read.",
        found="; ".join(f"{count} x {reason}" for reason, count in reasons),
        remedy=next((error.do for error in broken.values()), ""),
    )  # fmt: skip


def _counts(samples: Sequence[Sample], published: Mapping[str, int]) -> Iterator[Finding]:
    count = Counter((s.split, s.label) for s in samples)
    train, good, bad = count["train", NORMAL], count["test", NORMAL], count["test", DEFECTIVE]
    if train < FEW_IMAGES:
        yield Finding(
            severity="warning" if train else "error", what="Few training images.", found=f"{train}",
            remedy=f"collect at least {FEW_IMAGES}; more show more of the allowed variation",
        )  # fmt: skip
    if not bad:
        yield Finding(
            severity="note", what="No defective test images.", found=f"{good} normal",
            remedy="expect false-alarm rates but no AUROC; add some defective images when you can",
        )  # fmt: skip
    elif not good:
        yield Finding(
            severity="warning", what="No normal test images.", found=f"{bad} defective",
            remedy="add normal test images: without them false alarms cannot be counted",
        )  # fmt: skip
    for split, expected in published.items():
        found = sum(s.split == split for s in samples)
        if found != expected:
            yield Finding(
                severity="warning", what=f"Not the published number of images in {split}.",
                found=f"{found}, published {expected}",
                remedy="unpack the archive again; results cannot be compared with published ones",
            )  # fmt: skip


def _sizes(images: Sequence[Measured]) -> list[Finding]:
    sizes = Counter(image.size for image in images).most_common()
    shapes = {round(width / height, 2) for (height, width), _ in sizes}
    return about(
        _files(i for i in images if i.size != sizes[0][0]),
        "warning" if len(shapes) > 1 else "note",
        what="Images of different sizes.",
        found=", ".join(f"{count} x {w} x {h}" for (h, w), count in sizes[:4]),
        remedy="check the camera settings; different fields of view look like defects",
    )  # fmt: skip


def _misfits(images: Sequence[Measured], transform: ImageTransform | None) -> list[Finding]:
    findings = []
    for size in dict.fromkeys(image.size for image in images if transform):
        try:
            cast(ImageTransform, transform).check(size)
        except DataError as error:
            files = _files(i for i in images if i.size == size)
            findings += about(files, "error", what=error.what, found=error.found, remedy=error.do)
    return findings


def _formats(images: Sequence[Measured]) -> Iterator[Finding]:
    modes = Counter(image.mode for image in images).most_common()
    yield from about(
        _files(i for i in images if i.mode != modes[0][0]), "warning",
        what="Mixed pixel formats.", found=", ".join(f"{count} x {mode}" for mode, count in modes),
        remedy="save all images of a product in one pixel format",
    )  # fmt: skip
    deep = [i for i in images if is_deep(i.mode)]
    if deep and np.median([i.brightness + 4 * i.contrast for i in deep]) < 20:
        yield Finding(
            severity="warning", what="Deep grey images that use a small part of their range.",
            found=f"median brightness {np.median([i.brightness for i in deep]):.1f} of 255",
            remedy="look for single hot pixels, or set data.bit_depth to the bits in use, such as "
            "12",
        )  # fmt: skip


# --- masks ----------------------------------------------------------------------------------


def _masks(images: Sequence[Measured], masks: Sequence[MeasuredMask]) -> list[Finding]:
    size_of = {image.sample.image_path: image.size for image in images}
    shapes = [(m, size_of[m.sample.image_path]) for m in masks if m.sample.image_path in size_of]
    findings = empty_masks(masks)
    for severity, what, remedy, wrong in (
        ("error", "Masks that do not fit their image.", "export them at the image's size",
         [m for m, size in shapes if not same_view(m.size, size)]),
        ("note", "Masks of another resolution.", "fine, but borders become coarse",
         [m for m, size in shapes if m.size != size and same_view(m.size, size)]),
        ("warning", "Masks that cover most of the image; inverted?",
         "white must be the defect, black the rest",
         [m for m in masks if m.sample.label == DEFECTIVE and m.area > 0.6]),
        ("error", "Masks with defects on normal images.",
         "move the image to the defective ones, or remove the mask",
         [m for m in masks if m.sample.label == NORMAL and m.area > 0]),
    ):  # fmt: skip
        findings += about([m.file for m in wrong], severity, what=what, remedy=remedy)
    return findings


def _missing_masks(samples: Sequence[Sample], masks_named: bool) -> list[Finding]:
    bad = [s for s in samples if s.label == DEFECTIVE]
    without = [s.image_path for s in bad if s.mask_path is None]
    if len(without) < len(bad):
        what = "Defective images without a mask."
        remedy = "add their masks; pixel metrics do not count these images"
        return about(without, "warning", what=what, remedy=remedy)
    found = f"{len(bad)} defective images"
    advice = "" if masks_named else "; set data.mask_dir if you have masks"
    remedy = f"expect no pixel metrics{advice}"
    none = Finding(severity="note", what="No masks.", found=found, remedy=remedy)
    return [none] if bad else []


# --- copies and labels ----------------------------------------------------------------------


def _copies(images: Sequence[Measured]) -> list[Finding]:
    """Identical pictures (same pixels) and near copies, within and across splits and labels."""
    if len(images) < 2:
        return []
    first: dict[str, Measured] = {}
    same = [(first.setdefault(image.digest, image), image) for image in images]
    same = [(a, b) for a, b in same if a is not b]
    bits, small = [image.bits for image in images], [image.small for image in images]
    near = [(images[i], images[j]) for i, j in near_duplicates(np.array(bits), np.array(small))]
    near = [(a, b) for a, b in near if a.digest != b.digest]
    alike = [(a, b) for a, b in same if a.sample.label == b.sample.label]
    findings: list[Finding] = []
    for severity, what, remedy, pairs in (
        ("error", "The same picture is called normal and defective.",
         "decide which label is right and delete the other file",
         [(a, b) for a, b in same if a.sample.label != b.sample.label]),
        ("error", "The same picture is in training and test.",
         "remove it from one of them: the test would be too easy",
         [(a, b) for a, b in alike if a.sample.split != b.sample.split]),
        ("warning", "Nearly the same picture is in training and test.",
         "check that they show different parts, not one photograph saved twice",
         [(a, b) for a, b in near if a.sample.split != b.sample.split]),
        ("note", "Pictures saved twice in one split.", "delete the copies",
         [(a, b) for a, b in alike if a.sample.split == b.sample.split]),
        ("note", "Nearly the same pictures in one split.", "keep one of each, if they are copies",
         [(a, b) for a, b in near if a.sample.split == b.sample.split]),
    ):  # fmt: skip
        files = _files(image for pair in pairs for image in pair)
        named = " and ".join("/".join(path.parts[-3:]) for path in files[:2])
        found = f"{len(pairs)} pairs, first {named}"
        findings += about(files, severity, what=what, found=found, remedy=remedy)
    return findings


def _names(samples: Sequence[Sample]) -> list[Finding]:
    normal = [s.image_path for s in samples if s.label == NORMAL]
    odd = [path for path in normal if SUSPICIOUS.search(path.stem)]
    what = "Normal images with the name of a defect."
    return about(odd, "warning", what=what, remedy="check their labels")


# --- looks ----------------------------------------------------------------------------------


def _looks(images: Sequence[Measured]) -> Iterator[Finding]:
    """Blank, overexposed and unusual training images, and light that differs in the test."""
    blank = _files(i for i in images if i.contrast < 1)
    remedy = "remove them or photograph the part again"
    yield from about(blank, "error", what="Blank images.", remedy=remedy)
    normal = [i for i in images if i.sample.label == NORMAL and i.contrast >= 1]
    train = [i for i in normal if i.sample.split == "train"]
    test = [i for i in normal if i.sample.split == "test"]
    if len(train) < FEW_IMAGES:
        return
    for name in ("brightness", "contrast", "sharpness"):
        yield from _light(name, train, test)
    clipped = float(np.median([i.clipped for i in normal]))
    if clipped > 0.25:
        yield Finding(
            severity="note", what="Over- or underexposed.",
            found=f"half of the images have more than {clipped:.0%} black or white pixels",
            remedy="shorten or lengthen the exposure, unless this is the background",
        )  # fmt: skip


def _light(name: str, train: Sequence[Measured], test: Sequence[Measured]) -> Iterator[Finding]:
    """Training images that stand out by one statistic, and a test that differs in it."""
    values = np.array([getattr(i, name) for i in train])
    centre, spread = float(np.median(values)), _spread(values)
    far = np.abs(values - centre) > STANDS_OUT * spread
    odd = [image.sample.image_path for image, odd in zip(train, far, strict=True) if odd]
    what, remedy = f"Training images of unusual {name}.", "look at them; remove bad shots"
    yield from about(odd, "warning", what=what, remedy=remedy)
    there = float(np.median([getattr(i, name) for i in test])) if len(test) >= 5 else centre
    if abs(there - centre) > 3 * spread:
        yield Finding(
            severity="warning", what=f"Normal test images differ from training in {name}.",
            found=f"median {there:.1f}, in training {centre:.1f}",
            remedy="take both under the same light, or expect false alarms",
        )  # fmt: skip


def _spread(values: np.ndarray) -> float:
    """Deviation estimated from the median absolute deviation, at least 1 % of the level."""
    centre = np.median(values)
    return max(1.4826 * float(np.median(np.abs(values - centre))), 0.01 * abs(float(centre)), 1e-6)


def _files(images: Iterable[Measured]) -> list[Path]:
    return [image.sample.image_path for image in images]
