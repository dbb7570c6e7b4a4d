"""What is wrong with a data set, how badly, and what to do about it.

Errors would spoil a result without anybody noticing, or stop a run; warnings make it doubtful;
notes are worth knowing. Thresholds are ours and err on the side of silence.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.data import measured
from src.data.images import is_deep, same_view
from src.data.measured import ImageFacts, MaskFacts
from src.data.samples import DEFECTIVE, NORMAL, SEVERITIES, Finding, Found, Sample, about
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

    Also whether `transform` fits every image, whether each split has as many as were `published`,
    and whether the configuration says where masks are (`masks_named`), so that this is no advice.
    """
    images, broken = measured.each(samples, measured.measure_image)
    masks, broken_masks = measured.measure_masks(samples)
    findings = [
        *(samples.findings if isinstance(samples, Found) else []),
        *_unreadable("image", {s.image_path: error for s, error in broken}),
        *_unreadable("mask", {s.mask_path or Path(): error for s, error in broken_masks}),
        *_counts(samples, published or {}), *_sizes(images), *_misfits(images, transform),
        *_masks(samples, images, masks, masks_named), *_copies(images), *_looks(images),
        *about(
            [s.image_path for s in samples
             if s.label == NORMAL and SUSPICIOUS.search(s.image_path.stem)],
            "warning", "Normal images with the name of a defect.", remedy="check their labels",
        ),
    ]  # fmt: skip
    findings.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    return Report(list(samples), images, findings)


def _unreadable(kind: str, broken: Mapping[Path, DataError]) -> list[Finding]:
    reasons = Counter(error.found for error in broken.values()).most_common(3)
    found = "; ".join(f"{count} x {reason}" for reason, count in reasons)
    remedy = next((error.do for error in broken.values()), "")
    what = f"{len(broken)} {kind}s cannot be read."
    return about(broken, "error", what, remedy=remedy, found=found)


def _counts(samples: Sequence[Sample], published: Mapping[str, int]) -> Iterator[Finding]:
    count = Counter((s.split, s.label) for s in samples)
    train, good, bad = count["train", NORMAL], count["test", NORMAL], count["test", DEFECTIVE]
    for wrong, severity, what, found, remedy in (
        (not train, "error", "No training images.", "0", "check the folders below data.root"),
        (0 < train < FEW_IMAGES, "warning", "Few training images.", f"{train}",
         f"collect at least {FEW_IMAGES}; more show more of the allowed variation"),
        (not bad, "note", "No defective test images.", f"{good} normal",
         "expect false-alarm rates but no AUROC; add some defective images when you can"),
        (bad and not good, "warning", "No normal test images.", f"{bad} defective",
         "add normal test images: without them false alarms cannot be counted"),
    ):  # fmt: skip
        if wrong:
            yield Finding(severity, what, found=found, remedy=remedy)
    for split, expected in published.items():
        there = sum(s.split == split for s in samples)
        if there != expected:
            yield Finding(
                "warning", f"Not the published number of images in {split}.",
                found=f"{there}, published {expected}",
                remedy="unpack the archive again; results cannot be compared with published ones",
            )  # fmt: skip


