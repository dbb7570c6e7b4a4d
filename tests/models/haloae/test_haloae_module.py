from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader

from src.errors import ConfigError
from src.evaluation.ranking import auroc
from src.models.haloae import module as scoring
from src.models.haloae.cutpaste import seeded_generator
from src.models.haloae.options import MapKind, ScoringOptions

CONSTANT = {
    "kind": "constant",
    "start": [0, 0, 0],
    "end": [0, 0, 0],
    "midpoint": [0, 0, 0],
    "slope": [0, 0, 0],
}

WIDER = {
    "head": 16,
    "encoder": [[16, 16, 2, 3], [12, 12, 2, 3], [12, 12, 2, 5]],
    "decoder": [[12, 12, 2, 3], [12, 12, 2, 3], [16, None, 2, 1]],
}


def loader(images, batch_size=4):
    rows = [{"image": image, "index": torch.tensor(n)} for n, image in enumerate(images)]
    return DataLoader(rows, batch_size=batch_size)


def trainer(tmp_path: Path, **options) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **({"enable_checkpointing": False, "max_epochs": 1, "logger": False} | options),
    )


# --- losses ------------------------------------------------------------------------------------


def test_reconstruction_losses_look_at_the_originals_alone(make, textures):
    model = make().eval()
    images = textures(6)
    changed = torch.cat((images[:2], textures(4, seed=9)))
    before, after = model.losses(images, 2), model.losses(changed, 2)
    for name in ("mse_features", "dssim_features", "mse_image", "dssim_image"):
        assert torch.allclose(before[name], after[name], atol=1e-6)
    assert before["classification"] != after["classification"]


def test_classification_counts_pasted_images_twice(make, textures):
    model = make().eval()
    images = textures(6)
    logits = model.autoencoder(model.features(images)).logits
    labels = torch.tensor([0, 0, 1, 1, 1, 1])
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert torch.allclose(model.losses(images, 2)["classification"], expected)


def test_features_only_drops_the_image_term_and_keeps_the_other_weights(make, textures):
    model = make(image_decoder={"enabled": False}).eval()
    losses = model.losses(textures(3), 1)
    assert set(losses) == {"mse_features", "dssim_features", "classification"}
    total = model.weigh(losses, (0.2, 0.5, 0.3))
    features = losses["mse_features"] + losses["dssim_features"]
    assert torch.allclose(total, 0.2 * losses["classification"] + 0.5 * features)


def test_without_classifier_nothing_is_pasted(make, textures):
    model = make(classifier="none").eval()
    images = textures(2)
    assert model.draw_views(images, seeded_generator(0)).shape == (2, 3, 64, 64)
    assert "classification" not in model.losses(images, 2)
    assert make().draw_views(images, seeded_generator(0)).shape == (6, 3, 64, 64)


def test_views_keep_the_normalisation_of_the_batch(make, textures):
    model = make(cutpaste={"jitter": None})
    images = textures(2).clamp(-2, 2)
    assert torch.allclose(model.draw_views(images, seeded_generator(0))[:2], images, atol=1e-6)


# --- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "lr", "names"),
    [
        ((1, 0, 0), 3e-3, ["classification"]),
        ((0, 1, 0), 1e-2, ["mse_features", "dssim_features"]),
        ((0, 0, 1), 1e-2, ["mse_image", "dssim_image"]),
    ],
)
def test_thirty_steps_lower_each_active_loss(make, textures, weights, lr, names):
    model = make(
        **WIDER,
        optimizer={"lr": lr, "weight_decay": 0},
        image_decoder={"activation": "none", "first_channels": 16},
        output_activation="none",
    )
    views = model.draw_views(textures(4), seeded_generator(5))
    before = model.losses(views, 4)
    optimizer = model.configure_optimizers()
    for _ in range(30):
        optimizer.zero_grad()
        model.weigh(model.losses(views, 4), weights).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    after = model.losses(views, 4)
    for name in names:
        assert after[name] < 0.8 * before[name], name


def test_every_reachable_parameter_learns(make, textures):
    model = make(image_decoder={"activation": "none"}, output_activation="none")
    views = model.draw_views(textures(4), seeded_generator(0))
    model.weigh(model.losses(views, 4), (0.4, 0.3, 0.3)).backward()
    for name, parameter in model.autoencoder.named_parameters():
        assert parameter.grad is not None, name
        if "rel_" in name:
            assert not parameter.grad[:2].any(), name  # out of reach: 2 x halo rows
            assert parameter.grad[2:].abs().sum() > 0, name
        else:
            assert parameter.grad.abs().sum() > 0, name
    assert all(not p.requires_grad for p in model.backbone.parameters())


