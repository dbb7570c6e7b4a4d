from __future__ import annotations

import csv
import math

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from scipy.stats import chi2

from src.commands.compare import compare_runs, verdict
from src.composing import CONF
from src.errors import ConfigError, DataError, SavedModelError
from src.evaluation import comparison, overlap, uncertainty
from src.evaluation.pixels import PixelStore
from src.experiment import run_experiment
from src.saved_run import PIXELS, SavedRun, ScoreRow
from tests import reference

TINY = (
    "experiment=demo", "data.synthetic.size=64", "data.synthetic.train=8",
    "data.synthetic.test_normal=4", "data.synthetic.test_defective=6", "transform.resize=64",
    "transform.crop=null", "model.target_dim=64", "evaluation.size=64", "evaluation.bootstrap=50",
    "evaluation.latency_images=2", "report.enabled=false", "hardware.num_workers=0",
)  # fmt: skip


def scored(scores, labels, threshold=0.5, prefix="test"):
    return [
        ScoreRow(
            f"{prefix}/{i:03d}.png",
            int(y),
            "hole" if y else "good",
            float(s),
            s > threshold,
            image=f"{prefix} {i}",
            mask=f"mask {i}" if y else "",
        )
        for i, (s, y) in enumerate(zip(scores, labels, strict=True))
    ]


def match(first, second):
    return comparison.match(pd.DataFrame(first), pd.DataFrame(second))


def draw(seed, shift, images=60):
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 3 > 0
    return rng.normal(size=images) * 0.5 + shift * labels, labels


def test_images_are_matched_by_content_whatever_their_order_and_names():
    scores, labels = draw(0, 0.8)
    first, second = scored(scores, labels), scored(scores + 1, labels)
    renamed = [row._replace(path=f"elsewhere/{row.path}") for row in second]
    matched = match(first[5:], renamed[::-1][:-2])
    assert matched.images.path_a.tolist() == [row.path for row in first[5:]]
    assert matched.images.path_b.tolist() == [row.path for row in renamed[5:]]
    assert (matched.only_first, matched.only_second) == (0, 3)
    assert matched.images.score_b.tolist() == pytest.approx(matched.images.score_a + 1)


def test_runs_on_other_images_or_with_other_labels_cannot_be_compared():
    scores, labels = draw(0, 0.8)
    other = [row._replace(image=f"other {i}") for i, row in enumerate(scored(scores, labels))]
    with pytest.raises(DataError, match=r"no test image in common[\s\S]*60 have the same names"):
        match(scored(scores, labels), other)
    with pytest.raises(DataError, match="60 images, first: test/000"):
        match(scored(scores, labels), scored(scores, ~labels))


def test_observed_values_are_the_metrics_of_the_common_images():
    a, labels = draw(1, 0.8)
    b, _ = draw(2, 1.2)
    found = comparison.compare_images(match(scored(a, labels), scored(b, labels)), 200, 0)
    by_name = {row.metric: row for row in found}
    truth = labels.tolist()
    assert by_name["test/image_auroc"].first == pytest.approx(reference.auroc(a.tolist(), truth))
    assert by_name["test/image_auroc"].second == pytest.approx(reference.auroc(b.tolist(), truth))
    assert by_name["test/image_ap"].second == pytest.approx(
        reference.average_precision(b.tolist(), truth)
    )
    for key, rate in uncertainty.decision_rates(a > 0.5, labels).items():
        assert by_name[key].first == rate.item()
    for row in found:
        assert row.difference.value == pytest.approx(row.second - row.first)
        assert row.difference.low <= row.difference.value <= row.difference.high


def test_a_better_run_is_found_better_and_a_run_equals_itself():
    scores, labels = draw(3, 0.8, images=120)
    better = scores + 0.6 * labels
    matched = match(scored(scores, labels), scored(better, labels))
    auroc = comparison.compare_images(matched, 500, 0)[0]
    assert auroc.difference.low > 0
    assert verdict(auroc) == "b"
    same = match(scored(scores, labels), scored(scores, labels))
    for row in comparison.compare_images(same, 200, 0):
        assert row.difference == (0, 0, 0, 1)
        assert verdict(row) == ""


def test_fewer_false_alarms_are_better():
    scores, labels = draw(4, 1.0, images=200)
    calm = np.where(labels, scores, scores - 0.5)
    matched = match(scored(scores, labels), scored(calm, labels))
    by_name = {row.metric: row for row in comparison.compare_images(matched, 500, 0)}
    assert by_name["test/false_alarm_rate"].difference.value < 0
    assert verdict(by_name["test/false_alarm_rate"]) == "b"


def test_images_without_a_label_and_a_missing_class_do_not_break_a_comparison():
    scores, labels = draw(5, 1.0, images=9)
    unknown = [row._replace(label=-1) for row in scored(scores, labels)]
    mixed = unknown[:3] + scored(scores, labels)[3:]
    assert comparison.compare_images(match(mixed, mixed), 20, 0)
    normal = [row for row in scored(scores, labels) if row.label == 0]
    found = comparison.compare_images(match(normal, normal), 20, 0)
    by_name = {row.metric: row for row in found}
    assert math.isnan(by_name["test/image_auroc"].difference.p_value)
    assert math.isnan(by_name["test/recall"].first)
    assert verdict(by_name["test/image_auroc"]) == ""


