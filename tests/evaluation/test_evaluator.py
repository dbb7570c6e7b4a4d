from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn import metrics as referee

from src.composing import compose_checked
from src.data.samples import Sample
from src.data.transforms import ImageTransform
from src.errors import ConfigError, DataError
from src.evaluation import overlap
from src.evaluation.evaluator import Evaluator, build_evaluator
from src.evaluation.pixels import PixelStore
from src.evaluation.threshold import Conformal, Nfa
from src.evaluation.uncertainty import decision_rates
from src.evaluation.view import View, resize_maps, resize_masks
from src.result import NormalScores, Prediction, Threshold
from tests import reference

GRID = 12
LIMITS = (0.3, 0.05)


def new(size=GRID, **changes):
    options = {"memory_gb": 1.0, "resamples": 50, "limits": LIMITS, "seed": 0} | changes
    return Evaluator(View(size), **options)


def at(image=0.5, pixel=0.5, rule="conformal"):
    return Threshold(image, pixel, rule, 0.1, 0.1, 9, oracle=False)


def geometry(resize, crop):
    return ImageTransform(
        resize=resize, crop=crop, interpolation="bilinear", antialias=True,
        mean=[0.5] * 3, std=[0.5] * 3,
    )  # fmt: skip


class Scene:
    """Twelve test images: four good, five with a scratch, three with a dent."""

    def __init__(self, seed=0, side=GRID, with_mask=False):
        rng = np.random.default_rng(seed)
        self.label = torch.tensor([0] * 4 + [1] * 8)
        self.defect = ["good"] * 4 + ["scratch"] * 5 + ["dent"] * 3
        self.mask = torch.zeros(12, side, side, dtype=torch.bool)
        for i in range(4, 12):
            r, c = rng.integers(0, side - 5, size=2)
            self.mask[i, r : r + 4, c : c + 3] = True
        noise = torch.tensor(rng.normal(size=self.mask.shape), dtype=torch.float32)
        self.map = noise * 0.3 + self.mask * 0.8
        self.score = self.map.flatten(1).amax(1) + torch.tensor(rng.normal(size=12) * 0.2).float()
        self.own = self.map > 0.4 if with_mask else None
        self.samples = [
            Sample(Path(f"/{i}.png"), None, int(y), d, "test")
            for i, (y, d) in enumerate(zip(self.label, self.defect, strict=True))
        ]

    def batch(self, which):
        which = torch.as_tensor(which)
        own = None if self.own is None else self.own[which]
        batch = {"mask": self.mask[which], "label": self.label[which], "index": which}
        return batch, Prediction(self.score[which], self.map[which], own)

    def fill(self, evaluator, size=5):
        for start in range(0, 12, size):
            evaluator.update(*self.batch(range(start, min(start + size, 12))))
        return evaluator


