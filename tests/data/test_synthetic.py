from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from scipy.ndimage import binary_dilation, uniform_filter

from src.composing import compose, compose_checked
from src.data import synthetic
from src.data.datamodule import AnomalyDataModule
from src.data.drawing import PARTS
from src.data.images import open_rgb, read_image, read_mask
from src.data.synthetic import (
    DEFECTS,
    draw_pair,
    draw_scene,
    index_synthetic,
    prepare_synthetic,
    recipe_folder,
)
from src.data.transforms import ImageTransform
from src.errors import ConfigError, DataError

SMALL = {"size": 64, "train": 3, "test_normal": 2, "test_defective": 7, "seed": 0}


def auroc(label, score):
    """Share of (defective, normal) pairs in the right order, ties half."""
    pairs = np.subtract.outer(score[label == 1], score[label == 0])
    return ((pairs > 0) + 0.5 * (pairs == 0)).mean()


def pixel_statistics(train, test):
    """Scores of untrained detectors: per-pixel mean and deviation, and global statistics."""
    mean, spread = train.mean(0), train.std(0) + 1 / 255
    z = np.abs((test - mean) / spread).max(-1)
    scores = {
        "largest deviation": z.max((1, 2)),
        "mean deviation": z.mean((1, 2)),
        "upper deviations": np.quantile(z.reshape(len(z), -1), 0.999, axis=1),
        "largest blurred deviation": np.array([uniform_filter(m, 9).max() for m in z]),
    }
    for name, describe in {
        "global mean": lambda x: x.mean((1, 2)),
        "global variance": lambda x: x.var((1, 2)),
        "histogram": lambda x: np.stack(
            [np.histogram(i[..., c], 32, (0, 1))[0] for i in x for c in range(3)]
        ).reshape(len(x), -1),
    }.items():
        ours, theirs = describe(train).astype(float), describe(test).astype(float)
        scores[name] = np.abs((theirs - ours.mean(0)) / (ours.std(0) + 1e-3)).mean(1)
        scores[f"nearest {name}"] = ((theirs[:, None] - ours) ** 2).sum(-1).min(1)
    return scores


def loaded(root, category, recipe):
    prepare_synthetic(root, category, recipe=recipe)
    samples = index_synthetic(root, category, recipe=recipe)
    train = [s for s in samples if s.split == "train"]
    test = [s for s in samples if s.split == "test"]
    return train, test, np.array([s.label for s in test])


def pixels(samples):
    return np.stack([read_image(s.image_path) for s in samples]) / 255.0


def test_pixel_statistics_do_not_find_the_defects(tmp_path):
    recipe = {"size": 96, "train": 24, "test_normal": 18, "test_defective": 24, "seed": 0}
    found = {}
    for category in PARTS:
        train, test, label = loaded(tmp_path, category, recipe)
        for name, score in pixel_statistics(pixels(train), pixels(test)).items():
            found.setdefault(name, []).append(auroc(label, score))
    mean = {name: np.mean(values) for name, values in found.items()}
    assert max(mean.values()) < 0.7, mean  # 42 images a category: single ones scatter by 0.08
    assert np.mean(list(found.values())) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("category", list(PARTS))
def test_no_pixel_statistic_reaches_075_on_any_full_category(tmp_path, category):
    recipe = {"size": 256, "train": 60, "test_normal": 60, "test_defective": 90, "seed": 0}
    train, test, label = loaded(tmp_path, category, recipe)
    scores = pixel_statistics(pixels(train), pixels(test))
    found = {name: auroc(label, score) for name, score in scores.items()}
    assert max(found.values()) < 0.75, found


def test_patch_features_of_a_pretrained_network_find_the_defects(tmp_path):
    """A bare nearest-neighbour patch distance: what statistics cannot do is possible."""
    from src.backbones.features import FeatureExtractor

    recipe = {"size": 256, "train": 30, "test_normal": 12, "test_defective": 18, "seed": 0}
    train, test, label = loaded(tmp_path, "gear", recipe)
    half = [0.5, 0.5, 0.5]
    transform = ImageTransform(
        resize=224, crop=None, interpolation="bilinear", antialias=True, mean=half, std=half
    )
    layers = ["blocks.2", "blocks.4"]  # strides 8 and 16
    network = FeatureExtractor(
        "tf_efficientnet_lite0", layers, "auto", (224, 224), None, "float32", True
    )

    def patches(samples):
        images = torch.stack([transform(open_rgb(s.image_path)) for s in samples])
        fine, coarse = (F.avg_pool2d(m, 3, 1, 1) for m in network(images))
        both = torch.cat([fine, F.interpolate(coarse, fine.shape[-2:], mode="bilinear")], dim=1)
        return both.flatten(2).transpose(1, 2)  # (n, P, D)

    bank = patches(train).flatten(0, 1)[::5]  # 784 patches an image: every position is kept
    score = torch.stack([torch.cdist(p, bank).min(1)[0].max() for p in patches(test)])
    assert auroc(label, score.numpy()) > 0.9


