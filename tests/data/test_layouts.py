from __future__ import annotations

from pathlib import Path

import pytest

from src.data.folder import index_folder
from src.data.lists import index_visa
from src.data.mvtec import index_mvtec
from src.data.samples import DEFECTIVE, NORMAL
from src.errors import DataError


def summary(samples):
    """(split, label, defect, has mask) -> count."""
    counts = {}
    for s in samples:
        key = (s.split, s.label, s.defect, s.mask_path is not None)
        counts[key] = counts.get(key, 0) + 1
    return counts


def folder(root, **changes):
    options = {"normal_dir": "good", "abnormal_dir": None, "mask_dir": None,
               "normal_test_dir": None, "test_fraction": 0.25, "seed": 0}  # fmt: skip
    return index_folder(root, "any", **(options | changes))


# --- MVTec AD -------------------------------------------------------------------------------


def test_mvtec_labels_come_from_the_folder_below_test_although_the_root_is_called_good(mvtec_root):
    assert summary(index_mvtec(mvtec_root, "bolt")) == {
        ("train", NORMAL, "good", False): 12,
        ("test", NORMAL, "good", False): 4,
        ("test", DEFECTIVE, "hole", True): 3,
        ("test", DEFECTIVE, "scratch", True): 2,
    }


def test_each_mvtec_image_gets_the_mask_of_its_own_stem_and_defect(mvtec_root):
    for sample in index_mvtec(mvtec_root, "bolt"):
        if sample.label == DEFECTIVE:
            expected = f"bolt/ground_truth/{sample.defect}/{sample.image_path.stem}_mask.png"
            assert sample.mask_path == mvtec_root / expected


def test_images_are_listed_in_natural_order(tmp_path, image):
    for name in ("10", "9", "100", "2"):
        image(tmp_path / "c/train/good" / f"{name}.png")
    (tmp_path / "c/test").mkdir()
    stems = [s.image_path.stem for s in index_mvtec(tmp_path, "c")]
    assert stems == ["2", "9", "10", "100"]


def test_paths_are_absolute_even_from_a_relative_root(mvtec_root, monkeypatch):
    monkeypatch.chdir(mvtec_root)
    assert all(s.image_path.is_absolute() for s in index_mvtec(Path(), "bolt"))


def test_a_defective_image_without_a_mask_file_has_none(mvtec_root):
    (mvtec_root / "bolt/ground_truth/hole/001_mask.png").unlink()
    samples = [s for s in index_mvtec(mvtec_root, "bolt") if s.defect == "hole"]
    assert [s.mask_path is None for s in samples] == [False, True, False]


def test_an_archive_folder_between_root_and_category_is_found(mvtec_root):
    assert index_mvtec(mvtec_root.parent, "bolt") == index_mvtec(mvtec_root, "bolt")


def test_an_unknown_category_is_answered_with_the_nearest_one(mvtec_root):
    with pytest.raises(DataError, match=r"bolt, cloth(.|\n)*Did you mean 'bolt'"):
        index_mvtec(mvtec_root, "blot")


