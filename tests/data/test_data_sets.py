"""Every data set of conf/data, from its files to a report."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from src.composing import CONF, compose_checked
from src.data.images import mask_files, read_mask, read_regions
from src.data.record import DataRecord, list_samples
from src.data.samples import DEFECTIVE, NORMAL, UNKNOWN, summary
from src.errors import DataError
from src.experiment import run_experiment
from tests.data import fake_trees as fake

TINY = (
    "model=pixel_statistics", "transform.resize=[32,32]", "transform.crop=null",
    "calibration.fraction=0.4", "evaluation.size=32", "evaluation.bootstrap=10",
    "evaluation.latency_images=1", "report.max_images=4", "hardware=cpu", "hardware.num_workers=0",
)  # fmt: skip
#: What `summary` says of each fake tree.
TOLD = {
    "autovi": "train 8, test good 3, defective 3 (unplugged 3), masks 3",
    "btad": "train 8, test good 3, defective 3 (ko 3), masks 3",
    "dagm": "train 6, test good 6, defective 2 (defect 2), masks 2",
    "kolektor_sdd": "train 7, test good 2, defective 3 (defect 3), masks 3",
    "kolektor_sdd2": "train 6, test good 6, defective 2 (defect 2), masks 2",
    "magnetic_tile": "train 6, test good 2, defective 6 (MT_Crack 3, MT_Uneven 3), masks 6",
    "mpdd": "train 8, test good 3, defective 6 (major_rust 3, scratches 3), masks 6",
    "mvtec": "train 8, test good 3, defective 6 (broken_large 3, contamination 3), masks 6",
    "mvtec_ad_2": "train 8, calibration 3, test good 3, defective 3 (bad 3), masks 3",
    "mvtec_loco": "train 8, calibration 3, test good 3, defective 6 (logical_anomalies 3, "
    "structural_anomalies 3), masks 6",
    "panorama": "train 5, test good 3, defective 8 (bad 8), masks 0",
    "real_iad": "train 6, test good 2, defective 4 (AK 4), masks 4",
    "road_images": "train 5, test good 3, defective 8 (bad 8), masks 0",
    "visa": "train 8, test good 3, defective 3 (anomaly 3), masks 3",
}


def config(name: str, root: Path, *words: str):
    words = ("model=pixel_statistics", f"data={name}", f"data.root={root}", *words)
    return compose_checked("run", words)  # as the command line would make it


@pytest.fixture
def tree(tmp_path):
    """Build a fake tree: tree("dagm") -> its root."""

    def build(name: str) -> Path:
        root = tmp_path / name
        root.mkdir()
        fake.TREES[name](root)
        return root

    return build


def run(name: str, root: Path, runs: Path, *words: str):
    return run_experiment(config(name, root, f"runs_dir={runs}", *TINY, *words))


def test_every_data_set_has_a_fake_tree():
    named = {path.stem for path in (CONF / "data").glob("*.yaml")}
    assert {*fake.TREES} == {*TOLD} == named - {"folder", "synthetic"}


@pytest.mark.parametrize("name", TOLD)
def test_a_data_set_goes_from_its_files_to_a_report(name, tree, tmp_path):
    root = tree(name)
    assert summary(list_samples(config(name, root).data)) == TOLD[name]
    result = run(name, root, tmp_path / "runs")
    assert result.metrics["test/image_auroc"] == 1.0  # the defects are bright squares
    assert ("test/pixel_auroc" in result.metrics) == ("masks 0" not in TOLD[name])
    assert (result.run.directory / "report.html").is_file()


# --- MVTec LOCO AD ------------------------------------------------------------------------------


def test_loco_gives_results_of_structural_and_logical_defects_in_one_run(tree, tmp_path):
    result = run("mvtec_loco", tree("mvtec_loco"), tmp_path / "runs")
    kinds = {row["defect"] for row in result.run.read_rows("scores.csv")}
    assert kinds == {"good", "logical_anomalies", "structural_anomalies"}
    page = (result.run.directory / "report.html").read_text()
    assert "logical_anomalies" in page
    assert len(result.run.calibration().image) == fake.BAD  # of validation/good, not of training
    assert 0.9 < result.metrics["test/auspro"] <= 1.0


def test_a_mask_of_several_files_is_their_union_and_every_file_counts_as_content(tree):
    root = tree("mvtec_loco")
    samples = list_samples(config("mvtec_loco", root).data)
    two = next(sample for sample in samples if sample.defect == "logical_anomalies")
    files = mask_files(two.mask_path)
    assert [file.name for file in files] == ["000.png", "001.png"]
    assert np.array_equal(read_mask(two.mask_path), read_mask(files[0]) | read_mask(files[1]))
    before = DataRecord.of(samples, root)
    fake.mask(files[1], 253, slice(20, 24))
    assert before.difference(DataRecord.of(samples, root)) == "1 mask changed"
    (root / "breakfast_box/defects_config.json").write_text("[]")
    assert before.difference(DataRecord.of(samples, root)) == "6 masks changed"


def test_regions_have_the_saturation_of_their_pixel_value(tree):
    samples = list_samples(config("mvtec_loco", tree("mvtec_loco")).data)
    by_kind = {sample.defect: sample for sample in samples}
    areas = {
        kind: [(int(region.pixels.sum()), region.saturation) for region in read_regions(sample)]
        for kind, sample in by_kind.items()
    }
    assert areas == {
        "good": [],
        "structural_anomalies": [(80, 80.0)],  # all of it: a share of 1
        "logical_anomalies": [(40, 10.0), (40, 40.0)],  # 10 pixels are enough; at most its own
    }


def test_without_a_saturation_file_whole_regions_count(tree):
    samples = list_samples(config("autovi", tree("autovi")).data)
    (region,) = read_regions(samples[-1] if samples[-1].label == DEFECTIVE else samples[-4])
    assert region.saturation == region.pixels.sum() == 80


@pytest.mark.parametrize("text", ["[{}]", "nothing", '[{"pixel_value": 1}]'])
def test_a_broken_or_foreign_saturation_file_is_named(tree, text):
    root = tree("mvtec_loco")
    (root / "breakfast_box/defects_config.json").write_text(text)
    sample = next(s for s in list_samples(config("mvtec_loco", root).data) if s.mask_path)
    with pytest.raises(DataError, match=r"defects_config\.json(.|\n)*original archive"):
        read_regions(sample)


def test_a_pixel_value_that_the_saturation_file_does_not_know_is_an_error(tree):
    root = tree("mvtec_loco")
    fake.mask(root / "breakfast_box/ground_truth/logical_anomalies/000/001.png", 7)
    samples = list_samples(config("mvtec_loco", root).data)
    sample = next(s for s in samples if s.defect == "logical_anomalies")
    with pytest.raises(DataError, match=r"logical_anomalies/000 is found(.|\n)*KeyError: 7"):
        read_regions(sample)


def test_masks_of_one_image_that_differ_in_size_are_an_error(tree):
    folder = tree("mvtec_loco") / "breakfast_box/ground_truth/logical_anomalies/000"
    Image.new("L", (8, 9), 255).save(folder / "001.png")
    with pytest.raises(DataError, match="32 x 32, 8 x 9"):
        read_mask(folder)


# --- MVTec AD 2 ---------------------------------------------------------------------------------


def test_images_without_a_label_are_scored_and_written_as_the_benchmark_wants_them(tree, tmp_path):
    root = tree("mvtec_ad_2")
    result = run("mvtec_ad_2", root, tmp_path / "runs", "data.unlabelled=true")
    assert result.metrics["test/image_auroc"] == 1.0  # of the public test alone
    rows = result.run.read_rows("scores.csv")
    assert sum(int(row["label"]) == UNKNOWN for row in rows) == 2 * fake.BAD
    folder = result.run.directory / "submission"
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    splits = {"test_private": "regular", "test_private_mixed": "mixed"}
    assert names == {
        f"{kind}/can/{split}/{i:03d}_{light}{suffix}"
        for kind, suffix in (("anomaly_images", ".tiff"), ("anomaly_images_thresholded", ".png"))
        for split, light in splits.items()
        for i in range(fake.BAD)
    }
    maps = tifffile.imread(folder / "anomaly_images/can/test_private/000_regular.tiff")
    assert (maps.dtype, maps.shape) == (np.float16, (fake.SIZE, fake.SIZE))
    decided = Image.open(folder / "anomaly_images_thresholded/can/test_private/000_regular.png")
    assert (decided.mode, {*np.unique(decided)}) == ("L", {0, 255})
    assert np.asarray(decided)[12, 15] == 255  # the bright square
    limit = result.run.read_json("model/threshold.json")["pixel"]
    agrees = (maps.astype(float) > limit) == (np.asarray(decided) > 0)
    assert agrees.mean() > 0.98  # but for rounding to float16


def test_labels_that_nobody_knows_are_not_listed_unless_asked_for(tree):
    root = tree("mvtec_ad_2")
    found = list_samples(config("mvtec_ad_2", root).data)
    assert not found.findings
    assert {sample.label for sample in found} == {NORMAL, DEFECTIVE}


# --- what is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mpdd", "magnetic_tile", "dagm", "real_iad"])
def test_a_set_behind_a_licence_says_where_a_person_gets_it(name, tmp_path):
    from hydra.utils import instantiate

    data = config(name, tmp_path).data
    with pytest.raises(DataError) as caught:
        instantiate(data.prepare)(tmp_path, data.category)
    assert data.about.page in caught.value.do
    assert data.about.licence in caught.value.do
    assert str(tmp_path) in caught.value.do


@pytest.mark.parametrize("name", sorted(TOLD))
def test_a_missing_tree_says_where_it_should_be(name, tmp_path):
    data = config(name, tmp_path / "absent", "data.download=false").data
    with pytest.raises(
        DataError, match=r"was not found; expected (.|\n)*no folder (.|\n)*DATA_DIR"
    ):
        list_samples(data)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("mvtec_loco", "breakfast", "breakfast_box"), ("mpdd", "metalplate", "metal_plate"),
        ("dagm", "Class11", "Class1"), ("real_iad", "audio_jack", "audiojack"),
        ("autovi", "engine_wire", "engine_wiring"), ("mvtec_ad_2", "cans", "can"),
    ],
)  # fmt: skip
def test_a_wrong_category_is_answered_with_the_nearest(name, wrong, right, tree):
    root = tree(name)
    with pytest.raises(DataError, match=rf"Did you mean '{right}'"):
        list_samples(config(name, root, f"data.category={wrong}").data)


# --- single layouts -----------------------------------------------------------------------------


def test_a_share_of_the_good_images_is_tested_where_there_is_no_official_split(tree):
    root = tree("kolektor_sdd")
    names = [
        [s.image_path for s in list_samples(config("kolektor_sdd", root, *words).data)]
        for words in ((), (), ("seed=1",), ("data.test_fraction=0.5",))
    ]
    assert names[0] == names[1] != names[2]
    half = list_samples(config("kolektor_sdd", root, "data.test_fraction=0.5").data)
    assert sum(s.split == "train" for s in half) == 5


def test_a_camera_of_real_iad_can_be_chosen(tree):
    root = tree("real_iad")
    one = list_samples(config("real_iad", root, "data.views=[C2]").data)
    assert {s.image_path.stem.split("_")[3] for s in one} == {"C2"}
    assert len(one) == 6


def test_a_list_of_another_form_and_a_listed_file_that_is_missing_are_named(tree):
    root = tree("real_iad")
    data = config("real_iad", root).data
    next((root / "realiad_256").rglob("*_mask.png")).unlink()
    with pytest.raises(DataError, match="1 listed files are missing"):
        list_samples(data)
    (root / "realiad_jsons/audiojack.json").write_text('{"train": []}')
    with pytest.raises(DataError, match=r"not the list of a data set(.|\n)*KeyError"):
        list_samples(data)


# --- real images --------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "category"), [("mpdd", "metal_plate"), ("mvtec_loco", "juice_bottle")]
)
def test_a_real_set_goes_from_its_files_to_a_report(name, category, tmp_path):
    home = Path(os.environ.get("MVTEC_AD_ROOT", "")).parent / name
    if not (home / category).is_dir():
        pytest.skip(f"needs MVTEC_AD_ROOT with {name}/{category} beside it")
    result = run(name, home, tmp_path, f"data.category={category}", "data.shots=20",
                 "data.limit_test=12", "calibration.fraction=0.2")  # fmt: skip
    assert 0 <= result.metrics["test/image_auroc"] <= 1
    assert 0 <= result.metrics["test/pixel_auroc"] <= 1


# --- the page -----------------------------------------------------------------------------------


def test_the_table_of_the_documentation_is_up_to_date():
    spec = importlib.util.spec_from_file_location("page", CONF.parent / "docs/data_sets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.PAGE.read_text()
    assert module.page(text) == text, "run `make docs`"
    assert all(f"| `{name}` |" in text for name in TOLD)