@pytest.mark.parametrize("category", list(PARTS))
def test_a_mask_covers_what_the_defect_changed_and_little_else(category):
    """Before light falls on it, the defective specimen equals its good twin outside the mask."""
    for defect in DEFECTS:
        good = PARTS[category](96, np.random.default_rng(5), None)
        bad, mask = draw_scene(PARTS[category], defect, 96, 5)
        change = np.abs(bad.albedo - good.albedo).max(axis=2)
        assert 6 <= mask.sum() < 96 * 96 / 4, defect
        around = binary_dilation(mask, iterations=4)
        assert change[~around].max() < 0.2, defect
        assert change[mask].mean() > 5 * change[~around].mean(), defect


def test_images_are_the_same_for_a_seed_and_differ_between_seeds():
    first, again = (draw_pair("gear", "stain", 64, 3) for _ in range(2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], draw_pair("gear", "stain", 64, 4)[0])


def test_a_category_lies_on_disk_like_mvtec_with_every_defect(tmp_path):
    train, test, label = loaded(tmp_path, "plate", SMALL)
    assert (len(train), (label == 0).sum(), (label == 1).sum()) == (3, 2, 7)
    assert {s.defect for s in test} == {"good", *DEFECTS}
    for sample in test:
        assert read_image(sample.image_path).shape == (64, 64, 3)
        if sample.label:
            assert read_mask(sample.mask_path).any()
    record = json.loads((recipe_folder(tmp_path, SMALL) /
                         "plate/generated.json").read_text())  # fmt: skip
    assert record == {"version": synthetic.VERSION, "category": "plate", **SMALL}


def test_another_recipe_or_version_gets_another_folder(tmp_path, monkeypatch):
    folders = {recipe_folder(tmp_path, SMALL | change)
               for change in ({}, {"seed": 1}, {"train": 4}, {"size": 65})}  # fmt: skip
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    folders.add(recipe_folder(tmp_path, SMALL))
    assert len(folders) == 5


def test_an_interrupted_generation_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    saved = []

    def stop_after_four(pixels, path, save=synthetic._save):
        saved.append(path)
        if len(saved) == 5:
            raise KeyboardInterrupt
        save(pixels, path)

    monkeypatch.setattr(synthetic, "_save", stop_after_four)
    with pytest.raises(KeyboardInterrupt):
        prepare_synthetic(tmp_path, "plate", recipe=SMALL)
    assert not [p for p in tmp_path.rglob("*") if p.is_dir() and "plate" in p.name]
    with pytest.raises(DataError):
        index_synthetic(tmp_path, "plate", recipe=SMALL)
    prepare_synthetic(tmp_path, "plate", recipe=SMALL)
    assert len(index_synthetic(tmp_path, "plate", recipe=SMALL)) == 12


def test_two_that_ask_at_once_generate_once(tmp_path, monkeypatch):
    written = []

    def counted(folder, category, recipe, write=synthetic._write_category):
        written.append(category)
        write(folder, category, recipe)

    monkeypatch.setattr(synthetic, "_write_category", counted)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda _: prepare_synthetic(tmp_path, "gear", recipe=SMALL), range(3)))
    assert written == ["gear"]


@pytest.mark.parametrize("change", [{"size": 10}, {"train": 0}, {"seed": -1}, {"size": 64.5}])
def test_recipes_that_cannot_be_drawn_are_refused(change):
    [(key, value)] = change.items()
    with pytest.raises(ConfigError, match=key):
        compose_checked("run", ["data=synthetic", f"data.synthetic.{key}={value}"])


def test_an_unknown_product_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(DataError, match="'gear'"):
        prepare_synthetic(tmp_path, "gaer", recipe=SMALL)


def test_the_config_builds_a_data_module_that_generates_on_first_use(tmp_path):
    words = [f"data.synthetic.{key}={value}" for key, value in SMALL.items()]
    size = ["transform.resize=64", "transform.crop=null"]
    cfg = compose("run", ["data=synthetic", f"data.root={tmp_path}", *size, *words])
    data = AnomalyDataModule(cfg)
    data.prepare_data()
    data.setup()
    assert data.category in PARTS
    assert sorted(OmegaConf.to_container(cfg.data.categories)) == sorted(PARTS)
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape == (8, 3, 64, 64)
    assert all(s.mask_path for s in data.test_samples if s.label)
