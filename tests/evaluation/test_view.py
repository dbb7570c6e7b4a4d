"""Pixel metrics of a cropped image: right values by hand, on a 4 x 4 image with a 2 x 2 centre."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from src.composing import compose_checked
from src.data.samples import Sample
from src.data.transforms import ImageTransform
from src.errors import ConfigError
from src.evaluation.evaluator import Evaluator
from src.evaluation.threshold import Nfa
from src.evaluation.view import View, pixel_convention, resize_maps
from src.result import Prediction, Threshold

CONFORMAL = Threshold(0.5, 0.5, "conformal", 0.1, 0.1, 9)
#: Maps of the centre: a defective image, a good one, and one whose defect is in the corner.
MAPS = torch.tensor([[[0.9, 0.1], [0.2, 0.3]], [[0.05, 0.15], [0.25, 0.35]], [[0.4] * 2] * 2])


def geometry(resize, crop):
    return ImageTransform(
        resize=resize, crop=crop, interpolation="bilinear", antialias=True,
        mean=[0.5] * 3, std=[0.5] * 3,
    )  # fmt: skip


@pytest.fixture
def samples(tmp_path):
    """Marked: pixel (1, 1), which is seen, and (0, 0), which is not; nothing; (3, 3)."""
    made = []
    for n, marked in enumerate([[(0, 0), (1, 1)], [], [(3, 3)]]):
        mask = np.zeros((4, 4), np.uint8)
        for place in marked:
            mask[place] = 255
        image, path = tmp_path / f"{n}.png", tmp_path / f"{n}_mask.png"
        Image.fromarray(mask).convert("RGB").save(image)
        Image.fromarray(mask).save(path)
        made.append(Sample(image, path if marked else None, int(bool(marked)), "spot", "test"))
    return made


def evaluated(samples, size, *, whole, rule=CONFORMAL):
    """An evaluator that has seen the three images."""
    transform = geometry(4, 2)
    view = View(size, transform, samples, whole_image=whole)
    evaluator = Evaluator(view, memory_gb=1, resamples=0, limits=[0.3], seed=0)
    masks = [
        torch.from_numpy(transform.mask(s.mask_path)) if s.mask_path else torch.zeros(2, 2).bool()
        for s in samples
    ]
    batch = {"mask": torch.stack(masks), "index": torch.arange(3)}
    batch["label"] = torch.tensor([s.label for s in samples])
    evaluator.update(batch, Prediction(MAPS.flatten(1).amax(1), MAPS, MAPS > 0.5))
    return evaluator, evaluator.compute(rule, samples)


def test_by_default_pixels_are_those_the_network_sees(samples):
    evaluator, got = evaluated(samples, 2, whole=False)
    assert got["test/pixel_auroc"] == 1.0  # .9 against seven normal pixels
    assert got["test/unseen_defect_pixels"] == pytest.approx(2 / 3)
    assert got["test/images_defective"] == 2
    (note,) = evaluator.notes()
    assert note.startswith("1 image with the whole defect outside the centre crop: left out of")
    assert f"{samples[2].image_path.parent.name}/2.png" in note


def test_over_the_whole_image_unseen_pixels_are_never_found(samples):
    evaluator, got = evaluated(samples, 4, whole=True)
    # Defective: .9 and two unseen. Normal: 11 seen below .9, 34 unseen that tie with the two.
    assert got["test/pixel_auroc"] == pytest.approx((45 + 2 * 34 / 2) / (3 * 45))
    assert got["test/unseen_defect_pixels"] == pytest.approx(2 / 3)
    # Above .5 lies one pixel: half of a defect, a clean good image, a missed defect.
    assert got["test/miou"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert evaluator.notes() == []


def test_regions_of_an_a_contrario_mask_do_not_reach_outside_the_view(samples):
    _, got = evaluated(samples, 4, whole=True, rule=Nfa().fit(None))
    assert got["test/miou"] == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_without_a_crop_there_is_nothing_to_choose(samples):
    view = View(4, geometry(4, None), samples, whole_image=True)
    assert np.array_equal(view.maps([0, 1, 2], MAPS), resize_maps(MAPS, (4, 4)))
    assert view.defect_pixels(0) is None  # no file is read for it


def test_eroded_masks_keep_what_bilinear_resizing_leaves_whole():
    mask = np.zeros((8, 8), bool)
    mask[2:, 2:] = True
    # Halving weighs the pixels 2 i - 1 .. 2 i + 2: output 1 touches pixel 1, 2 and 3 do not.
    eroded, nearest = (geometry(4, None).mask(mask, rule=r) for r in ("eroded", "nearest"))
    assert np.flatnonzero(eroded.any(axis=0)).tolist() == [2, 3]
    assert np.flatnonzero(nearest.any(axis=0)).tolist() == [1, 2, 3]
    assert (eroded.sum(), nearest.sum()) == (4, 9)
    assert geometry(4, 2).mask(mask, rule="eroded").tolist() == [[False, False], [False, True]]
    assert geometry(8, None).mask(mask, rule="eroded").sum() == 36  # nothing is resized


def test_an_unknown_rule_for_masks_names_the_nearest():
    with pytest.raises(ConfigError) as caught:
        compose_checked("run", ["evaluation.masks=erode"])
    assert caught.value.do == "evaluation.masks=eroded"


@pytest.mark.parametrize(
    ("resize", "crop", "whole", "words"),
    [
        (256, 224, False, "over the centre 224x224 after resizing to a shorter side of 256, on a"),
        ([256, 300], 224, True, "over the whole image (the network sees the centre 224x224 after "
         "resizing to 256x300; the rest counts as never found), on a"),
        ([256, 256], None, True, "over the whole image, on a 64x64 grid, masks by nearest"),
    ],
)  # fmt: skip
def test_the_convention_is_one_line(resize, crop, whole, words):
    options = {"whole_image": whole, "masks": "nearest", "size": 64}
    said = pixel_convention({"transform": {"resize": resize, "crop": crop}, "evaluation": options})
    assert words in said


# --- evaluation.size=original -------------------------------------------------------------------


def test_at_the_original_size_maps_are_resized_and_masks_are_what_they_are(tmp_path):
    rng = np.random.default_rng(0)
    sizes, samples = [(7, 9), (12, 5)], []
    for n, size in enumerate(sizes):
        mask = rng.random(size) < 0.3
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / f"{n}.png")
        Image.fromarray(mask).save(tmp_path / f"{n}_mask.png")
        samples.append(Sample(tmp_path / f"{n}.png", tmp_path / f"{n}_mask.png", 1, "spot", "test"))
    samples.append(Sample(tmp_path / "0.png", None, 0, "good", "test"))
    view = View("original", geometry([4, 4], None), samples)
    maps = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = view.maps([0, 1, 2], maps)
    masks = view.masks([0, 1, 2], torch.zeros(3, 4, 4, dtype=torch.bool))
    for n, size in enumerate([*sizes, sizes[0]]):
        assert found[n] == pytest.approx(resize_maps(maps[n : n + 1], size)[0].numpy(), abs=1e-6)
        assert masks[n].shape == size
    for n in range(2):
        assert np.array_equal(masks[n], np.asarray(Image.open(samples[n].mask_path)) > 0)
    assert not masks[2].any()


def test_at_the_original_size_pixels_are_those_the_network_sees_or_all(samples):
    _, seen = evaluated(samples, "original", whole=False)
    _, grid = evaluated(samples, 2, whole=False)  # a pixel of the crop is one of the image
    assert seen == pytest.approx(grid, nan_ok=True)
    _, whole = evaluated(samples, "original", whole=True)
    _, grid = evaluated(samples, 4, whole=True)
    assert whole == pytest.approx(grid, nan_ok=True)


def test_a_mask_of_another_size_than_its_image_is_enlarged(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    Image.fromarray(np.eye(3, 4, dtype=bool)).save(tmp_path / "m.png")
    sample = Sample(tmp_path / "a.png", tmp_path / "m.png", 1, "x", "test")
    view = View("original", geometry([4, 4], None), [sample])
    (mask,) = view.masks([0], torch.zeros(1, 4, 4, dtype=torch.bool))
    assert np.array_equal(mask, np.kron(np.eye(3, 4), np.ones((2, 2))) > 0)


def test_the_line_of_tables_says_that_pixels_are_the_original_ones():
    cfg = {"evaluation": {"size": "original"}, "transform": {"resize": [8, 8], "crop": None}}
    assert pixel_convention(cfg).endswith("on the pixels of the original images and masks")


# --- saturation areas ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["original", 8, 4])
def test_saturation_areas_of_the_mask_files_reach_auspro(tmp_path, size):
    """A missing object of 16 pixels that may lie in two places, and a dent, found in part."""
    for name, value, rows, columns in (("000", 1, (0, 4), (0, 8)), ("001", 2, (6, 8), (0, 4))):
        mask = np.zeros((8, 8), np.uint8)
        mask[slice(*rows), slice(*columns)] = value
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    kinds = [
        {"pixel_value": 1, "saturation_threshold": 16, "relative_saturation": False},
        {"pixel_value": 2, "saturation_threshold": 1.0, "relative_saturation": True},
    ]
    (tmp_path / "defects_config.json").write_text(json.dumps(kinds))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    bad = Sample(tmp_path / "a.png", tmp_path / "masks", 1, "x", "test",
                 saturation=tmp_path / "defects_config.json")  # fmt: skip
    samples = [bad, Sample(tmp_path / "a.png", None, 0, "good", "test")]
    anomaly_map = torch.zeros(2, 8, 8)
    anomaly_map[0, 0:4, 0:4] = 1  # one of the two places
    anomaly_map[0, 6:8, 0:2] = 1  # half of the dent
    transform = geometry([8, 8], None)
    evaluator = Evaluator(
        View(size, transform, samples), memory_gb=1, resamples=0, limits=[0.3], seed=0
    )
    mask = torch.from_numpy(transform.mask(tmp_path / "masks"))
    batch = {"index": torch.arange(2), "label": torch.tensor([1, 0]),
             "mask": torch.stack([mask, torch.zeros_like(mask)])}  # fmt: skip
    evaluator.update(batch, Prediction(torch.tensor([1.0, 0.0]), anomaly_map))
    got = evaluator.compute(CONFORMAL, samples)
    # Above every normal pixel: 1 and 1/2 of the regions; the rest comes with all normal pixels.
    assert got["test/auspro"] == pytest.approx(3 / 4 + 1 / 4 * 0.3 / 2, abs=0.02)
    assert got["test/aupro"] == pytest.approx(1 / 2 + 1 / 2 * 0.3 / 2, abs=0.02)
