from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from src.composing import CONF, compose_checked
from src.data.datamodule import AnomalyDataModule, worker_count
from src.data.images import read_image, read_mask
from src.data.record import list_samples
from src.data.samples import Found
from src.errors import ConfigError, DataError

BASE = OmegaConf.to_container(OmegaConf.load(CONF / "base" / "data.yaml"))


def config(root, **data):
    return OmegaConf.create(
        {
            "seed": 0,
            "protocol": "honest",
            "data": BASE
            | {
                "name": "mvtec",
                "category": "bolt",
                "root": str(root),
                "batch_size": 4,
                "index": {"_target_": "src.data.mvtec.index_mvtec", "_partial_": True},
            }
            | data,
            "transform": {
                "resize": 24,
                "crop": 16,
                "interpolation": "bilinear",
                "antialias": True,
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            },
            "calibration": {"fraction": 0.25, "at_least": 2, "beyond_shots": False},
            "validation": {"fraction": 0.0},
            "hardware": {"num_workers": 0},
        }
    )


def joined(loader):
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


@pytest.mark.parametrize(("cache", "workers"), [("memory", 0), ("none", 0), ("none", 2)])
def test_a_batch_holds_what_the_contract_says(mvtec_root, cache, workers):
    cfg = config(mvtec_root, cache=cache)
    cfg.hardware.num_workers = workers
    data = AnomalyDataModule(cfg)
    data.setup()
    got = joined(data.test_dataloader())
    assert got["image"].dtype == torch.float32
    assert got["mask"].dtype == torch.bool
    assert got["label"].dtype == got["index"].dtype == torch.int64
    assert [data.samples[i] for i in got["index"]] == data.test_samples
    for image, mask, label, index in zip(*got.values(), strict=True):
        sample = data.samples[index]
        assert torch.equal(image, data.transform(read_image(sample.image_path)))
        assert label == sample.label
        truth = np.zeros((16, 16), bool)
        if sample.mask_path:
            truth = data.transform.mask(read_mask(sample.mask_path))
            assert truth.any()
        assert np.array_equal(mask.numpy(), truth)


def test_splits_are_disjoint_complete_and_normal_where_they_must_be(mvtec_root):
    data = AnomalyDataModule(config(mvtec_root))
    data.setup()
    assert (len(data.train_samples), len(data.calibration_samples)) == (9, 3)
    parts = data.train_samples + data.calibration_samples + data.test_samples
    assert data.samples == parts
    assert len({s.image_path for s in parts}) == len(parts) == 21
    assert all(s.label == 0 for s in data.train_samples + data.calibration_samples)
    assert joined(data.calibration_dataloader())["index"].tolist() == [9, 10, 11]


def test_training_is_shuffled_by_the_seed_and_ordered_training_is_not(mvtec_root):
    def orders(seed):
        cfg = config(mvtec_root)
        cfg.seed = seed
        data = AnomalyDataModule(cfg)
        loader = data.train_dataloader()
        return [[data.samples[i].image_path for i in joined(loader)["index"]] for _ in range(2)]

    first, second = orders(0)
    assert first != second  # each epoch anew
    assert sorted(first) == sorted(second)
    assert orders(0) == [first, second]
    assert orders(1)[0] != first
    ordered = joined(AnomalyDataModule(config(mvtec_root)).ordered_train_dataloader())["index"]
    assert ordered.tolist() == list(range(9))


def test_a_single_pass_method_sees_each_image_once_in_order(mvtec_root):
    cfg = config(mvtec_root, drop_last=True, samples_per_epoch=50)
    cfg.model = {"_target_": "src.models.patchcore.module.PatchCore"}
    loader = AnomalyDataModule(cfg).train_dataloader()
    assert joined(loader)["index"].tolist() == list(range(9))


def test_samples_per_epoch_repeats_whole_permutations(mvtec_root):
    loader = AnomalyDataModule(config(mvtec_root, samples_per_epoch=20)).train_dataloader()
    seen = joined(loader)["index"].tolist()
    assert len(seen) == 20
    assert sorted(seen[:9]) == sorted(seen[9:18]) == list(range(9))


def test_drop_last_drops_only_an_incomplete_batch_and_never_the_only_one(mvtec_root):
    def sizes(batch_size):
        cfg = config(mvtec_root, drop_last=True, batch_size=batch_size)
        return [len(b["label"]) for b in AnomalyDataModule(cfg).train_dataloader()]

    assert sizes(4) == [4, 4]
    assert sizes(3) == [3, 3, 3]
    assert sizes(64) == [9]


