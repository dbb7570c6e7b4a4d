"""The rule by which trained methods keep their weights and stop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from src.models.trained import KINDS, OBSTRUCTION, TrainedModule, auroc, obstruct, standard_error
from src.result import Prediction

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Plan(TrainedModule):
    """Finds what is wrong as clearly as `plan` says of each epoch; learns nothing."""

    def __init__(self, plan, patience=None):
        super().__init__()
        self.options = SimpleNamespace(check_every=1, patience=patience)
        self.plan = plan
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("epoch", torch.tensor(-1))
        self.settled = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_train_epoch_start(self):
        self.epoch.fill_(self.current_epoch)

    def training_step(self, batch, batch_idx):
        return self.weight + 1.0

    def settle(self, loader):
        self.settled.append((self.training, sum(len(batch["image"]) for batch in loader)))

    def forward(self, image):
        """Good images (all of one value) score 0; of the others the planned share scores 1."""
        wrong = image.flatten(1).std(dim=1) > 1e-6
        share = self.plan[int(self.epoch)]
        seen = torch.arange(len(image)) < round(share * len(image))
        return Prediction(torch.where(wrong & seen, 1.0, 0.0), image[:, 0])


class Data(pl.LightningDataModule):
    """40 good images to check with, all of one grey."""

    def __init__(self, validation=40):
        super().__init__()
        self.validation_samples = list(range(validation))

    def train_dataloader(self):
        return DataLoader([{"image": torch.zeros(3, 16, 16)} for _ in range(4)], batch_size=2)

    ordered_train_dataloader = train_dataloader

    def validation_dataloader(self):
        rows = [{"image": torch.full((3, 16, 16), 0.5)} for _ in self.validation_samples]
        return DataLoader(rows, batch_size=40)

    def calibration_dataloader(self):
        return DataLoader([{"image": torch.full((3, 16, 16), 0.5)}] * 8, batch_size=8)


def train(tmp_path, plan, *, validation=40, patience=None, callbacks=(), resume=None, epochs=None):
    torch.manual_seed(0)
    model, data = Plan(plan, patience), Data(validation)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs or len(plan), logger=False, callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks), enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
    model.eval().after_fit(data.ordered_train_dataloader())
    return model, trainer


@pytest.fixture
def painted(monkeypatch):
    """Every obstruction is visible, whatever it is drawn to be."""

    def visible(image, generator, kinds, sides):
        assert len(kinds) == 1 and kinds[0] in KINDS
        out = image.clone()
        out[:, :, :4, :4] += 1.0
        return out

    monkeypatch.setattr("src.models.trained.obstruct", visible)


@pytest.mark.parametrize(
    ("plan", "kept"),
    [
        ([0.5, 0.9, 1.0, 0.2, 0.2], 2),  # a training that goes wrong: back to its best
        ([0.5, 0.9, 1.0, 0.975, 0.975], 4),  # within the noise of 40 images: the latest
        ([0.5, 0.9, 1.0, 0.975, 0.9], 3),  # the last one is clearly worse
        ([0.2, 0.4, 0.6, 0.8, 0.9], 4),
    ],
)
def test_the_latest_weights_that_are_not_clearly_worse_than_the_best_are_kept(
    painted, tmp_path, plan, kept
):
    model, _ = train(tmp_path, plan)
    assert int(model.epoch) == kept
    assert model.learning_metrics()["val/kept_step"] == 2 * (kept + 1)
    assert model.learning_metrics()["val/images"] == 40
    drawn = model.diagnostics()
    assert drawn["training"].lines["AUROC of obstructed images"][1] == pytest.approx(
        [0.5 + share / 2 for share in plan]  # unseen ones tie with the good images
    )
    assert drawn["loss"].lines["mean since the last check"][0] == [2, 4, 6, 8, 10]
    assert model.settled == [(False, 4)] * 6  # at each check and after the fit


def test_a_training_that_has_gone_wrong_is_stopped(painted, tmp_path):
    model, trainer = train(tmp_path, [1.0, 0.975, 0.1, 0.1, 0.1, 0.1], patience=2)
    assert trainer.current_epoch == 4 and len(model.history) == 4
    assert int(model.epoch) == 1


def test_with_too_few_images_to_choose_by_the_last_weights_are_kept(painted, tmp_path):
    model, trainer = train(tmp_path, [1.0, 0.1, 0.1], validation=0, patience=1)
    assert trainer.current_epoch == 3 and int(model.epoch) == 2 and not model.kept
    assert model.learning_metrics()["val/images"] == 0
    assert [point[OBSTRUCTION] for point in model.history] == pytest.approx([1.0, 0.5625, 0.5625])


def test_a_resumed_run_decides_as_an_uninterrupted_one(painted, tmp_path):
    plan = [0.5, 1.0, 0.1, 0.1, 0.1]
    whole, _ = train(tmp_path, plan, patience=2)
    keep = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, save_on_train_epoch_end=True)
    train(tmp_path, plan, patience=2, callbacks=[keep], epochs=3)
    rest, trainer = train(tmp_path, plan, patience=2, resume=tmp_path / "last.ckpt")
    assert rest.history == whole.history and rest.selected == whole.selected
    assert trainer.current_epoch == 4 and int(rest.epoch) == int(whole.epoch) == 1


def test_an_auroc_counts_ties_half_and_its_error_is_never_zero():
    assert auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])) == pytest.approx(0.875)
    assert torch.isnan(torch.tensor(auroc(torch.zeros(0), torch.ones(3))))
    assert standard_error(1.0, 10) == pytest.approx(0.0659, abs=1e-4)  # sqrt(.9545 .0455 / 10)
    assert standard_error(0.8, 1000) == pytest.approx((0.8 * 0.2 / 1000) ** 0.5, rel=0.01)


def test_each_kind_of_obstruction_is_what_its_name_says():
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))[None]
    for kind in KINDS:
        covered = obstruct(image, torch.Generator().manual_seed(3), (kind,), sides=(0.25, 0.25))
        changed = (covered != image)[0].any(dim=0)
        top, left = (int(each.min()) for each in changed.nonzero().unbind(dim=1))
        place = (slice(top, top + 16), slice(left, left + 16))
        assert changed[place].all() and changed.sum() == 256
        old, new = image[0][:, *place], covered[0][:, *place]
        if kind == "negative":
            low, high = image.amin((0, 2, 3)), image.amax((0, 2, 3))
            assert torch.allclose(old + new, (low + high)[:, None, None].expand_as(old))
        elif kind == "colour":
            assert torch.equal(new, new[:, :1, :1].expand_as(new))
        elif kind == "noise":
            assert new.std() == pytest.approx(12**-0.5, rel=0.1)
        else:
            windows = image[0].unfold(1, 16, 1).unfold(2, 16, 1).movedim(0, 2)
            assert (windows == new).flatten(2).all(dim=2).any()


def test_obstructions_change_one_rectangle_of_each_image_and_stay_in_its_range():
    image = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    covered = obstruct(image, torch.Generator().manual_seed(0))
    for old, new in zip(image, covered, strict=True):
        changed = (old != new).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        assert 64 / 8 - 1 <= height <= 64 / 3
        assert 64 / 8 - 1 <= width <= 64 / 3
        assert changed.sum() > 0.9 * height * width
        assert new.min() >= old.min() - 1e-6
        assert new.max() <= old.max() + 1e-6
    again = obstruct(image, torch.Generator().manual_seed(0))
    assert torch.equal(covered, again)