def test_a_missing_root_says_where_the_data_should_be(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*\n.*data\.root.*DATA_DIR"):
        index_mvtec(tmp_path / "absent", "bolt")
    with pytest.raises(DataError, match="nothing in it"):
        index_mvtec(tmp_path, "bolt")


def test_a_category_without_training_images_or_test_folder_is_refused(tmp_path, image):
    (tmp_path / "c/train/good").mkdir(parents=True)
    with pytest.raises(DataError, match="no images in"):
        index_mvtec(tmp_path, "c")
    image(tmp_path / "c/train/good/0.png")
    with pytest.raises(DataError, match="no test set"):
        index_mvtec(tmp_path, "c")


# --- VisA -----------------------------------------------------------------------------------


@pytest.fixture
def visa_root(tmp_path, image, mask):
    lines = ["object,split,label,image,mask"]
    for category in ("pcb1", "pcb2"):
        base = f"{category}/Data"
        for i in range(5):
            name = image(tmp_path / base / "Images/Normal" / f"{i}.JPG").relative_to(tmp_path)
            lines.append(f"{category},{'train' if i < 3 else 'test'},normal,{name},")
        for i in range(2):
            name = image(tmp_path / base / "Images/Anomaly" / f"{i}.JPG").relative_to(tmp_path)
            spot = mask(tmp_path / base / "Masks/Anomaly" / f"{i}.png").relative_to(tmp_path)
            lines.append(f"{category},test,anomaly,{name},{spot}")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_visa_follows_the_official_split_file(visa_root):
    assert summary(index_visa(visa_root, "pcb2")) == {
        ("train", NORMAL, "good", False): 3,
        ("test", NORMAL, "good", False): 2,
        ("test", DEFECTIVE, "anomaly", True): 2,
    }


def test_visa_names_unknown_categories_missing_files_and_foreign_split_files(visa_root):
    with pytest.raises(DataError, match="'pcb1'"):
        index_visa(visa_root, "pbc1")
    (visa_root / "pcb1/Data/Masks/Anomaly/0.png").unlink()
    with pytest.raises(DataError, match=r"1 listed files are missing.*0\.png"):
        index_visa(visa_root, "pcb1")
    assert len(index_visa(visa_root, "pcb2")) == 7
    (visa_root / "split_csv/1cls.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="KeyError: 'label'"):
        index_visa(visa_root, "pcb2")
    with pytest.raises(DataError, match=r"1cls\.csv"):
        index_visa(visa_root / "pcb1", "pcb1")


# --- BTAD -----------------------------------------------------------------------------------


def test_btad_masks_share_the_stem_but_not_the_extension(tmp_path, image, mask):
    base = tmp_path / "BTech_Dataset_transformed" / "01"
    for i in range(3):
        image(base / "train/ok" / f"{i:04d}.bmp")
        image(base / "test/ok" / f"{i:04d}.bmp")
        image(base / "test/ko" / f"{i:04d}.bmp")
        mask(base / "ground_truth/ko" / f"{i:04d}.png")
    samples = index_mvtec(tmp_path, "01", data_set="BTAD", good="ok")
    assert summary(samples) == {
        ("train", NORMAL, "good", False): 3,
        ("test", NORMAL, "good", False): 3,
        ("test", DEFECTIVE, "ko", True): 3,
    }
    pairs = [s for s in samples if s.mask_path]
    assert all(s.mask_path.stem == s.image_path.stem for s in pairs)


# --- your own folder ------------------------------------------------------------------------


def test_a_folder_of_good_parts_is_enough_and_a_seeded_share_is_tested(tmp_path, image):
    for i in range(20):
        image(tmp_path / "good" / f"{i}.jpg")
    samples = folder(tmp_path)
    assert summary(samples) == {
        ("train", NORMAL, "good", False): 15,
        ("test", NORMAL, "good", False): 5,
    }
    assert samples == folder(tmp_path)
    assert samples != folder(tmp_path, seed=1)
    assert {s.image_path for s in samples} == set((tmp_path / "good").iterdir())


def test_subfolders_of_the_defective_images_are_defect_types(tmp_path, image, mask):
    image(tmp_path / "good/0.png")
    image(tmp_path / "good/1.png")
    for name in ("bad/dent/0.png", "bad/dent/1.png", "bad/rust/deep/0.png", "bad/5.png"):
        image(tmp_path / name)
    for name in ("masks/dent/0.bmp", "masks/dent/1_mask.png", "masks/rust/deep/0.png"):
        mask(tmp_path / name)
    found = {
        s.image_path.relative_to(tmp_path).as_posix(): (
            s.defect,
            s.mask_path and s.mask_path.relative_to(tmp_path).as_posix(),
        )
        for s in folder(tmp_path, abnormal_dir="bad", mask_dir="masks")
        if s.label == DEFECTIVE
    }
    assert found == {
        "bad/5.png": ("bad", None),
        "bad/dent/0.png": ("dent", "masks/dent/0.bmp"),
        "bad/dent/1.png": ("dent", "masks/dent/1_mask.png"),
        "bad/rust/deep/0.png": ("rust", "masks/rust/deep/0.png"),
    }


def test_several_defect_folders_with_equal_stems_keep_their_own_masks(tmp_path, image, mask):
    image(tmp_path / "good/a.png")
    image(tmp_path / "good/b.png")
    for kind in ("dent", "rust"):
        image(tmp_path / kind / "0.png")
        mask(tmp_path / "masks" / kind / "0.png")
    bad = [s for s in folder(tmp_path, abnormal_dir=["dent", "rust"], mask_dir="masks") if s.label]
    assert [(s.defect, s.mask_path.parent.name) for s in bad] == [
        ("dent", "dent"),
        ("rust", "rust"),
    ]


def test_an_ambiguous_stem_gets_no_mask_instead_of_a_wrong_one(tmp_path, image, mask):
    image(tmp_path / "good/a.png")
    image(tmp_path / "bad/0.png")
    mask(tmp_path / "masks/x/0.png")
    mask(tmp_path / "masks/y/0.png")
    bad = [s for s in folder(tmp_path, abnormal_dir="bad", mask_dir="masks") if s.label]
    assert bad[0].mask_path is None


def test_folders_inside_the_folder_of_good_parts_are_not_taken_for_good(tmp_path, image, mask):
    for name in ("0.png", "1.png", "bad/2.png", "test_good/3.png"):
        image(tmp_path / name)
    mask(tmp_path / "bad/masks/2.png")
    options = {"normal_dir": ".", "abnormal_dir": "bad", "mask_dir": "bad/masks"}
    samples = folder(tmp_path, normal_test_dir="test_good", **options)
    assert summary(samples) == {
        ("train", NORMAL, "good", False): 2,
        ("test", NORMAL, "good", False): 1,
        ("test", DEFECTIVE, "bad", True): 1,
    }


@pytest.mark.parametrize("option", ["normal_dir", "abnormal_dir", "mask_dir", "normal_test_dir"])
def test_a_named_folder_that_is_missing_is_an_error_not_an_empty_set(tmp_path, image, option):
    image(tmp_path / "good/0.png")
    image(tmp_path / "bad/0.png")
    with pytest.raises(DataError, match="nowhere"):
        folder(tmp_path, **({"abnormal_dir": "bad"} | {option: "nowhere"}))


def test_a_root_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        folder(tmp_path / "absent")