def statistics(shift, seed=0, images=16, order=None):
    rng = np.random.default_rng(seed)
    store, maps, masks = PixelStore(1), [], []
    for index in range(images):
        mask = np.zeros((32, 32), dtype=bool)
        if index % 4:
            r, c = rng.integers(0, 22, size=2)
            mask[r : r + 8, c : c + 6] = True
        maps.append((rng.normal(size=mask.shape) + shift * mask).astype(np.float32))
        masks.append(mask)
    order = order if order is not None else range(images)
    for position, index in enumerate(order):
        store.add(position, maps[index], masks[index])
    paths = [f"test/{index:03d}.png" for index in order]
    return store.histograms(1024)._replace(image=np.array(paths)), np.array(maps), np.array(masks)


def test_pixel_metrics_of_two_runs_are_compared_image_by_image():
    first, maps, masks = statistics(1.0)
    second, better_maps, _ = statistics(1.6, order=[*range(15, -1, -1)])
    limits = {"test/aupro": 0.3}
    pairs = [(path, path) for path in first.image.tolist()]
    found = comparison.compare_pixels(first, second, pairs, limits, 300, 0)
    by_name = {row.metric: row for row in found}
    for row, both in ((by_name["test/aupro"], (maps, better_maps)),):
        for value, drawn in zip((row.first, row.second), both, strict=True):
            store = PixelStore(1)
            for index in range(16):
                store.add(index, drawn[index], masks[index])
            exact = overlap.area_under_overlap(store.rank().regions, 0.3)
            assert value == pytest.approx(exact, abs=2e-3)
    assert by_name["test/pixel_auroc"].difference.low > 0
    assert by_name["test/aupro"].difference.p_value < 0.05
    part = first.of(first.image.tolist()[:9])
    assert len(comparison.compare_pixels(part, second, pairs, limits, 10, 0)) == 3
    assert comparison.compare_pixels(first, second, [], limits, 10, 0) == []


def test_pixel_statistics_survive_the_file(tmp_path):
    saved, _, _ = statistics(1.0)
    run = SavedRun(tmp_path)
    assert run.pixel_statistics() is None
    run.write_pixel_statistics(saved, saved.image.tolist())
    read = run.pixel_statistics()
    for a, b in zip(read, saved, strict=True):
        np.testing.assert_array_equal(a, b)
    for damaged in (b"", b"broken", b"PK\x03\x04 broken"):
        (tmp_path / PIXELS).write_bytes(damaged)
        with pytest.raises(SavedModelError, match=r"pixel_statistics\.npz: "):
            run.pixel_statistics()


# --- whole runs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Two tiny finished runs of one model that differ in the threshold rule."""
    folder = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    patch.setenv("DATA_DIR", str(folder / "data"))
    patch.setenv("RUNS_DIR", str(folder / "runs"))
    found = []
    for overrides in (("threshold.alpha=0.3",), ("threshold=f1_oracle",)):
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            cfg = compose("run", overrides=[*TINY, *overrides])
        found.append(run_experiment(cfg).run.directory)
    yield found
    patch.undo()