def test_training_is_the_same_twice_and_other_with_another_seed(make, textures, tmp_path):
    weights = []
    for seed in (3, 3, 4):
        model = make(seed=0)
        model.options.seed = seed  # of jitter and CutPaste only
        trainer(tmp_path).fit(model, loader(textures(8)))
        weights.append(torch.cat([p.flatten() for p in model.autoencoder.parameters()]).detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_seed_beyond_32_bits_still_counts():
    draws = {float(torch.rand(1, generator=seeded_generator(s, 0, 7))) for s in (1, 2**32 + 1, 2)}
    assert len(draws) == 3


def test_weights_of_the_losses_follow_the_share_of_training(make, textures, tmp_path):
    model = make()
    seen = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append([float(trainer.callback_metrics[f"train/weight_{n}"]) for n in NAMES])

    NAMES = ("classification", "features", "image")
    trainer(tmp_path, max_epochs=5, callbacks=[Watch()]).fit(model, loader(textures(8)))
    assert len(seen) == 10
    assert seen[0] == pytest.approx([0.9712, 0.0277, 0.0011], abs=6e-5)
    assert seen[4][0] == pytest.approx(0.2730, abs=2e-3)  # 0.4 of training: epoch 100 of 251
    assert seen[-1][2] > 0.53
    assert all(sum(row) == pytest.approx(1) for row in seen)


def test_an_endless_training_needs_constant_weights(make, textures, tmp_path):
    with pytest.raises(ConfigError, match=r"max_epochs"):
        trainer(tmp_path, max_epochs=-1).fit(make(), loader(textures(4)))


def test_checkpoints_leave_the_backbone_out_and_resume_training(make, textures, tmp_path):
    model, data = make(), loader(textures(8))
    path = tmp_path / "half.ckpt"
    first = trainer(tmp_path, max_epochs=1, enable_checkpointing=True)
    first.fit(model, data)
    first.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert not [key for key in state if key.startswith("backbone.")]
    resumed = make(seed=1)
    last = trainer(tmp_path, max_epochs=2)
    last.fit(resumed, data, ckpt_path=path)
    assert last.global_step == 4
    whole = make()
    trainer(tmp_path, max_epochs=2).fit(whole, data)
    assert whole.state_dict().keys() == resumed.state_dict().keys()


def test_standard_scaling_is_learnt_from_normal_features_and_saved(make, textures, tmp_path):
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loader(textures(8))

        def ordered_train_dataloader(self):
            return loader(textures(8), 3)

    model = make(feature_scaling="standard", output_activation="none")
    trainer(tmp_path).fit(model, datamodule=Data())
    features = model.eval().features(textures(8))
    assert features.mean((0, 2, 3)).abs().max() < 1e-4
    spread = features.std((0, 2, 3), correction=0)
    assert (spread - 1).abs().max() < 1e-3
    model.save(tmp_path / "model")
    other = make(seed=1, feature_scaling="standard", output_activation="none")
    other.load(tmp_path / "model")
    assert torch.equal(other.eval()(textures(2)).score, model(textures(2)).score)


# --- scoring -----------------------------------------------------------------------------------


def test_binomial_blur_is_the_fixed_kernel_with_mirrored_borders():
    maps = torch.rand(2, 7, 9, generator=seeded_generator(0), dtype=torch.float64)
    padded = np.pad(maps.numpy(), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    expected = np.zeros(maps.shape)
    for dy, wy in enumerate((0.25, 0.5, 0.25)):
        for dx, wx in enumerate((0.25, 0.5, 0.25)):
            expected += wy * wx * padded[:, dy : dy + 7, dx : dx + 9]
    assert np.abs(scoring.binomial_blur(maps).numpy() - expected).max() < 1e-12


def test_scores_equal_the_steps_done_by_hand(make, textures):
    model = make().eval()
    normal, test = textures(8), textures(4, seed=3)
    model.after_fit(loader(normal))
    with torch.no_grad():
        features = model.backbone(normal)
        error = (model.autoencoder(features).features - features).pow(2).mean(1)
        mean = error.double().mean(0)
        features = model.backbone(test)
        rebuilt = model.autoencoder(features).features
        by_hand = (((rebuilt - features) ** 2).mean(1).double() - mean).abs()
        by_hand = scoring.binomial_blur(by_hand)
        out = model(test)
    assert torch.allclose(out.anomaly_map.double(), by_hand, rtol=1e-4, atol=1e-6)
    assert torch.allclose(out.score.double(), by_hand.mean((1, 2)), rtol=1e-4)
    assert out.score.dtype == out.anomaly_map.dtype == torch.float32


@pytest.mark.parametrize(("kind", "side"), [("feature", 16), ("image", 32), ("sum", 32)])
@pytest.mark.parametrize("how", ["mean", "max"])
def test_each_map_lies_on_its_grid_and_gives_its_score(make, textures, kind, side, how):
    model = make(scoring={"map": kind, "score": how}).eval()
    model.after_fit(loader(textures(4)))
    with torch.no_grad():
        out = model(textures(3, seed=2))
    assert out.anomaly_map.shape == (3, side, side)
    flat = out.anomaly_map.flatten(1)
    assert torch.equal(out.score, flat.mean(1) if how == "mean" else flat.amax(1))


def test_the_image_error_is_averaged_over_two_by_two_pixels():
    image, rebuilt = torch.rand(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    expected = image.pow(2).mean(1).view(1, 4, 2, 4, 2).mean((2, 4))
    assert torch.allclose(scoring.image_error(rebuilt, image), expected)


def test_the_sum_weighs_both_errors_by_their_normal_size():
    errors = {"feature": torch.full((1, 2, 2), 9.0), "image": torch.full((1, 4, 4), 15.0)}
    means = {"feature": torch.full((2, 2), 3.0), "image": torch.full((4, 4), 10.0)}
    normal = {kind: (mean, torch.ones_like(mean)) for kind, mean in means.items()}
    options = ScoringOptions("mean", 0.01, MapKind.sum, normalise=True, spread=False, blur=True)
    out = scoring.anomaly_maps(errors, normal, options)
    assert torch.allclose(out, torch.full((1, 4, 4), 2.5))


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(make, textures):
    model = make(scoring={"map": "sum"}).eval()
    model.after_fit(loader(textures(4)))
    images = textures(3, seed=1)
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
    assert torch.allclose(together.score[1], alone.score[0], rtol=1e-5)
    assert torch.allclose(together.anomaly_map[1], alone.anomaly_map[0], rtol=1e-4, atol=1e-6)


def test_test_images_never_touch_the_normal_map(make, textures, tmp_path):
    maps = []
    for defect in (False, True):
        model = make()
        trainer(tmp_path).fit(model, loader(textures(8)))
        model.eval()
        model.after_fit(loader(textures(8)))
        with torch.no_grad():
            model(textures(4, seed=5, defect=defect))
        maps.append(model.normal["feature"].mean.clone())
    assert torch.equal(maps[0], maps[1])


def test_an_anti_correlated_detector_is_not_flipped(make, textures):
    model = make().eval()
    model.after_fit(loader(textures(8)))
    images = torch.cat((textures(6, seed=1), textures(6, seed=2, defect=True)))
    labels = np.repeat([0, 1], 6)
    with torch.no_grad():
        scores = model(images).score.numpy()
    forward = auroc(scores, labels)
    assert forward == pytest.approx(roc_auc_score(labels, scores))
    assert auroc(scores, 1 - labels) == pytest.approx(1 - forward)
    assert min(forward, 1 - forward) < 0.5


def test_a_trained_model_finds_defects_in_textures(make, textures, tmp_path):
    model = make(
        **WIDER,
        optimizer={"lr": 1e-2, "weight_decay": 0},
        classifier="none",
        image_decoder={"activation": "none", "first_channels": 16},
        output_activation="none",
        scoring={"score": "max"},
        loss={"schedule": {**CONSTANT, "constant": [0, 1, 1]}},
    )
    normal = textures(32)
    trainer(tmp_path, max_epochs=15, gradient_clip_val=1.0).fit(model, loader(normal, 8))
    model.eval()
    model.after_fit(loader(normal))
    images = torch.cat((textures(20, seed=11), textures(20, seed=12, defect=True)))
    with torch.no_grad():
        scores = model(images).score.numpy()
    assert roc_auc_score(np.repeat([0, 1], 20), scores) > 0.95


def test_saving_and_loading_keeps_every_score(make, textures, tmp_path):
    model = make(scoring={"map": "sum"}).eval()
    model.after_fit(loader(textures(4)))
    model.save(tmp_path)
    other = make(seed=5, scoring={"map": "sum"}).eval()
    images = textures(2, seed=1)
    with torch.no_grad():
        assert not torch.equal(other(images).score, model(images).score)
        other.load(tmp_path)
        assert torch.equal(other(images).score, model(images).score)


def test_held_out_normals_grade_a_model_without_labels(make, textures, tmp_path):
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return loader(textures(16), 8)

        ordered_train_dataloader = train_dataloader

        def calibration_dataloader(self):
            return loader(textures(6, seed=3))

    model = make(scoring={"score": "max"})
    trainer(tmp_path).fit(model, datamodule=Data())
    model.after_fit(loader(textures(16), 8))
    grade = model.learning_metrics()["val/obstruction_auroc"]
    assert 0.5 < grade <= 1  # a pasted piece is seen by any reconstruction
    model.save(tmp_path / "model")
    other = make(seed=1, scoring={"score": "max"})
    assert other.learning_metrics() == {}
    other.load(tmp_path / "model")
    assert other.learning_metrics() == model.learning_metrics()


def test_an_image_map_without_image_decoder_is_refused(make):
    with pytest.raises(ConfigError, match="image decoder"):
        make(scoring={"map": "sum"}, image_decoder={"enabled": False})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"attention": {"mask": "corect"}},
            r"model\.attention\.mask[\s\S]*inverted, none",
        ),
        ({"scoring": {"map": "features"}}, r"model\.scoring\.map[\s\S]*feature, image, sum"),
        ({"scoring": {"bluur": True}}, r"model\.scoring\.bluur[\s\S]*'blur'"),
        ({"feature_alignment": "cleen"}, r"model\.feature_alignment[\s\S]*clean, padded"),
        ({"feature_scaling": "standart"}, r"model\.feature_scaling[\s\S]*none, standard"),
        ({"loss": {"ssim": {"window": 11}}}, r"model\.loss\.ssim\.\w+ does not fit[\s\S]*missing"),
        ({"loss": {"ssim": {"window": 10, "sigma": 1, "border": "zero"}}}, "must be odd"),
        ({"cutpaste": {"mode": "4way"}}, r"model\.cutpaste\.mode[\s\S]*3way"),
        ({"image_decoder": {"tail": 3}}, "1 or 2"),
    ],
)
def test_options_that_do_not_fit_are_named(make, changes, words):
    with pytest.raises(ConfigError, match=words):
        make(**changes)