def same(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert left[key] == pytest.approx(right[key], nan_ok=True), key


def test_every_metric_equals_its_slow_twin():
    scene = Scene()
    threshold = at(image=0.9, pixel=0.45)
    got = scene.fill(new()).compute(threshold, scene.samples)
    scores, labels = scene.score.tolist(), scene.label.tolist()
    maps, masks = scene.map.numpy(), scene.mask.numpy()
    flat, truth = maps.ravel(), masks.ravel()
    alarm = [s > 0.9 for s in scores]
    wanted = {
        "test/images_normal": 4,
        "test/images_defective": 8,
        "test/unseen_defect_pixels": 0,
        "test/image_auroc": reference.auroc(scores, labels),
        "test/image_auroc_delong": reference.auroc(scores, labels),
        "test/balanced_accuracy": referee.balanced_accuracy_score(labels, alarm),
        "test/image_ap": reference.average_precision(scores, labels),
        "test/image_f1_max": reference.f1_max(scores, labels),
        "test/precision": referee.precision_score(labels, alarm),
        "test/recall": referee.recall_score(labels, alarm),
        "test/f1": referee.f1_score(labels, alarm),
        "test/false_alarm_rate": np.mean(alarm[:4]),
        "test/recall/scratch": np.mean(alarm[4:9]),
        "test/recall/dent": np.mean(alarm[9:]),
        "test/pixel_auroc": referee.roc_auc_score(truth, flat),
        "test/pixel_auroc_defective_only": referee.roc_auc_score(
            masks[4:].ravel(), maps[4:].ravel()
        ),
        "test/pixel_ap": referee.average_precision_score(truth, flat),
        "test/pixel_f1": referee.f1_score(truth, flat > np.float32(0.45)),
        "test/aupimo": math.nan,  # 576 normal pixels are too few for a rate of 1e-5
        "test/aupimo_median": math.nan,
        "test/aupimo_p10": math.nan,
        "test/pixel_f1_max": reference.f1_max(flat.tolist(), truth.tolist()),
        "test/aupro": reference.aupro(maps, masks, 0.3),
        "test/aupro_05": reference.aupro(maps, masks, 0.05),
        "test/aupro_defective_only": reference.aupro(maps, masks, 0.3, anomaly_only=True),
        "test/aupro_05_defective_only": reference.aupro(maps, masks, 0.05, anomaly_only=True),
        "test/miou": reference.mean_iou(maps, masks, 0.45),
        "test/miou_oracle": reference.best_mean_iou(maps, masks),
        "test/iou_pooled": ((maps > 0.45) & masks).sum() / ((maps > 0.45) | masks).sum(),
        "test/mask_false_alarm_rate": np.mean((maps[:4] > 0.45).any(axis=(1, 2))),
    }
    same({key: value for key, value in got.items() if "_ci_" not in key}, wanted)
    for key in ("image_auroc", "recall", "false_alarm_rate", "pixel_auroc", "pixel_ap", "aupro"):
        low, high = got[f"test/{key}_ci_low"], got[f"test/{key}_ci_high"]
        assert 0 <= low <= got[f"test/{key}"] + 2e-3
        assert got[f"test/{key}"] - 2e-3 <= high <= 1 + 1e-12


@pytest.mark.parametrize("size", [1, 5, 12])
def test_the_batch_size_changes_no_metric(size):
    scene = Scene()
    same(
        scene.fill(new(), size).compute(at(), scene.samples),
        scene.fill(new(), 7).compute(at(), scene.samples),
    )


def test_two_evaluations_give_identical_numbers():
    scene = Scene()
    first, second = (scene.fill(new()).compute(at(), scene.samples) for _ in range(2))
    same(first, second)


def test_maps_of_another_grid_are_resized_bilinearly_and_masks_by_nearest_neighbour():
    scene = Scene(side=24)
    evaluator = new(size=(16, 18))
    small = torch.nn.functional.avg_pool2d(scene.map[:, None], 3)[:, 0]  # (12, 8, 8)
    batch, prediction = scene.batch(range(12))
    evaluator.update(batch, prediction._replace(anomaly_map=small))
    got = evaluator.compute(at(), scene.samples)
    maps = resize_maps(small, (16, 18)).numpy()
    rows = ((np.arange(16) + 0.5) * 24 / 16).astype(int)
    columns = ((np.arange(18) + 0.5) * 24 / 18).astype(int)
    masks = scene.mask.numpy()[:, rows][:, :, columns]
    assert (resize_masks(scene.mask, (16, 18)).numpy() == masks).all()
    assert got["test/pixel_auroc"] == pytest.approx(
        referee.roc_auc_score(masks.ravel(), maps.ravel())
    )
    assert got["test/aupro"] == pytest.approx(reference.aupro(maps, masks, 0.3))
    rows = evaluator.per_image_rows()
    assert rows[3]["map_max"] == pytest.approx(float(small[3].max()))  # of the model's own map


def test_without_masks_the_image_metrics_remain_and_a_note_says_what_is_missing():
    scene = Scene()
    scene.mask[:] = False
    evaluator = scene.fill(new())
    got = evaluator.compute(at(), scene.samples)
    assert got["test/image_auroc"] == pytest.approx(
        reference.auroc(scene.score.tolist(), scene.label.tolist())
    )
    assert not [key for key in got if "pixel" in key or "aupro" in key or "iou" in key]
    assert evaluator.notes() == ["No usable masks: pixel metrics are not computed."]
    assert [curve.kind for curve in evaluator.curves()] == ["roc", "pr"]
    assert math.isnan(evaluator.per_image_rows()[5]["iou"])
    assert evaluator.oracle_threshold().oracle


def test_a_defective_image_without_a_mask_does_not_count_as_all_normal_pixels():
    scene = Scene()
    masked = [i for i in range(12) if i != 7]
    scene.mask[7] = False
    evaluator = scene.fill(new())
    got = evaluator.compute(at(), scene.samples)
    maps, masks = scene.map.numpy()[masked], scene.mask.numpy()[masked]
    assert got["test/aupro"] == pytest.approx(reference.aupro(maps, masks, 0.3))
    assert got["test/miou"] == pytest.approx(reference.mean_iou(maps, masks, 0.5))
    assert evaluator.notes() == ["1 image with a defect but no mask: left out of pixel metrics."]


def test_a_defect_too_small_for_the_grid_is_reported_not_scored_as_found():
    scene = Scene(side=24)
    scene.mask[5] = False
    scene.mask[5, 0, 0] = True  # nearest neighbour on 8x8 looks at pixels 1, 4, 7, ...
    evaluator = new(size=8)
    evaluator.update(*scene.batch(range(12)))
    evaluator.compute(at(), scene.samples)
    assert "1 image whose mask marks no pixel on the 8x8 grid" in evaluator.notes()[0]
    assert math.isnan(evaluator.per_image_rows()[5]["iou"])


def test_without_defective_images_only_false_alarms_are_measured():
    scene = Scene()
    evaluator = new()
    evaluator.update(*scene.batch([0, 1, 2, 3]))
    got = evaluator.compute(at(image=float(scene.score[:4].median())), scene.samples)
    assert math.isnan(got["test/image_auroc"])
    assert math.isnan(got["test/recall"])
    assert got["test/false_alarm_rate"] == 0.5
    assert got["test/false_alarm_rate_ci_low"] < 0.5 < got["test/false_alarm_rate_ci_high"]
    assert "test/image_auroc_ci_low" not in got
    assert "No defective test images" in evaluator.notes()[0]
    assert evaluator.curves() == []
    with pytest.raises(ConfigError, match="4 normal, 0 defective"):
        evaluator.oracle_threshold()


@pytest.mark.parametrize("which", [0, 6])
def test_a_single_image_gives_numbers_or_nan_but_no_error(which):
    scene = Scene()
    evaluator = new()
    evaluator.update(*scene.batch([which]))
    got = evaluator.compute(at(), scene.samples)
    assert math.isnan(got["test/image_auroc"])
    assert ("test/pixel_auroc" in got) == (which == 6)
    assert len(evaluator.per_image_rows()) == 1


def test_images_without_a_label_are_scored_but_change_no_metric():
    scene = Scene()
    known = scene.fill(new()).compute(at(), scene.samples)
    scene.label = torch.cat([scene.label, torch.tensor([-1, -1])])
    scene.mask = torch.cat([scene.mask, torch.zeros(2, GRID, GRID, dtype=torch.bool)])
    scene.map = torch.cat([scene.map, torch.full((2, GRID, GRID), 9.0)])
    scene.score = torch.cat([scene.score, torch.tensor([99.0, -99.0])])
    evaluator = new()
    evaluator.update(*scene.batch(range(14)))
    same(evaluator.compute(at(), scene.samples), known)
    rows = evaluator.per_image_rows()
    assert [row["decision"] for row in rows[12:]] == [True, False]
    assert evaluator.notes() == ["2 images without a label: scored, not evaluated."]


def test_only_unlabelled_images_is_a_clear_mistake():
    scene = Scene()
    scene.label[:] = -1
    with pytest.raises(DataError, match=r"src\.predict"):
        scene.fill(new()).compute(at(), scene.samples)


def test_a_normal_image_with_a_mask_is_left_out_of_pixel_metrics_and_mentioned():
    scene = Scene()
    scene.mask[0, 0, 0] = True
    evaluator = scene.fill(new())
    got = evaluator.compute(at(), scene.samples)
    maps, masks = scene.map.numpy()[1:], scene.mask.numpy()[1:]
    assert got["test/aupro"] == pytest.approx(reference.aupro(maps, masks, 0.3))
    assert "labelled normal but masked" in evaluator.notes()[0]


def test_scores_that_are_not_finite_stop_the_evaluation():
    scene = Scene()
    scene.score[3] = math.nan
    with pytest.raises(DataError, match="1 of 12 image scores"):
        new().update(*scene.batch(range(12)))
    scene = Scene()
    scene.map[2, 3, 3] = math.inf
    with pytest.raises(DataError, match="map values of image 2"):
        new().update(*scene.batch(range(12)))


def test_nfa_masks_and_alarms_are_the_methods_own():
    scene = Scene(with_mask=True)
    evaluator = scene.fill(new())
    threshold = Nfa().fit(None)
    got = evaluator.compute(threshold, scene.samples)
    detected = scene.own.numpy()
    masks = scene.mask.numpy()
    ious = [reference.image_iou(d, m) for d, m in zip(detected, masks, strict=True)]
    assert got["test/miou"] == pytest.approx(np.mean(ious))
    rows = evaluator.per_image_rows()
    assert [row["decision"] for row in rows] == detected.any(axis=(1, 2)).tolist()
    assert [row["iou"] for row in rows] == pytest.approx(ious)
    assert got["test/recall"] == detected[4:].any(axis=(1, 2)).mean()
    plain = Scene()
    with pytest.raises(ConfigError, match="model=uflow"):
        plain.fill(new()).compute(threshold, plain.samples)


def test_the_oracle_threshold_reaches_the_best_image_f1_and_pixel_f1():
    scene = Scene(seed=3)
    evaluator = scene.fill(new())
    threshold = evaluator.oracle_threshold()
    got = evaluator.compute(threshold, scene.samples)
    assert threshold.oracle
    assert got["test/f1"] == pytest.approx(got["test/image_f1_max"])
    pixels = decision_rates((scene.map > threshold.pixel).flatten(), scene.mask.flatten())
    assert pixels["test/f1"].item() == pytest.approx(got["test/pixel_f1_max"])


@pytest.mark.parametrize(("alpha", "share"), [(0.3, 0.0), (0.5, 0.25)])
def test_a_conformal_threshold_on_map_maxima_bounds_the_images_with_any_marked_pixel(alpha, share):
    scene = Scene()
    map_max = scene.map[:4].flatten(1).amax(1)
    threshold = Conformal(alpha).fit(NormalScores(scene.score[:4], map_max))
    got = scene.fill(new()).compute(threshold, scene.samples)
    assert got["test/mask_false_alarm_rate"] == share
    assert got["test/false_alarm_rate"] == share


def test_swapping_test_labels_changes_neither_scores_nor_decisions():
    scene = Scene()
    before = scene.fill(new())
    before.compute(at(), scene.samples)
    scene.label = 1 - scene.label
    after = scene.fill(new())
    after.compute(at(), scene.samples)
    pairs = zip(before.per_image_rows(), after.per_image_rows(), strict=True)
    assert all(a["score"] == b["score"] and a["decision"] == b["decision"] for a, b in pairs)


def test_curves_enclose_the_reported_areas():
    scene = Scene(seed=2)
    evaluator = scene.fill(new())
    got = evaluator.compute(at(), scene.samples)
    drawn = {curve.kind: curve for curve in evaluator.curves()}
    assert set(drawn) == {"roc", "pr", "pro"}
    assert drawn["roc"].area == got["test/image_auroc"]
    assert drawn["pr"].area == got["test/image_ap"]
    assert drawn["pro"].area == got["test/aupro"]
    assert drawn["pro"].limit == 0.3
    roc = drawn["roc"]
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(got["test/image_auroc"])
    points = list(zip(drawn["pro"].x, drawn["pro"].y, strict=True))
    assert reference.area_up_to(points, 0.3) == pytest.approx(got["test/aupro"], abs=5e-3)


def test_defect_recalls_carry_counts_and_intervals():
    scene = Scene()
    evaluator = scene.fill(new())
    evaluator.compute(at(image=0.9), scene.samples)
    rows = evaluator.defect_recalls(scene.samples)
    assert [row.defect for row in rows] == ["dent", "scratch"]
    assert [row.total for row in rows] == [3, 5]
    assert all(row.low <= row.found / row.total <= row.high for row in rows)


def test_the_config_builds_the_evaluator():
    cfg = OmegaConf.create(
        {
            "seed": 3,
            "evaluation": {
                "size": [16, 20], "memory_gb": 2.0, "bootstrap": 0, "aupro_limits": [0.3, 0.1],
                "whole_image": False, "masks": "nearest",
            },
        }
    )  # fmt: skip
    scene = Scene()
    evaluator = build_evaluator(cfg, geometry(12, None), scene.samples)
    assert evaluator.view.size == (16, 20)
    assert evaluator.limits == {"test/aupro": 0.3, "test/aupro_10": 0.1}
    got = scene.fill(evaluator).compute(at(), None)
    assert "test/pixel_auroc_ci_low" not in got
    assert not [key for key in got if key.startswith("test/recall/")]
    with pytest.raises(ConfigError, match="aupro_limits"):
        compose_checked("run", ["evaluation.aupro_limits=[0.3,30]"])


def test_histograms_for_comparing_runs_follow_the_image_index():
    scene = Scene()
    evaluator = new()
    evaluator.update(*scene.batch([11, 3, 5]))
    histograms = evaluator.pixel_histograms()
    assert histograms.image.tolist() == [3, 5, 11]
    assert histograms.defect.sum(axis=1).tolist() == scene.mask[[3, 5, 11]].sum((1, 2)).tolist()


def test_pixel_numbers_are_those_of_the_store():
    scene = Scene()
    evaluator, store = scene.fill(new()), PixelStore(1)
    for i in range(12):
        store.add(i, scene.map[i].numpy(), scene.mask[i].numpy())
    ranked = store.rank()
    area = overlap.area_under_overlap(ranked.regions, 0.3)
    assert evaluator.compute(at(), None)["test/aupro"] == area
