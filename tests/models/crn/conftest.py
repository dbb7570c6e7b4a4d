from __future__ import annotations

from pathlib import Path

import hydra
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from src.models.build import build_model

CONF = Path(__file__).parents[3] / "conf"
SIDE = 32


def compose(*overrides):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose("run", overrides=["data=synthetic", "model=crn", *overrides])


class ToyData(pl.LightningDataModule):
    """Stripes; defective ones have a bright square. Batches as the real data module gives them."""

    def __init__(self, held_out=4, batch_size=4):
        super().__init__()
        self.batch_size = batch_size
        generator = torch.Generator().manual_seed(0)
        stripes = torch.sin(torch.arange(SIDE) * 0.8).expand(3, SIDE, SIDE)
        images = stripes + 0.2 * torch.rand(24, 3, SIDE, SIDE, generator=generator)
        images = images.clamp(-1, 1)
        images[18:, :, 8:20, 8:20] = 1.0
        labels = torch.tensor([0] * 18 + [1] * 6)
        rows = [
            {"image": images[i], "label": labels[i], "index": torch.tensor(i)} for i in range(24)
        ]
        self.train, self.held_out, self.test = rows[:8], rows[8 : 8 + held_out], rows[12:]

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.batch_size)

    def ordered_train_dataloader(self):
        return self.train_dataloader()

    def calibration_dataloader(self):
        return DataLoader(self.held_out, batch_size=3)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=5)


@pytest.fixture
def crn():
    """Builds a narrow CRN from the real config: crn("model.score=rec")."""

    def build(*overrides):
        cfg = compose("model.base_channels=4", "model.num_units=3", *overrides)
        return build_model(cfg, (SIDE, SIDE))

    return build


@pytest.fixture
def toy():
    return ToyData


@pytest.fixture
def fit(tmp_path):
    """Trains for some minibatches and returns the trainer."""

    def run(model, data, steps, checkpoint=None, logger=False, callbacks=None, **options):
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=steps, max_steps=steps, logger=logger,
            enable_checkpointing=bool(callbacks), callbacks=callbacks, default_root_dir=tmp_path,
            enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, **options,
        )  # fmt: skip
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
        return trainer

    return run


@pytest.fixture
def composed():
    return compose