# --- what there is to show ----------------------------------------------------------------------


def test_extras_show_the_reconstruction_and_each_loss_as_its_own_number(make, textures):
    model = make().eval()
    images = textures(3)
    with torch.no_grad():
        shown = model.extras(images)
        features = model.features(images)
        rebuilt = model.autoencoder(features)
    assert torch.equal(shown["reconstruction"], rebuilt.image)
    error = (shown["features"] - features).square().mean(1)
    assert torch.allclose(shown["feature_error"], error, atol=1e-6)
    assert torch.allclose(shown["mse_features"], error.mean((1, 2)), rtol=1e-4)
    gap = shown["logit_pasted"] - shown["logit_original"]
    assert torch.allclose(shown["probability_pasted"], torch.sigmoid(gap), rtol=1e-4)
    assert not torch.allclose(shown["mse_image"], shown["mse_features"])
    terms = ("mse_features", "dssim_features", "mse_image", "dssim_image", "probability_pasted")
    mean = torch.stack([shown[term] for term in terms]).mean(0)
    assert torch.allclose(shown["mean_of_losses"], mean)


def test_extras_without_image_decoder_and_classifier_are_fewer(make, textures):
    model = make(image_decoder={"enabled": False}, classifier="none").eval()
    assert set(model.extras(textures(2))) == {
        "feature_error", "mse_features", "dssim_features", "mean_of_losses", "features",
    }  # fmt: skip


def test_the_weight_curves_are_those_of_the_schedule(make):
    (chart,) = make().diagnostics().values()
    assert [round(y[0], 4) for _, y in chart.lines.values()] == [0.9712, 0.0277, 0.0011]
    assert list(chart.lines) == ["classification", "features", "image"]
