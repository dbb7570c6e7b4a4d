from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter
from rich.console import Console

from src.commands.check import (
    chosen_pictures,
    draw_report,
    print_report,
    unusual,
    write_json,
)
from src.data.doctor import FEW_IMAGES, examine
from src.data.measured import near_duplicates, thumbnail
from src.data.mvtec import index_mvtec
from src.data.samples import NORMAL
from src.data.transforms import ImageTransform


def part(seed, level=120.0, size=(128, 128)):
    """A smooth random picture with a fixed mean and contrast: a product under steady light."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(0, 256, (48, 48, 3)).astype(np.uint8))
    values = np.asarray(rough.filter(ImageFilter.GaussianBlur(3)), float)
    values = (values - values.mean()) / values.std() * 30 + level
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).resize(size[::-1])


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.fixture
def root(tmp_path):
    """A clean category: 24 train, 6 good and 4 defective with masks."""
    base = tmp_path / "bolt"
    for i in range(24):
        save(part(i), base / "train/good" / f"{i:03d}.png")
    for i in range(6):
        save(part(100 + i), base / "test/good" / f"{i:03d}.png")
    for i in range(4):
        save(part(200 + i), base / "test/dent" / f"{i:03d}.png")
        spot = np.zeros((128, 128), np.uint8)
        spot[10:30, 16:40] = 255
        save(Image.fromarray(spot), base / "ground_truth/dent" / f"{i:03d}_mask.png")
    return tmp_path


def findings(root, severity=None, **options):
    report = examine(index_mvtec(root, "bolt"), **options)
    return {f.what: f for f in report.findings if severity in (None, f.severity)}


def test_a_clean_data_set_has_no_findings_and_exit_code_zero(root):
    report = examine(index_mvtec(root, "bolt"), published={"train": 24, "test": 10})
    assert report.findings == []
    assert report.exit_code == 0
    assert report.counts() == {("train", "good"): 24, ("test", "good"): 6, ("test", "dent"): 4}


def test_every_broken_image_and_mask_is_an_error_that_names_the_file(root):
    (root / "bolt/train/good/003.png").write_bytes(b"")
    (root / "bolt/ground_truth/dent/001_mask.png").write_bytes(b"text")
    found = findings(root, "error")
    assert [p.name for p in found["1 images cannot be read."].files] == ["003.png"]
    assert [p.name for p in found["1 masks cannot be read."].files] == ["001_mask.png"]
    assert examine(index_mvtec(root, "bolt")).exit_code == 2


def test_few_images_and_missing_classes_are_said(root):
    samples = index_mvtec(root, "bolt")
    few = [s for s in samples if s.split == "train"][: FEW_IMAGES - 1]
    report = examine(few)
    assert [f.what for f in report.findings] == ["Few training images.",
                                                 "No defective test images."]  # fmt: skip
    assert report.exit_code == 1
    assert examine([s for s in samples if s.split == "test"]).exit_code == 2
    bad = [s for s in samples if s.label or s.split == "train"]
    assert "No normal test images." in {f.what for f in examine(bad).findings}
    wrong = findings(root, published={"train": 25, "test": 10})
    assert wrong["Not the published number of images in train."].found == "24, published 25"


def test_another_size_is_a_note_and_another_shape_a_warning(root):
    save(part(3, size=(256, 256)), root / "bolt/train/good/003.png")
    assert findings(root)["Images of different sizes."].severity == "note"
    save(part(3, size=(128, 160)), root / "bolt/train/good/003.png")
    found = findings(root)["Images of different shapes."]
    assert found.severity == "warning"
    assert [p.name for p in found.files] == ["003.png"]
    assert "1 x 160 x 128" in found.found


def test_a_transform_that_does_not_fit_an_image_is_an_error(root):
    save(part(3, size=(128, 160)), root / "bolt/train/good/003.png")
    fit = ImageTransform(resize=32, crop=None, interpolation="bilinear", antialias=True,
                         mean=[0.5] * 3, std=[0.5] * 3)  # fmt: skip
    found = findings(root, "error", transform=fit)
    assert [p.name for f in found.values() for p in f.files] == ["003.png"]


def test_mixed_pixel_formats_and_dark_sixteen_bit_images_are_warned_of(root):
    save(part(3).convert("L"), root / "bolt/train/good/003.png")
    assert "1 x L" in findings(root, "warning")["Mixed pixel formats."].found
    for i in range(24):
        grey = np.asarray(part(i).convert("L")).astype(np.uint16) * 16  # 12 of 16 bits
        save(Image.fromarray(grey), root / "bolt/train/good" / f"{i:03d}.png")
    assert "Deep grey images that use a small part of their range." in findings(root, "warning")


def test_masks_of_another_shape_are_errors_and_coarser_ones_notes(root):
    masks = root / "bolt/ground_truth/dent"
    save(Image.open(masks / "000_mask.png").resize((64, 64)), masks / "000_mask.png")
    save(Image.open(masks / "001_mask.png").resize((128, 80)), masks / "001_mask.png")
    found = findings(root)
    assert found["Masks of another resolution."].severity == "note"
    assert [p.name for p in found["Masks that do not fit their image."].files] == ["001_mask.png"]


def test_empty_inverted_missing_and_surplus_masks_are_warned_of(root):
    masks = root / "bolt/ground_truth/dent"
    save(Image.new("L", (128, 128)), masks / "000_mask.png")
    full = Image.fromarray(255 - np.asarray(Image.open(masks / "001_mask.png")))
    save(full, masks / "001_mask.png")
    (masks / "002_mask.png").rename(masks / "017_mask.png")
    found = findings(root, "warning")
    names = {what: [p.name for p in f.files] for what, f in found.items()}
    assert names == {
        "Empty masks of defective images.": ["000_mask.png"],
        "Masks that cover most of the image; inverted?": ["001_mask.png"],
        "Defective images without a mask.": ["002.png"],
        "Masks without an image.": ["017_mask.png"],
    }


def test_a_data_set_without_any_mask_is_only_noted(root):
    samples = [replace(s, mask_path=None) for s in index_mvtec(root, "bolt")]
    report = examine(samples)
    assert [f.what for f in report.findings] == ["No masks."]
    assert report.exit_code == 0


def test_a_mask_with_a_defect_on_a_normal_image_is_an_error(root):
    samples = index_mvtec(root, "bolt")
    mask = next(s.mask_path for s in samples if s.mask_path)
    swapped = [replace(s, mask_path=mask) if s.label == NORMAL else s for s in samples]
    assert "Masks with defects on normal images." in {f.what for f in examine(swapped).findings}


def copied(source, target, how):
    image = Image.open(source)
    if how == "other container":
        return save(image, target.with_suffix(".bmp"))
    if how == "jpeg":
        return save(image, target.with_suffix(".jpg"), quality=60)
    if how == "half size":
        return save(image.resize((64, 64), Image.Resampling.LANCZOS), target)
    brighter = np.asarray(image).astype(int) + 9
    return save(Image.fromarray(brighter.clip(0, 255).astype(np.uint8)), target)


@pytest.mark.parametrize(
    ("how", "severity"),
    [("other container", "error"), ("jpeg", "warning"), ("half size", "warning"),
     ("brighter", "warning")],
)  # fmt: skip
def test_a_training_image_in_the_test_set_is_found_however_it_was_saved(root, how, severity):
    copy = copied(root / "bolt/train/good/007.png", root / "bolt/test/good/900.png", how)
    found = [f for f in findings(root, severity).values() if "training and test" in f.what]
    assert len(found) == 1
    assert {p.name for p in found[0].files} == {"007.png", copy.name}


def test_one_picture_under_two_labels_is_an_error(root):
    copied(root / "bolt/test/good/001.png", root / "bolt/test/dent/900.png", "other container")
    found = findings(root, "error")["The same picture is called normal and defective."]
    assert {p.parent.name for p in found.files} == {"good", "dent"}


def test_copies_within_a_split_are_only_noted(root):
    copied(root / "bolt/train/good/001.png", root / "bolt/train/good/900.png", "other container")
    copied(root / "bolt/train/good/002.png", root / "bolt/train/good/901.png", "jpeg")
    found = findings(root)
    assert {f.severity for f in found.values() if "ictures" in f.what} == {"note"}
    assert "1 pairs" in found["Pictures saved twice in one split."].found
    assert "1 pairs" in found["Nearly the same pictures in one split."].found


@pytest.mark.parametrize(
    ("name", "odd"),
    [("scratch_04", True), ("part-NOK-3", True), ("7 Kratzer", True), ("crackers", True),
     ("014", False), ("booking", False), ("tokyo", False), ("angle", False), ("badge", False)],
)  # fmt: skip
def test_normal_images_with_the_name_of_a_defect_are_warned_of(root, name, odd):
    (root / "bolt/train/good/005.png").rename(root / "bolt/train/good" / f"{name}.png")
    assert ("Normal images with the name of a defect." in findings(root)) == odd


def test_blank_and_odd_training_images_are_found(root):
    save(Image.new("RGB", (128, 128), (9, 9, 9)), root / "bolt/train/good/001.png")
    save(part(2, level=220), root / "bolt/train/good/002.png")
    found = findings(root)
    assert [p.name for p in found["Blank images."].files] == ["001.png"]
    assert [p.name for p in found["Training images of unusual brightness."].files] == ["002.png"]


def test_other_light_in_the_test_is_warned_of(root):
    for i in range(6):
        save(part(100 + i, level=150), root / "bolt/test/good" / f"{i:03d}.png")
    found = findings(root, "warning")["Normal test images differ from training in brightness."]
    assert found.found.startswith("median 14")


def test_near_duplicates_equal_the_pairwise_definition():
    pictures = [part(i).convert("L") for i in range(40)]
    pictures += [p.point(lambda v: v + 3) for p in pictures[:5]] + [pictures[7]]
    small = np.stack([thumbnail(p) for p in pictures])
    slow = set()
    for i in range(len(pictures)):
        for j in range(i + 1, len(pictures)):
            levels = np.sqrt(np.mean((small[i] - small[j]) ** 2))
            limit = min(1.25, 0.2 * np.sqrt(np.mean(small[i] ** 2)))
            if levels <= limit:
                slow.add((i, j))
    assert set(near_duplicates(small)) == slow
    assert slow == {(i, 40 + i) for i in range(5)} | {(7, 45)}


def test_flat_pictures_of_different_grey_are_not_called_copies():
    rng = np.random.default_rng(0)
    flat = [Image.fromarray((level + rng.normal(0, 0.6, (64, 64))).astype(np.uint8))
            for level in (50, 90, 130)]  # fmt: skip
    pairs = near_duplicates(np.stack([thumbnail(p) for p in flat]))
    assert list(pairs) == []


def test_the_report_is_printed_written_and_drawn(root):
    (root / "bolt/train/good/003.png").write_bytes(b"")
    report = examine(index_mvtec(root, "bolt"))
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=100), "bolt")
    for words in ("dent", "24", "cannot be read", "an empty file", "export or copy"):
        assert words in stream.getvalue()
    write_json(report, root / "findings.json")
    facts = json.loads((root / "findings.json").read_text())
    assert facts["exit_code"] == 2
    assert facts["counts"] == {"train/good": 24, "test/good": 6, "test/dent": 4}
    assert facts["findings"][0]["files"] == [str(root / "bolt/train/good/003.png")]
    draw_report(report, root / "check.png")
    picture = np.asarray(Image.open(root / "check.png").convert("L"))
    assert picture.std() > 10
    assert not list(root.glob("*.partial"))


def test_the_contact_sheet_shows_reported_files_first_and_then_the_least_usual(root):
    save(part(2, level=220), root / "bolt/train/good/002.png")
    (root / "bolt/test/dent/003.png").write_bytes(b"")
    report = examine(index_mvtec(root, "bolt"))
    chosen = chosen_pictures(report)
    assert len(chosen) == 12
    assert {path.name for path, reason in chosen[:2]} == {"003.png", "002.png"}
    assert chosen[0][1].startswith("error")
    assert unusual(report.images)[0].sample.image_path.name == "002.png"


def test_no_image_at_all_is_an_error_not_a_crash(tmp_path):
    report = examine([])
    assert report.exit_code == 2
    draw_report(report, tmp_path / "check.png")
