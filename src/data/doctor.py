"""What is wrong with a data set, how badly, and what to do about it.

Errors would spoil a result without anybody noticing, or stop a run; warnings make it doubtful;
notes are worth knowing. Thresholds are ours and err on the side of silence: `mvtec/bottle` and the
synthetic categories pass without a warning.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.data.duplicates import near_duplicates
from src.data.findings import SEVERITIES, Finding, Found, some
from src.data.images import is_deep
from src.data.measured import (
    Measured,
    MeasuredMask,
    Unreadable,
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
    findings: list[Finding] = field(default_factory=list)

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
    report = Report(list(samples), images)
    report.findings += samples.findings if isinstance(samples, Found) else []
    report.findings += _unreadable(broken, "image") + _unreadable(broken_masks, "mask")
    report.findings += _counts(samples, published or {})
    report.findings += _sizes(images, transform) + _formats(images)
    report.findings += _missing_masks(samples, masks_named) + _masks(images, masks)
    report.findings += _copies(images)
    report.findings += _labels(samples) + _looks(images)
    report.findings.sort(key=lambda f: -SEVERITIES.index(f.severity))
    return report


# --- what is there --------------------------------------------------------------------------


def _unreadable(broken: Unreadable, kind: str) -> list[Finding]:
    if not broken:
        return []
    files = tuple(Path(s.mask_path or "") if kind == "mask" else s.image_path for s, _ in broken)
    reasons = Counter(error.found for _, error in broken).most_common(3)
    found = "; ".join(f"{count} x {reason}" for reason, count in reasons)
    return [
        Finding("error", f"{len(broken)} {kind}s cannot be read.", found, broken[0][1].do, files)
    ]


def _counts(samples: Sequence[Sample], published: Mapping[str, int]) -> list[Finding]:
    findings = []
    count = Counter((s.split, s.label) for s in samples)
    train, good = count["train", NORMAL], count["test", NORMAL]
    bad = count["test", DEFECTIVE]
    if train < FEW_IMAGES:
        severity = "error" if train == 0 else "warning"
        remedy = f"collect at least {FEW_IMAGES}; more show more of the allowed variation"
        findings.append(Finding(severity, "Few training images.", f"{train}", remedy))
    if not bad:
        remedy = "expect false-alarm rates but no AUROC; add some defective images when you can"
        findings.append(Finding("note", "No defective test images.", f"{good} normal", remedy))
    if bad and not good:
        remedy = "add normal test images: without them false alarms cannot be counted"
        findings.append(Finding("warning", "No normal test images.", f"{bad} defective", remedy))
    for split, expected in published.items():
        found = sum(s.split == split for s in samples)
        if found != expected:
            remedy = "unpack the archive again; results cannot be compared with published ones"
            what = f"Not the published number of images in {split}."
            findings.append(Finding("warning", what, f"{found}, published {expected}", remedy))
    return findings


def _sizes(images: Sequence[Measured], transform: ImageTransform | None) -> list[Finding]:
    findings = []
    sizes = Counter(image.size for image in images)
    if len(sizes) > 1:
        usual = sizes.most_common(1)[0][0]
        odd = tuple(i.sample.image_path for i in images if i.size != usual)
        found = ", ".join(f"{c} x {w} x {h}" for (h, w), c in sizes.most_common(4))
        shape = {round(w / h, 2) for h, w in sizes}
        severity = "warning" if len(shape) > 1 else "note"
        remedy = "check the camera settings; different fields of view look like defects"
        findings.append(Finding(severity, "Images of different sizes.", found, remedy, odd))
    for size in sizes:
        try:
            if transform is not None:
                transform.check(size)
        except DataError as error:
            files = tuple(i.sample.image_path for i in images if i.size == size)
            findings.append(Finding("error", error.what, error.found, error.do, files))
    return findings


def _formats(images: Sequence[Measured]) -> list[Finding]:
    findings = []
    modes = Counter(image.mode for image in images)
    if len(modes) > 1:
        usual = modes.most_common(1)[0][0]
        odd = tuple(i.sample.image_path for i in images if i.mode != usual)
        found = ", ".join(f"{count} x {mode}" for mode, count in modes.most_common())
        remedy = "save all images of a product in one pixel format"
        findings.append(Finding("warning", "Mixed pixel formats.", found, remedy, odd))
    deep = [i for i in images if is_deep(i.mode)]
    if deep and np.median([i.brightness + 4 * i.contrast for i in deep]) < 20:
        remedy = "look for single hot pixels, or set data.bit_depth to the bits in use, such as 12"
        found = f"median brightness {np.median([i.brightness for i in deep]):.1f} of 255"
        what = "Deep grey images that use a small part of their range."
        findings.append(Finding("warning", what, found, remedy))
    return findings


# --- masks ----------------------------------------------------------------------------------


def _masks(images: Sequence[Measured], masks: Sequence[MeasuredMask]) -> list[Finding]:
    size_of = {image.sample.image_path: image.size for image in images}
    findings = empty_masks(masks)

    def add(severity: str, what: str, remedy: str, wrong: Iterable[MeasuredMask]) -> None:
        files = tuple(Path(m.sample.mask_path or "") for m in wrong)
        if files:
            findings.append(Finding(severity, what, some(files), remedy, files))

    bad = [m for m in masks if m.sample.label == DEFECTIVE]
    shapes = [(m, size_of[m.sample.image_path]) for m in masks if m.sample.image_path in size_of]
    other = [m for m, size in shapes if not _same_view(m.size, size)]
    scaled = [m for m, size in shapes if _same_view(m.size, size) and m.size != size]
    add("error", "Masks that do not fit their image.", "export them at the image's size", other)
    add("note", "Masks of another resolution.", "fine, but borders become coarse", scaled)
    inverted = [m for m in bad if m.area > 0.6]
    add("warning", "Masks that cover most of the image; inverted?",
        "white must be the defect, black the rest", inverted)  # fmt: skip
    add("error", "Masks with defects on normal images.",
        "move the image to the defective ones, or remove the mask",
        [m for m in masks if m.sample.label == NORMAL and m.area > 0])  # fmt: skip
    return findings


def _missing_masks(samples: Sequence[Sample], masks_named: bool) -> list[Finding]:
    bad = [s for s in samples if s.label == DEFECTIVE]
    without = tuple(s.image_path for s in bad if s.mask_path is None)
    if not without:
        return []
    if len(without) == len(bad):
        advice = "" if masks_named else "; set data.mask_dir if you have masks"
        remedy = f"expect no pixel metrics{advice}"
        return [Finding("note", "No masks.", f"{len(bad)} defective images", remedy)]
    remedy = "add their masks; pixel metrics do not count these images"
    what = "Defective images without a mask."
    return [Finding("warning", what, some(without), remedy, without)]


def _same_view(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)


# --- copies and labels ----------------------------------------------------------------------


def _copies(images: Sequence[Measured]) -> list[Finding]:
    """Identical pictures (same pixels) and near copies, within and across splits and labels."""
    if len(images) < 2:
        return []
    pairs = list(
        near_duplicates(np.stack([i.bits for i in images]), np.stack([i.small for i in images]))
    )
    first: dict[str, int] = {}
    same = [(first.setdefault(image.digest, i), i) for i, image in enumerate(images)]
    same = [(i, j) for i, j in same if i != j]
    near = [(i, j) for i, j in pairs if images[i].digest != images[j].digest]
    findings: list[Finding] = []

    def add(severity: str, what: str, remedy: str, chosen: list[tuple[int, int]]) -> None:
        if chosen:
            files = tuple(images[k].sample.image_path for pair in chosen for k in pair)
            found = f"{len(chosen)} pairs, first {_pair(files)}"
            findings.append(Finding(severity, what, found, remedy, files))

    def part(chosen: list[tuple[int, int]], key: str, *, differs: bool) -> list[tuple[int, int]]:
        value = [getattr(image.sample, key) for image in images]
        return [(i, j) for i, j in chosen if (value[i] != value[j]) == differs]

    add("error", "The same picture is called normal and defective.",
        "decide which label is right and delete the other file",
        part(same, "label", differs=True))  # fmt: skip
    add("error", "The same picture is in training and test.",
        "remove it from one of them: the test would be too easy",
        part(part(same, "label", differs=False), "split", differs=True))  # fmt: skip
    add("warning", "Nearly the same picture is in training and test.",
        "check that they show different parts, not one photograph saved twice",
        part(near, "split", differs=True))  # fmt: skip
    add("note", "Pictures saved twice in one split.", "delete the copies",
        part(part(same, "label", differs=False), "split", differs=False))  # fmt: skip
    add("note", "Nearly the same pictures in one split.", "keep one of each, if they are copies",
        part(near, "split", differs=False))  # fmt: skip
    return findings


def _labels(samples: Sequence[Sample]) -> list[Finding]:
    odd = tuple(s.image_path for s in samples if s.label == NORMAL
                and SUSPICIOUS.search(s.image_path.stem))  # fmt: skip
    if not odd:
        return []
    what = "Normal images with the name of a defect."
    return [Finding("warning", what, some(odd), "check their labels", odd)]


# --- looks ----------------------------------------------------------------------------------


def _looks(images: Sequence[Measured]) -> list[Finding]:
    """Blank, overexposed and unusual training images, and light that differs in the test."""
    findings = []
    blank = tuple(i.sample.image_path for i in images if i.contrast < 1)
    if blank:
        remedy = "remove them or photograph the part again"
        findings.append(Finding("error", "Blank images.", some(blank), remedy, blank))
    normal = [i for i in images if i.sample.label == NORMAL and i.contrast >= 1]
    train = [i for i in normal if i.sample.split == "train"]
    test = [i for i in normal if i.sample.split == "test"]
    if len(train) < FEW_IMAGES:
        return findings
    for name in ("brightness", "contrast", "sharpness"):
        values = np.array([getattr(i, name) for i in train])
        centre, spread = float(np.median(values)), _spread(values)
        far = np.abs(values - centre) > STANDS_OUT * spread
        odd = tuple(train[k].sample.image_path for k in np.flatnonzero(far))
        if odd:
            what, remedy = f"Training images of unusual {name}.", "look at them; remove bad shots"
            findings.append(Finding("warning", what, some(odd), remedy, odd))
        if len(test) >= 5:
            there = float(np.median([getattr(i, name) for i in test]))
            if abs(there - centre) > 3 * spread:
                what = f"Normal test images differ from training in {name}."
                found = f"median {there:.1f}, in training {centre:.1f}"
                remedy = "take both under the same light, or expect false alarms"
                findings.append(Finding("warning", what, found, remedy))
    clipped = float(np.median([i.clipped for i in normal]))
    if clipped > 0.25:
        found = f"half of the images have more than {clipped:.0%} black or white pixels"
        remedy = "shorten or lengthen the exposure, unless this is the background"
        findings.append(Finding("note", "Over- or underexposed.", found, remedy))
    return findings


def _spread(values: np.ndarray) -> float:
    """Deviation estimated from the median absolute deviation, at least 1 % of the level."""
    centre = np.median(values)
    return max(1.4826 * float(np.median(np.abs(values - centre))), 0.01 * abs(float(centre)), 1e-6)


def _pair(files: Sequence[Path]) -> str:
    a, b = files[:2]
    return f"{a.parent.parent.name}/{a.parent.name}/{a.name} and " \
           f"{b.parent.parent.name}/{b.parent.name}/{b.name}"  # fmt: skip