def test_validation_has_normals_of_its_own_unless_the_paper_protocol_is_chosen(mvtec_root):
    cfg = config(mvtec_root)
    cfg.validation = {"fraction": 0.6}
    data = AnomalyDataModule(cfg)
    assert joined(data.val_dataloader())["index"].tolist() == [7, 8, 9, 10, 11]
    assert joined(data.calibration_dataloader())["index"].tolist() == [4, 5, 6]
    assert [sample.split for sample in data.samples[4:12]] == 3 * ["calibration"] + 5 * [
        "validation"
    ]
    assert len({sample.image_path for sample in data.samples}) == 21
    cfg.protocol = "paper"
    assert len(joined(AnomalyDataModule(cfg).val_dataloader())["label"]) == 9
    cfg.protocol, cfg.calibration.fraction, cfg.validation.fraction = "honest", 0.0, 0.0
    data = AnomalyDataModule(cfg)
    assert data.val_dataloader() == []
    assert list(data.calibration_dataloader()) == []


class Counter(pl.LightningModule):
    """Counts what a Trainer feeds it."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.seen = {"train": [], "val": [], "predict": []}

    def training_step(self, batch, _):
        self.seen["train"] += batch["index"].tolist()

    def validation_step(self, batch, _):
        self.seen["val"] += batch["index"].tolist()

    def predict_step(self, batch, _):
        self.seen["predict"] += batch["index"].tolist()

    def configure_optimizers(self):
        return None


@pytest.mark.parametrize(("fraction", "workers"), [(0.25, 0), (0.0, 0), (0.25, 1)])
def test_a_lightning_trainer_runs_every_loader(mvtec_root, tmp_path, fraction, workers):
    cfg = config(mvtec_root, cache="none" if workers else "auto")
    cfg.calibration.fraction, cfg.hardware.num_workers = fraction, workers
    cfg.validation = {"fraction": 0.6 if fraction else 0.0}
    data, model = AnomalyDataModule(cfg), Counter()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    trainer.predict(model, datamodule=data)
    train = 4 if fraction else 12
    assert sorted(model.seen["train"]) == sorted(list(range(train)) * 2)
    assert model.seen["val"] == ([7, 8, 9, 10, 11] * 2 if fraction else [])
    assert model.seen["predict"] == list(range(12, 21))


@pytest.mark.parametrize(("cache", "workers"), [("none", 0), ("none", 2), ("memory", 0)])
def test_a_broken_image_is_named_by_a_data_error_even_from_a_worker(mvtec_root, cache, workers):
    broken = mvtec_root / "bolt/test/hole/001.png"
    broken.write_bytes(broken.read_bytes()[:300])
    cfg = config(mvtec_root, cache=cache)
    cfg.hardware.num_workers = workers
    data = AnomalyDataModule(cfg)
    assert len(joined(data.ordered_train_dataloader())["label"]) == 9
    with pytest.raises(DataError, match=r"hole/001\.png") as caught:
        list(data.test_dataloader())
    assert "export or copy" in caught.value.do
    assert pickle.loads(pickle.dumps(caught.value)).found == caught.value.found


def test_a_mask_of_another_shape_is_refused_and_a_coarser_one_accepted(mvtec_root, mask):
    mask(mvtec_root / "bolt/ground_truth/hole/000_mask.png", size=64)
    data = AnomalyDataModule(config(mvtec_root))
    assert joined(data.test_dataloader())["mask"][4:].flatten(1).any(1).all()
    from PIL import Image

    Image.new("L", (32, 20)).save(mvtec_root / "bolt/ground_truth/hole/000_mask.png")
    with pytest.raises(DataError, match=r"000_mask.*\n.*mask 32 x 20, image 32 x 32"):
        list(AnomalyDataModule(config(mvtec_root)).test_dataloader())


def test_limits_shrink_the_sets_and_keep_both_classes(mvtec_root):
    data = AnomalyDataModule(config(mvtec_root, shots=8, limit_test=3))
    data.setup()
    assert len(data.train_samples) + len(data.calibration_samples) == 8
    assert {s.label for s in data.test_samples} == {0, 1}
    assert len(data.test_samples) == 3


def test_the_fingerprint_ignores_the_place_and_notices_any_changed_file(mvtec_root, tmp_path):
    def of(root):
        data = AnomalyDataModule(config(root))
        data.setup()
        return data.record.fingerprint

    before = of(mvtec_root)
    moved = mvtec_root.rename(tmp_path / "elsewhere")
    assert of(moved) == before
    image = moved / "bolt/ground_truth/hole/000_mask.png"
    image.write_bytes(image.read_bytes() + b"\0")
    assert of(moved) != before


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("cache", "memroy", "memory"), ("batch_size", 0, "at least 1"), ("bit_depth", 40, "to 32")],
)
def test_wrong_values_are_refused_with_the_right_ones(key, value, words):
    with pytest.raises(ConfigError, match=words):
        compose_checked("run", [f"data.{key}={value}"])


def test_a_defective_image_among_the_training_images_is_refused(mvtec_root):
    cfg = config(mvtec_root)
    listed = list_samples(cfg.data)
    data = AnomalyDataModule(cfg, Found([replace(listed[0], label=1), *listed[1:]]))
    with pytest.raises(DataError, match="1 of them defective"):
        data.setup()


def test_auto_workers_are_at_least_zero_and_numbers_are_taken_as_given():
    assert worker_count(3) == 3
    assert 0 <= worker_count("auto") <= 8
    assert worker_count(None) == worker_count("auto")