def compare(first, second, *overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("compare", overrides=["resamples=100", *overrides])
    cfg.run_a, cfg.run_b = str(first), str(second)
    return compare_runs(cfg)


def test_two_finished_runs_give_a_table_and_pictures_of_the_images_they_disagree_on(
    two_runs, tmp_path, capsys
):
    found = compare(*two_runs, f"out={tmp_path}", "device=cpu")
    printed = capsys.readouterr().out
    assert {"test/image_auroc", "test/aupro", "test/aupro_05"} <= {row.metric for row in found}
    with (tmp_path / "comparison.csv").open() as stream:
        table = {row["metric"]: row for row in csv.DictReader(stream)}
    # One model, two thresholds: scores agree, decisions do not.
    assert float(table["test/image_auroc"]["difference"]) == 0
    assert float(table["test/f1"]["difference"]) > 0
    with (tmp_path / "disagreements.csv").open() as stream:
        apart = list(csv.DictReader(stream))
    assert apart
    assert all(row["decision_a"] != row["decision_b"] for row in apart)
    assert f"decisions differ on {len(apart)}" in printed
    sheet = Image.open(tmp_path / "disagreements.png")
    assert sheet.width > 4 * 280
    assert np.asarray(sheet).std() > 10


def test_comparing_needs_no_model_when_no_pictures_are_wanted(two_runs, tmp_path, monkeypatch):
    monkeypatch.setattr("src.commands.compare.Detector", None)
    compare(*two_runs, f"out={tmp_path}", "pictures=0")
    assert not (tmp_path / "disagreements.png").exists()
    assert (tmp_path / "comparison.csv").exists()


def test_a_folder_that_is_no_run_is_a_clear_mistake(two_runs, tmp_path):
    with pytest.raises(SavedModelError, match=r"scores\.csv: FileNotFound"):
        compare(two_runs[0], tmp_path, "pictures=0")


# --- several methods -----------------------------------------------------------------------------

#: AUC of four variants of C4.5 on fourteen data sets: Demsar 2006, table 6. On the last but one
#: two are printed as 0.975 and ranked 2 and 3.
C45 = np.array([
    [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.975, 0.9749], [0.957, 0.978, 0.946, 0.970],
])  # fmt: skip


def test_ranks_and_critical_difference_are_those_of_demsars_example():
    table = pd.DataFrame(C45, columns=["C4.5", "m", "cf", "m+cf"])
    ranks = comparison.rank_methods(table)
    assert ranks.mean.round(3).to_dict() == {"m+cf": 1.964, "m": 2.0, "cf": 2.893, "C4.5": 3.143}
    assert ranks.critical == pytest.approx(1.25, abs=0.005)
    ties = (3 * (2**3 - 2) + (4**3 - 4)) / (14 * (4**3 - 4))  # his 9.28 has no correction of them
    assert ranks.p_value == pytest.approx(chi2.sf(9.28 / (1 - ties), 3), rel=1e-2)
    assert ranks.groups == [(0, 3)]
    upside_down = comparison.rank_methods(table, lower_is_better=True)
    assert list(upside_down.mean.index) == ["C4.5", "cf", "m", "m+cf"]


@pytest.mark.parametrize(
    ("ranks", "critical", "groups"),
    [
        ([1.0, 2.0, 3.0, 4.0], 0.5, []),
        ([1.0, 1.4, 1.8, 4.0], 0.5, [(0, 1), (1, 2)]),
        ([1.0, 1.4, 1.8, 1.9], 0.5, [(0, 1), (1, 3)]),
        ([1.0, 1.1, 1.2, 1.3], 0.5, [(0, 3)]),
    ],
)
def test_bars_join_the_longest_stretches_that_cannot_be_told_apart(ranks, critical, groups):
    mean = pd.Series(ranks, index=list("abcd"))
    assert comparison.MethodRanks(mean, 5, 0.1, critical).groups == groups


@pytest.fixture
def many_runs(tmp_path):
    """Three methods on four categories, the third without the last; one is best, one has a seed."""
    values = {"one": [0.99, 0.98, 0.97, 0.9], "two": [0.9, 0.91, 0.92, 0.8], "three": [0.8] * 3}
    for model, found in values.items():
        for category, value in zip("abcd", found, strict=False):
            for seed in range(2 if model == "two" else 1):
                run = SavedRun(tmp_path / model / category / f"seed{seed}-0a-0b")
                config = {
                    "model": {"name": model}, "backbone": {"name": None}, "seed": seed,
                    "data": {"name": "parts", "category": None, "root": None},
                    "evaluation": {"size": "original"}, "transform": {"resize": 8, "crop": 8},
                }  # fmt: skip
                run.start(OmegaConf.create(config), {}, force=False)
                run.finish({"test/aupro": value + seed * 0.01})
    return tmp_path


def test_all_methods_of_a_folder_are_ranked_and_drawn(many_runs, app_config, capsys):
    cfg = app_config("compare", f"runs={many_runs}", "metric=aupro")
    assert compare_runs(cfg) == 0
    with (many_runs / "ranks" / "ranks.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["method"].split()[0] for row in rows] == ["one", "two", "three"]
    assert [float(row["mean_rank"]) for row in rows] == [1, 2, 3]
    assert float(rows[1]["mean"]) == pytest.approx(0.915)  # of both seeds, without the last
    said = " ".join(capsys.readouterr().out.split())
    assert "the pixels of the original images" in said
    assert "on 3 categories" in said
    with Image.open(many_runs / "ranks" / "critical_difference.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_two_methods_are_too_few_to_rank_and_a_run_is_needed(many_runs, app_config):
    with pytest.raises(DataError, match="1 methods on 4 categories"):
        compare_runs(app_config("compare", f"runs={many_runs / 'one'}", "metric=aupro"))
    with pytest.raises(DataError, match="0 methods on 0 categories"):
        compare_runs(app_config("compare", f"runs={many_runs}"))
    with pytest.raises(ConfigError, match="run_b is needed"):
        compare_runs(app_config("compare", f"run_a={many_runs}"))


def test_the_difference_of_image_auroc_is_also_delongs():
    scores, labels = draw(0, 0.8)
    other, _ = draw(1, 0.1)
    matched = match(scored(scores, labels), scored(other, labels))
    rows = {row.metric: row for row in comparison.compare_images(matched, 200, 0)}
    found = rows["test/image_auroc_delong"]
    assert found[1:3] == pytest.approx(rows["test/image_auroc"][1:3])
    areas, covariance = reference.delong([scores, other], labels)
    spread = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert found.difference.p_value == pytest.approx(
        math.erfc(abs(areas[1] - areas[0]) / spread / math.sqrt(2))
    )
    assert verdict(found) == "a"
