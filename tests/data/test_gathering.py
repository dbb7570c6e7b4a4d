"""Every image below the named folders is used once or named; masks are never borrowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from src.composing import compose_checked
from src.data import listing
from src.data.folder import index_folder
from src.data.gathering import image_stem
from src.data.listing import EXTENSIONS, walk
from src.data.mvtec import index_mvtec
from src.data.samples import summary
from src.errors import ConfigError, DataError


@pytest.fixture
def place(tmp_path, image, mask):
    """Write images and, for names that begin with `masks`, masks; returns the root."""

    def write(*names):
        for name in names:
            (mask if name.startswith("masks") else image)(tmp_path / name)
        return tmp_path

    return write


def index(root, **changes):
    options = {"normal_dir": "good", "abnormal_dir": "bad", "mask_dir": None,
               "normal_test_dir": None, "test_fraction": 0.25, "seed": 0}  # fmt: skip
    return index_folder(root, "any", **(options | changes))


def masks_of(found, root):
    return {str(s.image_path.relative_to(root)): s.mask_path and
            str(s.mask_path.relative_to(root)) for s in found if s.label}  # fmt: skip


def said(found):
    return {f.what: sorted(path.name for path in f.files) for f in found.findings}


GOOD = ("good/a.png", "good/b.png", "good/c.png", "good/d.png")

# --- masks --------------------------------------------------------------------------------------


def test_masks_of_one_defect_are_never_lent_to_images_of_another(place):
    root = place(*GOOD, "bad/dent/0.png", "bad/dent/1.png", "bad/rust/0.png", "bad/rust/7.png",
                 "masks/dent/0.png", "masks/dent/1.png", "masks/dent/7.png")  # fmt: skip
    found = index(root, mask_dir="masks")
    assert masks_of(found, root) == {
        "bad/dent/0.png": "masks/dent/0.png", "bad/dent/1.png": "masks/dent/1.png",
        "bad/rust/0.png": None, "bad/rust/7.png": None,
    }  # fmt: skip
    assert said(found) == {"Masks whose image is not certain, so they are not used.": ["7.png"]}


@pytest.mark.parametrize("dirs", ["bad", ["bad/dent", "bad/rust"]])
def test_flat_masks_mark_images_whose_name_is_unique_and_no_others(place, dirs):
    root = place(*GOOD, "bad/dent/0.png", "bad/dent/1.png", "bad/rust/0.png", "bad/rust/7.png",
                 "masks/0.png", "masks/1_mask.png", "masks/7.png")  # fmt: skip
    found = index(root, abnormal_dir=dirs, mask_dir="masks")
    assert masks_of(found, root) == {
        "bad/dent/0.png": None, "bad/dent/1.png": "masks/1_mask.png",
        "bad/rust/0.png": None, "bad/rust/7.png": "masks/7.png",
    }  # fmt: skip
    assert said(found) == {"Masks whose image is not certain, so they are not used.": ["0.png"]}


def test_two_masks_of_one_image_and_masks_of_no_image_are_named(place):
    root = place(*GOOD, "bad/0.png", "bad/1.png", "masks/0_mask1.png", "masks/0_mask2.png",
                 "masks/1_gt.png", "masks/nobody.png")  # fmt: skip
    found = index(root, mask_dir="masks")
    assert masks_of(found, root) == {"bad/0.png": None, "bad/1.png": "masks/1_gt.png"}
    assert said(found) == {
        "Masks whose image is not certain, so they are not used.": ["0_mask1.png", "0_mask2.png"],
        "Masks without an image.": ["nobody.png"],
    }


@pytest.mark.parametrize(
    "name", ["7", "7_mask", "7-mask", "7_GT", "7_mask1", "7_label", "7_labels", "7.mask",
             "7 ground truth", "7_seg_01"]
)  # fmt: skip
def test_common_suffixes_of_masks_are_one_rule(name):
    assert image_stem(name) == "7"


@pytest.mark.parametrize("name", ["unmasked", "mask", "_mask", "7_masked", "label7", "7_gtx"])
def test_other_names_are_left_alone(name):
    assert image_stem(name) == name


def test_masks_beside_their_images_are_told_apart_by_their_suffix(place):
    root = place(*GOOD, "bad/dent/0.png", "bad/dent/0_mask.png", "bad/1.png", "bad/1_mask.png")
    found = index(root, mask_dir="bad")
    assert masks_of(found, root) == {"bad/dent/0.png": "bad/dent/0_mask.png",
                                     "bad/1.png": "bad/1_mask.png"}  # fmt: skip
    assert said(index(root)) == {"Files that look like masks are used as images.":
                                 ["0_mask.png", "1_mask.png"]}  # fmt: skip


def test_masks_beside_their_images_without_a_suffix_are_refused(place):
    with pytest.raises(DataError, match="told apart"):
        index(place(*GOOD, "bad/0.png", "bad/1.png"), mask_dir="bad")


# --- folders ------------------------------------------------------------------------------------


def test_a_folder_of_good_parts_among_the_defects_is_the_good_test_set_and_said(place):
    root = place(*GOOD, "test/good/0.png", "test/good/1.png", "test/dent/0.png")
    found = index(root, abnormal_dir="test")
    assert summary(found) == "train 4, test good 2, defective 1 (dent 1), masks 0"
    what = "Good parts inside the folder of defective images; they count as good test images."
    assert said(found) == {what: ["0.png", "1.png"]}
    named = index(root, abnormal_dir="test", normal_test_dir="test/good")
    assert (list(named), said(named)) == (list(found), {})


@pytest.mark.parametrize("dirs", [["bad", "bad/spot"], ["bad/spot", "bad"], ["bad", "./bad"]])
def test_overlapping_and_repeated_folders_count_once(place, dirs):
    found = index(place(*GOOD, "bad/spot/0.png", "bad/dent/0.png", "bad/1.png"), abnormal_dir=dirs)
    assert sorted((s.defect, s.image_path.name) for s in found if s.label) == [
        ("bad", "1.png"), ("dent", "0.png"), ("spot", "0.png"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "names", [{"abnormal_dir": "good"}, {"mask_dir": "good"}, {"normal_test_dir": "good"},
              {"normal_test_dir": "bad"}, {"abnormal_dir": "alias"}]
)  # fmt: skip
def test_one_folder_with_two_meanings_is_refused(place, names):
    root = place(*GOOD, "bad/0.png")
    (root / "alias").symlink_to(root / "good")
    with pytest.raises(ConfigError, match="two meanings"):
        index(root, **names)


def test_a_folder_whose_images_all_belong_to_another_says_so(place):
    with pytest.raises(DataError, match="1 images belong to another folder"):
        index(place("photos/bad/0.png"), normal_dir="photos", abnormal_dir="photos/bad")


def test_images_outside_the_layout_are_named(mvtec_root, image):
    image(mvtec_root / "bolt/train/bad/0.png")
    image(mvtec_root / "bolt/test/hole/deep/9.png")
    found = index_mvtec(mvtec_root, "bolt")
    assert said(found) == {"Images that are not used.": ["0.png"]}
    assert summary(found) == "train 12, test good 4, defective 6 (hole 4, scratch 2), masks 5"


@pytest.mark.parametrize("share", [20, 1, 1.5, -0.1])
def test_a_share_that_is_none_is_refused_and_the_meant_one_guessed(share):
    words = ["data=folder", "data.root=photos", f"data.test_fraction={share}"]
    with pytest.raises(ConfigError, match="test_fraction") as caught:
        compose_checked("run", words)
    assert share != 20 or "data.test_fraction=0.2" in caught.value.do


# --- listing ------------------------------------------------------------------------------------


def test_linked_folders_are_followed_and_loops_end(place, image, tmp_path_factory):
    root = place("good/a.png", "bad/0.png")
    far = tmp_path_factory.mktemp("far")
    image(far / "shift/b.png")
    (far / "shift" / "back").symlink_to(far)
    (root / "good" / "linked").symlink_to(far)
    (root / "good" / "again").symlink_to(far / "shift")
    (root / "good" / "loop").symlink_to(root / "good")
    (root / "good" / "up").symlink_to(root)
    names = [str(p.relative_to(root / "good")) for p in walk(root / "good").images]
    assert sorted(names) == ["a.png", "again/b.png"]


def test_a_real_folder_keeps_its_own_path_although_a_link_to_it_comes_first(place):
    root = place("bad/rust/0.png")
    (root / "bad" / "a").symlink_to(root / "bad" / "rust")
    assert [p.parent.name for p in walk(root / "bad").images] == ["rust"]


def test_a_link_into_a_folder_of_another_meaning_borrows_nothing(place):
    root = place(*GOOD, "bad/0.png")
    (root / "good" / "reject").symlink_to(root / "bad")
    assert summary(index(root)) == "train 3, test good 1, defective 1 (bad 1), masks 0"


def test_an_unreadable_subfolder_is_refused_by_name(place, monkeypatch):
    root = place("good/a.png", "good/night/b.png", "good/c.png", "bad/0.png")
    look = os.scandir

    def guarded(path):
        if Path(path).name == "night":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(listing.os, "scandir", guarded)
    with pytest.raises(DataError, match=r"good/night cannot be read(.|\n)*Permission denied"):
        index(root)


def test_pictures_of_unread_types_and_dead_links_are_counted_and_named(place):
    root = place(*GOOD, "bad/0.png")
    for name in ("good/x.heic", "bad/y.HEIC", "bad/z.svg", "bad/notes.txt"):
        (root / name).touch()
    (root / "bad/gone.png").symlink_to(root / "nowhere.png")
    found = index(root)
    assert said(found) == {
        "Pictures of a type that is not read; they are left out.": ["x.heic", "y.HEIC", "z.svg"],
        "Image names that lead to no file; they are left out.": ["gone.png"],
    }
    assert found.findings[0].found.startswith("2 .heic, 1 .svg")


def test_a_folder_of_unread_pictures_only_says_so(place):
    root = place("bad/0.png")
    (root / "good").mkdir()
    (root / "good/x.heic").touch()
    with pytest.raises(DataError, match=r"1 pictures of a type that is not read, x\.heic"):
        index(root)


def test_the_extensions_are_those_of_the_installed_pillow():
    from PIL import features

    for name, suffix in (("avif", ".avif"), ("webp", ".webp"), ("jpg_2000", ".jp2")):
        assert (suffix in EXTENSIONS) == features.check(name)