def _sizes(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Sizes, shapes and pixel formats that differ, and deep grey that is hardly used."""
    sizes = Counter(image.size for image in images).most_common()
    shapes = {round(width / height, 2) for (height, width), _ in sizes}
    severity, differ = ("warning", "shapes") if len(shapes) > 1 else ("note", "sizes")
    yield from about(
        _files(i for i in images if i.size != sizes[0][0]),
        severity, f"Images of different {differ}.",
        found=", ".join(f"{count} x {w} x {h}" for (h, w), count in sizes[:4]),
        remedy="check the camera settings; different fields of view look like defects",
    )  # fmt: skip
    modes = Counter(image.mode for image in images).most_common()
    yield from about(
        _files(i for i in images if i.mode != modes[0][0]), "warning", "Mixed pixel formats.",
        found=", ".join(f"{count} x {mode}" for mode, count in modes),
        remedy="save all images of a product in one pixel format",
    )  # fmt: skip
    deep = [i for i in images if is_deep(i.mode)]
    if deep and np.median([i.brightness + 4 * i.contrast for i in deep]) < 20:
        yield Finding(
            "warning", "Deep grey images that use a small part of their range.",
            found=f"median brightness {np.median([i.brightness for i in deep]):.1f} of 255",
            remedy="look for single hot pixels, or set data.bit_depth to the bits in use, such as "
            "12",
        )  # fmt: skip


def _misfits(images: Sequence[ImageFacts], transform: ImageTransform | None) -> Iterator[Finding]:
    """Images that the view does not fit, distorts or shrinks."""
    if transform is None:
        return
    distorted: dict[str, list[Path]] = {}  # what becomes of a size -> its images
    shrunk: dict[str, list[Path]] = {}
    for height, width in {image.size: None for image in images}:
        files = _files(i for i in images if i.size == (height, width))
        try:
            (rows, columns), _ = transform.geometry((height, width))
        except DataError as error:
            yield from about(files, "error", error.what, found=error.found, remedy=error.do)
            continue
        down, across = height / rows, width / columns
        told = f"{len(files)} of {width} x {height} pixels become {columns} x {rows}"
        if max(down / across, across / down) > MOST_STRETCH:
            distorted[told] = files
        if max(down, across) > MOST_SHRINK:
            shrunk[told] = files
    for what, found, remedy in (
        ("The view distorts the images.", distorted,
         "leave data.view.resize out, which keeps the shape of most images, or sort them by shape "
         "into runs of their own; squeezed images cost accuracy"),
        ("The view shrinks the images to less than a quarter.", shrunk,
         "expect to miss fine defects; data.view.side=448 sees twice as much for four times the "
         "work"),
    ):  # fmt: skip
        files = [path for some in found.values() for path in some]
        yield from about(files, "warning", what, found="; ".join([*found][:3]), remedy=remedy)


def _masks(
    samples: Sequence[Sample], images: Sequence[ImageFacts], masks: Sequence[MaskFacts], named: bool
) -> Iterator[Finding]:
    """Masks that are missing, do not fit, or mark the wrong thing."""
    bad = [s for s in samples if s.label == DEFECTIVE]
    without = [s.image_path for s in bad if s.mask_path is None]
    if bad and len(without) == len(bad):
        what, more = ("No masks.", "") if named else (
            "No masks are named.", "; set data.mask_dir if you have masks")  # fmt: skip
        found = f"{len(bad)} defective images"
        yield Finding("note", what, found=found, remedy=f"expect no pixel metrics{more}")
        without = []
    size_of = {image.sample.image_path: image.size for image in images}
    sizes = [(m, size_of.get(m.sample.image_path, m.size)) for m in masks]
    for files, severity, what, remedy in (
        (without, "warning", "Defective images without a mask.",
         "add their masks; pixel metrics do not count these images"),
        ([m.file for m, size in sizes if not same_view(m.size, size)],
         "error", "Masks that do not fit their image.", "export them at the image's size"),
        ([m.file for m, size in sizes if m.size != size and same_view(m.size, size)],
         "note", "Masks of another resolution.", "fine, but borders become coarse"),
        ([m.file for m in masks if m.sample.label == DEFECTIVE and m.area > 0.6],
         "warning", "Masks that cover most of the image; inverted?",
         "white must be the defect, black the rest"),
        ([m.file for m in masks if m.sample.label == NORMAL and m.area > 0],
         "error", "Masks with defects on normal images.",
         "move the image to the defective ones, or remove the mask"),
    ):  # fmt: skip
        yield from about(files, severity, what, remedy=remedy)
    yield from measured.empty_masks(masks)


def _copies(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Identical pictures (same pixels) and near copies, within and across splits and labels."""
    first: dict[str, ImageFacts] = {}
    same = [(first.setdefault(image.digest, image), image) for image in images]
    same = [(a, b) for a, b in same if a is not b]
    alike = [(a, b) for a, b in same if a.sample.label == b.sample.label]
    copies = measured.near_duplicates([image.small for image in images])
    near = [(images[i], images[j]) for i, j in copies if images[i].digest != images[j].digest]
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
        yield from about(files, severity, what, remedy=remedy, found=found)


def _looks(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Blank, overexposed and unusual training images, and light that differs in the test."""
    blank = _files(i for i in images if i.contrast < 1)
    yield from about(
        blank, "error", "Blank images.", remedy="remove them or photograph the part again"
    )
    normal = [i for i in images if i.sample.label == NORMAL and i.contrast >= 1]
    train, test = ([i for i in normal if i.sample.split == split] for split in ("train", "test"))
    if len(train) < FEW_IMAGES:
        return
    for name in ("brightness", "contrast", "sharpness"):
        values = np.array([getattr(i, name) for i in train])
        centre = float(np.median(values))
        # estimated from the median absolute deviation, at least 1 % of the level
        deviation = 1.4826 * float(np.median(np.abs(values - centre)))
        spread = max(deviation, 0.01 * abs(centre), 1e-6)
        odd = _files(i for i in train if abs(getattr(i, name) - centre) > STANDS_OUT * spread)
        what = f"Training images of unusual {name}."
        yield from about(odd, "warning", what, remedy="look at them; remove bad shots")
        there = float(np.median([getattr(i, name) for i in test])) if len(test) >= 5 else centre
        if abs(there - centre) > 3 * spread:
            yield Finding(
                "warning", f"Normal test images differ from training in {name}.",
                found=f"median {there:.1f}, in training {centre:.1f}",
                remedy="take both under the same light, or expect false alarms",
            )  # fmt: skip
    clipped = float(np.median([i.clipped for i in normal]))
    if clipped > 0.25:
        yield Finding(
            "note", "Over- or underexposed.",
            found=f"half of the images have more than {clipped:.0%} black or white pixels",
            remedy="shorten or lengthen the exposure, unless this is the background",
        )  # fmt: skip


def _files(images: Iterable[ImageFacts]) -> list[Path]:
    return [image.sample.image_path for image in images]
