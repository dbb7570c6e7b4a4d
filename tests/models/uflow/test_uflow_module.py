"""U-Flow as a Lightning module: loss, cache, selection, checkpoints, exact resume, saving."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file

from src.composing import CONF
from src.errors import ConfigError, SavedModelError
from src.models.uflow.flow import CouplingStep, negative_log_likelihood
from src.models.uflow.module import LOG_NFA, anomaly_likelihood, feature_shapes
from tests.models.uflow.conftest import SIDE, ToyBackbone

SCHEDULES = {
    "constant": {}, "linear": OmegaConf.load(CONF / "scheduler" / "linear.yaml").model.scheduler
}  # fmt: skip

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def trainer(folder, **options):
    return pl.Trainer(
        **(
            {
                "max_epochs": 3,
                "accelerator": "cpu",
                "logger": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "enable_checkpointing": "callbacks" in options,
                "default_root_dir": folder,
                "num_sanity_val_steps": 0,
            }
            | options
        )
    )


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items() if k.startswith("flow.")}


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


def batch_of(count=4, seed=0):
    image = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return {"image": image, "index": torch.arange(count)}


# --- the official score ------------------------------------------------------------------------


def test_golden_latents_give_the_official_likelihood_map():
    torch.manual_seed(0)
    fine, coarse = torch.randn(1, 816, 28, 28), torch.randn(1, 192, 14, 14)
    fine[..., 8:14, 10:16] *= 1.4
    anomaly_map = anomaly_likelihood([fine, coarse], (256, 256)).mean(dim=1)
    assert anomaly_map.min().item() == pytest.approx(0.351091, abs=1e-5)
    assert anomaly_map.mean().item() == pytest.approx(0.398691, abs=1e-5)
    assert anomaly_map.max().item() == pytest.approx(0.533449, abs=1e-5)
    energy = negative_log_likelihood([fine, coarse], torch.zeros(1))
    assert energy.item() == pytest.approx(353_011.06, abs=0.5)


def test_the_image_score_is_the_maximum_of_the_map(toy_model):
    model = toy_model().eval()
    prediction = model(batch_of()["image"])
    assert prediction.anomaly_map.shape == (4, SIDE, SIDE)
    assert torch.equal(prediction.score, prediction.anomaly_map.flatten(1).amax(1))
    assert (prediction.anomaly_map >= 0).all() and (prediction.anomaly_map < 1).all()
    assert prediction.mask is None and not prediction.extra


def test_an_image_gets_the_same_prediction_in_any_batch(toy_model):
    model, image = toy_model().eval(), batch_of()["image"]
    model.own_mask = True
    together, alone = model(image), model(image[2:3])
    torch.testing.assert_close(together.anomaly_map[2:3], alone.anomaly_map, rtol=1e-5, atol=1e-6)
    (both,), (one,) = together.extra.values(), alone.extra.values()
    torch.testing.assert_close(both[2:3], one, rtol=1e-3, atol=1e-3)


def test_maps_of_wide_images_keep_their_aspect(toy_model):
    model = toy_model(map_size=16)
    assert model.map_shape(32, 64) == (16, 32)
    assert model.map_shape(96, 48) == (32, 16)


# --- training ----------------------------------------------------------------------------------


def test_the_loss_does_not_depend_on_repeating_the_batch(toy_model):
    model, batch = toy_model(cache={"place": "off"}), batch_of()
    twice = {key: torch.cat([value, value]) for key, value in batch.items()}
    once, repeated = model._nll(batch).mean(), model._nll(twice).mean()
    torch.testing.assert_close(once, repeated, rtol=1e-6, atol=1e-3)
    once.backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.flow.parameters())


def test_training_raises_the_likelihood_and_finds_the_defects(toy_model, toy_data, tmp_path):
    model, data = toy_model(), toy_data()
    data.setup()
    before = model._nll(next(iter(data.calibration_dataloader()))).mean().item()
    trainer(tmp_path, max_epochs=12).fit(model, datamodule=data)
    model.eval()
    assert model._nll(next(iter(data.calibration_dataloader()))).mean().item() < before - 50
    scores, labels = [], []
    for batch in data.test_dataloader():
        scores += model(batch["image"]).score.tolist()
        labels += batch["label"].tolist()
    good = [s for s, label in zip(scores, labels, strict=True) if label == 0]
    bad = [s for s, label in zip(scores, labels, strict=True) if label == 1]
    assert min(bad) > max(good)


def test_cached_features_change_nothing_but_the_work(toy_model, toy_data, tmp_path):
    results, passes = [], []
    for place in ("off", "memory", "disk"):
        backbone = ToyBackbone()
        cache = {"place": place, "folder": str(tmp_path / "cache")}
        model = toy_model(backbone, cache=cache)
        trainer(tmp_path).fit(model, datamodule=toy_data())
        results.append(weights(model))
        passes.append(backbone.images)
    assert same(results[0], results[1]) and same(results[0], results[2])
    checks = 3 * 5 * 5  # five images, each also with four obstructions, which are never cached
    assert passes[0] - checks == 9 + 3 * (9 + 5)  # measuring, three epochs of training, validation
    assert passes[1] - checks == passes[2] - checks == 14  # every image once


def test_batch_norm_statistics_of_the_backbone_never_move(toy_model, toy_data, tmp_path):
    model = toy_model()
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    model.train()
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=toy_data())
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())


def test_same_seed_same_weights(toy_model, toy_data, tmp_path):
    runs = []
    for seed in (0, 0, 1):
        model = toy_model(seed=seed)
        trainer(tmp_path, max_epochs=2).fit(model, datamodule=toy_data(seed=seed))
        runs.append(weights(model))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_linear_decay_is_stepped_per_batch_down_to_the_end_factor(toy_model, toy_data, tmp_path):
    model = toy_model(scheduler=SCHEDULES["linear"])
    run = trainer(tmp_path, max_epochs=4)
    run.fit(model, datamodule=toy_data())
    rate = run.optimizers[0].param_groups[0]["lr"]
    assert run.global_step == 12
    assert rate == pytest.approx(0.4 * 3e-3)
    # The official code steps its decay of 25 000 once an epoch: constant, in effect.
    official = torch.optim.lr_scheduler.LinearLR(run.optimizers[0], 1.0, 0.4, 25_000)
    assert 1 - 0.6 * 200 / official.total_iters == pytest.approx(0.9952)


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("steps", [6, 4])  # the end of an epoch of 3, and the middle of one
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    toy_model, toy_data, tmp_path, steps, schedule
):
    whole = toy_model(scheduler=SCHEDULES[schedule])
    trainer(tmp_path, max_epochs=4).fit(whole, datamodule=toy_data())

    first = toy_model(scheduler=SCHEDULES[schedule])
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    trainer(tmp_path, max_epochs=4, callbacks=[keep]).fit(first, datamodule=toy_data())

    second = toy_model(scheduler=SCHEDULES[schedule])
    rest = trainer(tmp_path, max_epochs=4)
    rest.fit(second, datamodule=toy_data(), ckpt_path=tmp_path / f"step={steps}.ckpt")
    assert rest.global_step == 12
    assert same(weights(whole), weights(second))
    if steps == 4:  # a checkpoint at the last batch of an epoch comes before the check at its end
        assert whole.history == second.history and whole.selected == second.selected


class Spoil(pl.Callback):
    """Ruins every epoch from the fourth on."""

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 3:
            for parameter in module.flow.parameters():
                parameter.data += 0.3


def test_a_run_killed_after_its_last_epoch_still_gets_the_best_weights(
    toy_model, toy_data, tmp_path
):
    keep = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, save_on_train_epoch_end=True)
    first, data = toy_model(), toy_data()
    trainer(tmp_path, max_epochs=4, callbacks=[keep, Spoil()]).fit(first, datamodule=data)
    assert len(first.history) == 4 and "val/obstruction_auroc" in first.selected
    second, data = toy_model(), toy_data()
    trainer(tmp_path, max_epochs=4).fit(second, datamodule=data, ckpt_path=tmp_path / "last.ckpt")
    second.eval()
    second.after_fit(data.ordered_train_dataloader())
    assert same(weights(first), weights(second))


def test_checkpoints_leave_the_backbone_out(toy_model, toy_data, tmp_path):
    keep = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0)
    model = toy_model()
    trainer(tmp_path, max_epochs=1, callbacks=[keep]).fit(model, datamodule=toy_data())
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert state and not any(key.startswith("backbone.") for key in state)


# --- selection ---------------------------------------------------------------------------------


def test_the_likelihood_of_the_weights_that_are_kept_is_reported(toy_model, toy_data, tmp_path):
    model, data = toy_model(check_every=3), toy_data()
    trainer(tmp_path, max_epochs=3).fit(model, datamodule=data)
    model.eval().after_fit(data.ordered_train_dataloader())
    nlls = torch.cat([model._nll(batch) for batch in data.val_dataloader()])
    found = model.learning_metrics()
    assert found["val/nll"] == pytest.approx(nlls.mean().item() / model.dimensions, rel=1e-5)
    assert {"val/obstruction_auroc", "val/kept_step", "val/images"} <= set(found)


def test_the_epoch_is_chosen_by_other_images_than_the_threshold(toy_model, toy_data, tmp_path):
    seen = set()

    class Record(pl.Callback):
        def on_validation_batch_end(self, trainer, module, outputs, batch, *_):
            seen.update(batch["index"].tolist())

    model, data = toy_model(), toy_data()
    trainer(tmp_path, max_epochs=1, callbacks=[Record()]).fit(model, datamodule=data)
    calibrating = {i for batch in data.calibration_dataloader() for i in batch["index"].tolist()}
    training = {i for batch in data.ordered_train_dataloader() for i in batch["index"].tolist()}
    assert (len(seen), len(calibrating), len(training)) == (5, 4, 9)
    assert not seen & calibrating and not seen & training
    assert not calibrating & training
    model.eval().after_fit(data.ordered_train_dataloader())
    assert model.learning_metrics()["val/images"] == 5


def test_the_paper_s_protocol_keeps_one_epoch_per_metric_of_the_test_set(
    toy_model, toy_data, tmp_path
):
    model, data = toy_model(protocol="paper"), toy_data(protocol="paper")
    trainer(tmp_path, max_epochs=3).fit(model, datamodule=data)
    assert set(model.kept) == {"val/pixel_auroc", "val/aupro", "val/miou"}
    model.eval()
    model.after_fit(data.ordered_train_dataloader())
    assert model.trained_facts()["protocol"] == "paper"
    model.own_mask = True
    reported = model.learning_metrics()
    for monitor, key in (("val/pixel_auroc", "test/pixel_auroc"), ("val/miou", "test/miou")):
        assert reported[key] == model.selected[monitor]["value"]
        assert reported[f"{monitor}_epoch"] == model.selected[monitor]["epoch"]
    model.save(tmp_path / "model")
    for name in ("aupro", "miou"):
        saved = load_file(tmp_path / "model" / f"best_{name}.safetensors")
        assert set(saved) == set(model.trained_tensors())


# --- after training ----------------------------------------------------------------------------


def test_a_saved_model_predicts_the_same(toy_model, toy_data, tmp_path):
    model, data = toy_model(), toy_data()
    trainer(tmp_path).fit(model, datamodule=data)
    model.eval()
    model.after_fit(data.ordered_train_dataloader())
    model.save(tmp_path / "model")
    assert not any(
        k.startswith("backbone") for k in load_file(tmp_path / "model/model.safetensors")
    )
    other = toy_model(seed=9).eval()
    other.load(tmp_path / "model")
    image = batch_of()["image"]
    model.own_mask = other.own_mask = True
    ours, theirs = model(image), other(image)
    assert torch.equal(ours.score, theirs.score)
    assert torch.equal(ours.mask, theirs.mask)
    assert torch.equal(ours.anomaly_map, theirs.anomaly_map)
    assert torch.equal(ours.extra[LOG_NFA], theirs.extra[LOG_NFA])
    assert other.trained_facts() == json.loads(json.dumps(model.trained_facts()))


def test_no_held_out_normal_is_detected_after_calibration(toy_model, toy_data, tmp_path):
    model, data = toy_model(), toy_data()
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=data)
    model.kept.clear()  # or the good weights would come back
    with torch.no_grad():
        for parameter in model.flow.parameters():
            if parameter.shape[0] == 1:
                parameter += 3.0  # latents several times too large
    model.eval()
    model.own_mask = True
    held_out = next(iter(data.calibration_dataloader()))["image"]
    assert model(held_out).mask.any()
    model.after_fit(data.ordered_train_dataloader())
    assert model.log_nfa_offset > 0
    assert not model(held_out).mask.any()


def finest_steps(flow):
    width = flow.shapes[0][2]
    return [m for m in flow.graph.module_list
            if isinstance(m, CouplingStep) and m.dims_in[0][2] == width]  # fmt: skip


def test_under_dispersed_latents_are_reported(toy_model, toy_data, tmp_path, caplog):
    model, data = toy_model(), toy_data()
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=data)
    model.kept.clear()
    with torch.no_grad():
        for step in finest_steps(model.flow):
            step.global_scale -= 1.0
    with caplog.at_level(logging.WARNING):
        model.eval().after_fit(data.ordered_train_dataloader())
    assert "Scale 1: latents of normal images are too small" in caplog.text
    assert model.latent_facts[0]["deviation"] < 0.96


def test_published_weights_can_be_started_from(toy_model, tmp_path):
    donor = toy_model(seed=4, standardise=False)
    save_file(donor.trained_tensors(), tmp_path / "w.safetensors")
    model = toy_model(seed=0, standardise=False, weights=str(tmp_path / "w.safetensors"))
    assert same(weights(donor), weights(model))
    with pytest.raises(SavedModelError, match="fetch"):
        toy_model(weights=str(tmp_path / "absent.safetensors"))


# --- mistakes ----------------------------------------------------------------------------------


def test_image_sizes_that_do_not_fit_are_answered_with_one_that_does():
    with pytest.raises(ConfigError, match=r"resize=\[104,96\]"):
        feature_shapes(ToyBackbone(), (102, 98))
    assert feature_shapes(ToyBackbone(), (32, 64)) == [(6, 8, 16), (10, 4, 8)]


@pytest.mark.parametrize(
    "wrong", [{"feature_norm": "lyer"}, {"nfa": {"tail": "bond"}}, {"nfa": {"tests": "totl"}}]
)
def test_unknown_choices_are_explained(toy_model, wrong):
    with pytest.raises(ConfigError, match="expected one of"):
        toy_model(**wrong)


# --- normalisation -----------------------------------------------------------------------------


def test_layer_norm_without_parameters_equals_torch_and_needs_no_fixed_size(toy_model):
    model = toy_model(standardise=False)
    maps = [torch.randn(2, 6, 8, 8), torch.randn(2, 10, 4, 4)]
    normed, log_det = model.norm(maps)
    assert log_det == 0.0 and not list(model.norm.parameters())
    for ours, x in zip(normed, maps, strict=True):
        expected = (x - x.mean((1, 2, 3), keepdim=True)) / (
            x.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5
        ).sqrt()
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    bigger = [torch.randn(1, 6, 16, 24), torch.randn(1, 10, 8, 12)]
    assert model.latents(bigger)[0][0].shape[2:] == (16, 24)


def test_legacy_layer_norm_has_the_paper_s_parameters():
    from src.models.uflow.features import FeatureNorm

    def count(shapes):
        return sum(p.numel() for p in FeatureNorm(shapes, "layer_affine", False).parameters())

    resnet18 = [(64, 64, 64), (128, 32, 32), (256, 16, 16)]
    wide_resnet50 = [(256, 64, 64), (512, 32, 32), (1024, 16, 16)]
    assert count(resnet18) == 917_504 == 2_397_384 - 1_479_880
    assert count(wide_resnet50) == 3_670_016 == 27_264_096 - 23_594_080


def test_standardised_channels_have_mean_0_and_variance_1_and_count_in_the_likelihood(toy_model):
    model = toy_model(feature_norm="none")
    scale = torch.tensor([0.3, 1.0, 50.0, 3.0, 2.0, 0.5])[:, None, None]
    maps = [torch.randn(20, 6, 8, 8) * scale + 7, torch.randn(20, 10, 4, 4) * 4]
    model.norm.measure([[m[:9] for m in maps], [m[9:] for m in maps]])
    normed, log_det = model.norm(maps)
    for x in normed:
        torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(x.shape[1]), rtol=0, atol=1e-4)
        torch.testing.assert_close(x.var((0, 2, 3)), torch.ones(x.shape[1]), rtol=0, atol=1e-2)
    expected = -sum(m.shape[2] * m.shape[3] * m.std((0, 2, 3)).log().sum().item() for m in maps)
    assert log_det.item() == pytest.approx(expected, rel=0.01)


def test_a_channel_that_never_varies_does_not_divide_by_zero(toy_model):
    model = toy_model(feature_norm="none")
    maps = [torch.randn(4, 6, 8, 8), torch.randn(4, 10, 4, 4)]
    maps[0][:, 2] = 3.0
    model.norm.measure([maps])
    latents, log_det = model.latents(maps)
    assert all(torch.isfinite(z).all() for z in latents) and torch.isfinite(log_det).all()


def test_statistics_of_normal_latents_are_those_of_n01():
    from src.models.uflow.latents import LatentStatistics, warnings_of

    collected = LatentStatistics()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        collected.update(
            [
                torch.randn(4, 60, 20, 20, generator=generator),
                torch.randn(4, 30, 10, 10, generator=generator),
            ]
        )
    fine, coarse = collected.result()
    for found in (fine, coarse):
        assert found["mean"] == pytest.approx(0, abs=0.01)
        assert found["deviation"] == pytest.approx(1, abs=0.01)
        assert found["energy_spread"] == pytest.approx(1, abs=0.05)
        assert found["beyond_3"] == pytest.approx(math.erfc(3 / math.sqrt(2)), abs=6e-4)
    assert sum(fine["histogram"]) == 12 * 60 * 400
    assert not warnings_of([fine, coarse], calibrated=False)


def test_energy_that_wanders_is_reported_unless_calibrated():
    from src.models.uflow.latents import LatentStatistics, warnings_of

    collected = LatentStatistics()
    gain = torch.from_numpy(np.linspace(0.5, 1.4, 400).reshape(1, 1, 20, 20)).float()
    collected.update([torch.randn(4, 60, 20, 20) * gain])
    assert "calibrate=true" in warnings_of(collected.result(), calibrated=False)[0]
    assert not warnings_of(collected.result(), calibrated=True)


def test_a_fitted_model_exports_with_any_batch_size(toy_model):
    class Exportable(ToyBackbone):
        def forward(self, image):  # without the counter
            return [self.norm(self.fine(image)), torch.relu(self.coarse(image))]

    model = toy_model(Exportable()).eval()
    image = batch_of(2)["image"]
    with torch.no_grad():
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(model, (image,), dynamic_shapes=({0: batch},))
        for found, expected in zip(program.module()(image), model(image), strict=True):
            if expected is not None:
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert program.module()(batch_of(5)["image"]).score.shape == (5,)
