from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from sklearn import metrics as referee
from torch.multiprocessing.spawn import spawn
from torchmetrics import MetricCollection

from src.data.images import Region
from src.evaluation.torch_metrics import (
    AUPIMO,
    AUPRO,
    AUsPRO,
    BalancedAccuracy,
    ImageAP,
    ImageAUROC,
    ImageF1,
    ImageF1Max,
    MeanIoU,
    PixelAP,
    PixelAUROC,
    PixelF1,
    PixelF1Max,
)
from tests import reference


def of_images():
    decided = [ImageF1(9.2), BalancedAccuracy(9.2)]
    return MetricCollection([ImageAUROC(), ImageAP(), ImageF1Max(), *decided])


def of_pixels():
    best = MeanIoU(None)
    return MetricCollection(
        {
            "auroc": PixelAUROC(), "ap": PixelAP(), "f1": PixelF1Max(), "aupro": AUPRO(),
            "miou": MeanIoU(0.45), "best": best, "pimo": AUPIMO((0.01, 0.2)), "spro": AUsPRO(),
            "f1_at": PixelF1(0.45),
        }
    )  # fmt: skip


def draw(images=7, side=10):
    rng = np.random.default_rng(0)
    masks = torch.zeros(images, side, side, dtype=torch.bool)
    masks[2, 1:4, 1:5], masks[4, 6:, 6:], masks[5, :2, :2], masks[5, 7:, 1:3] = (True,) * 4
    noise = torch.tensor(rng.normal(size=masks.shape), dtype=torch.float32).round(decimals=1)
    maps = noise * 4 + masks * 3  # far outside 0..1, with ties
    return maps, masks, maps.flatten(1).amax(1), masks.flatten(1).any(1).long()


def test_image_metrics_are_those_of_scikit_learn():
    _, _, scores, labels = draw()
    metrics = of_images()
    for rows in (slice(0, 3), slice(3, 7)):
        metrics.update(scores[rows], labels[rows])
    got = metrics.compute()
    assert got["ImageAUROC"].item() == pytest.approx(referee.roc_auc_score(labels, scores))
    assert got["ImageAP"].item() == pytest.approx(referee.average_precision_score(labels, scores))
    best = reference.f1_max(scores.tolist(), labels.tolist())
    assert got["ImageF1Max"].item() == pytest.approx(best)
    alarms = scores > 9.2
    assert 0 < referee.f1_score(labels, alarms) < best
    assert got["ImageF1"].item() == pytest.approx(referee.f1_score(labels, alarms))
    balanced = referee.balanced_accuracy_score(labels, alarms)
    assert got["BalancedAccuracy"].item() == pytest.approx(balanced)


def test_pixel_metrics_are_those_of_scikit_learn_and_of_the_slow_twins():
    maps, masks, _, _ = draw()
    metrics = of_pixels()
    for rows in (slice(0, 3), slice(3, 7)):
        metrics.update(maps[rows], masks[rows])
    got = {name: value.item() for name, value in metrics.compute().items()}
    truth, flat = masks.numpy().ravel(), maps.numpy().ravel()
    assert got == pytest.approx(
        {
            "auroc": referee.roc_auc_score(truth, flat),
            "ap": referee.average_precision_score(truth, flat),
            "f1": reference.f1_max(flat.tolist(), truth.tolist()),
            "aupro": reference.aupro(maps.numpy(), masks.numpy(), 0.3),
            "miou": reference.mean_iou(maps.numpy(), masks.numpy(), 0.45),
            "best": reference.best_mean_iou(maps.numpy(), masks.numpy()),
            "pimo": np.nanmean(reference.aupimo(maps.numpy(), masks.numpy(), 0.01, 0.2)),
            "f1_at": referee.f1_score(truth, flat > 0.45),
            "spro": reference.aupro(maps.numpy(), masks.numpy(), 0.3),  # no saturation areas
        }
    )


def test_saturation_areas_come_with_each_batch():
    maps, masks, _, _ = draw()
    regions = [[Region(mask.numpy(), 3.5)] if mask.any() else [] for mask in masks]
    metric = AUsPRO(0.2)
    for rows in (slice(0, 3), slice(3, 7)):
        metric.update(maps[rows], masks[rows], regions[rows])
    points = reference.spro_curve(maps.numpy(), masks.numpy(), regions)
    assert metric.compute().item() == pytest.approx(reference.area_up_to(points, 0.2), abs=1e-7)


def test_maps_of_several_sizes_count_together():
    maps, masks, _, _ = draw()
    small, marked = maps[:, :6, :8], masks[:, :6, :8]
    metric = PixelAUROC()
    metric.update(maps, masks)
    metric.update(small, marked)
    truth, flat = (
        torch.cat([a.flatten(), b.flatten()]) for a, b in ((masks, marked), (maps, small))
    )
    assert metric.compute().item() == pytest.approx(referee.roc_auc_score(truth, flat))
    with pytest.raises(ValueError, match="differ"):
        metric.update(maps, marked)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_images_or_with_one_class_the_numbers_are_undefined():
    for name, value in (of_images().compute() | of_pixels().compute()).items():
        assert math.isnan(value), name
    metrics = of_images()
    metrics.update(torch.tensor([1.0, 2.0]), torch.tensor([0, 0]))
    assert all(math.isnan(value) for value in metrics.compute().values())


class Validated(pl.LightningModule):
    """Logs metrics as Lightning's users do."""

    def __init__(self):
        super().__init__()
        self.scores = of_images()

    def validation_step(self, batch, batch_idx):
        self.scores.update(*batch)
        self.log_dict(self.scores)


def test_a_lightning_module_logs_them_once_an_epoch(tmp_path):
    _, _, scores, labels = draw()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(scores, labels), 2)
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    (logged,) = trainer.validate(Validated(), loader, verbose=False)
    assert logged["ImageAUROC"] == pytest.approx(referee.roc_auc_score(labels, scores))


def _share(rank: int, folder: Path) -> None:
    """One of three processes: the first has five images, the second two, the last none."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=3
    )
    maps, masks, scores, labels = (
        rows[[slice(0, 5), slice(5, 7), slice(7, 7)][rank]] for rows in draw()
    )
    images, pixels = of_images(), of_pixels()
    if len(maps):
        images.update(scores, labels)
        pixels.update(maps, masks)
    torch.save(images.compute() | pixels.compute(), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_several_processes_give_the_numbers_of_one_also_when_one_saw_nothing(tmp_path):
    maps, masks, scores, labels = draw()
    images, pixels = of_images(), of_pixels()
    images.update(scores, labels)
    pixels.update(maps, masks)
    alone = images.compute() | pixels.compute()
    spawn(_share, (tmp_path,), nprocs=3)
    for rank in range(3):
        assert torch.load(tmp_path / f"{rank}.pt") == alone
