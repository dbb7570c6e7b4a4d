from __future__ import annotations

import copy

import pytest
import torch
from hydra.errors import HydraException
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import nn

from src.errors import ConfigError, SavedModelError, TrainingError
from tests.reference_crn import naive_auroc

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytorch_lightning.utilities.warnings.PossibleUserWarning"
)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Constant(nn.Module):
    """A unit that paints one value."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, image):
        return torch.full_like(image, self.value)


def images(count, seed=0, side=32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=generator) * 2 - 1


def snapshot(module):
    return {k: v.clone() for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("score", "expected"), [("disc", 0.75), ("cycle", 1.0), ("rec", 0.25)])
def test_scores_are_mean_absolute_differences(crn, score, expected):
    model = crn(f"model.score={score}")
    model.units[0], model.units[1] = Constant(0.25), Constant(-0.5)
    model.board.best = (0, 1)
    prediction = model(torch.full((2, 3, 32, 32), 0.5))
    assert prediction.score.tolist() == pytest.approx([expected] * 2)
    assert prediction.anomaly_map.shape == (2, 32, 32)
    assert prediction.anomaly_map.flatten().unique().tolist() == pytest.approx([expected])


def test_extras_are_the_pictures_of_the_best_pair_and_their_differences(crn):
    model = crn()
    model.units[0], model.units[1] = Constant(0.25), Constant(-0.5)
    model.board.best = (0, 1)
    shown = model.extras(torch.full((2, 3, 32, 32), 0.5))
    expected = {"generated": 0.25, "discriminated": -0.5, "rec": 0.25, "cycle": 1.0}
    assert {name: value.unique().item() for name, value in shown.items()} == expected
    assert shown["generated"].shape == (2, 3, 32, 32)
    assert shown["cycle"].shape == (2, 32, 32)


@pytest.mark.parametrize("score", ["disc", "cycle", "rec"])
def test_scores_do_not_depend_on_the_batch(crn, score):
    model = crn(f"model.score={score}")
    image = images(4)
    together = model(image)
    for i in range(4):
        alone = model(image[i : i + 1])
        torch.testing.assert_close(alone.score[0], together.score[i], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone.anomaly_map[0], together.anomaly_map[i], atol=1e-5, rtol=0)


def test_scoring_changes_nothing_even_in_training_mode(crn):
    model = crn().train()
    before = snapshot(model)
    model.predict_step({"image": images(3)}, 0)
    assert all(unit.training for unit in model.units)
    after = snapshot(model)
    assert all(torch.equal(before[k], after[k]) for k in before)


# --- training -----------------------------------------------------------------------------------

SMALL = (
    "model.start=mean", "model.obstructed=0.5", "model.margin=0.25", "model.score=rec",
    "model.residual.standardise=position_channel", "model.residual.score=top",
)  # fmt: skip


def test_a_short_training_rebuilds_and_is_saved_with_its_chart(crn, toy, fit, tmp_path):
    words = (*SMALL, "model.check_every=10", "model.must_reconstruct=false")
    model, data = crn(*words, "model.optimizer.lr=2e-3"), toy()
    fit(model, data, 40)
    model.after_fit(data.train_dataloader())
    found = model.learning_metrics()
    assert found["train/generator_error"] < 0.2 < images(8).abs().mean()
    assert 0 < found["train/mean_image_error"] < 0.1  # the noise around the stripes
    chart = model.diagnostics()["training"]
    assert len(chart.lines) == 3
    assert all(len(steps) == len(values) >= 3 for steps, values in chart.lines.values())
    model.save(tmp_path)
    other = crn(*words)
    other.load(tmp_path)
    image = images(2)
    assert torch.equal(other.eval()(image).score, model.eval()(image).score)
    assert other.diagnostics()["training"] == chart


def test_a_generator_that_rebuilds_nothing_is_a_failure_unless_that_is_wanted(crn, toy, fit):
    data = toy()
    for wanted in (True, False):
        model = crn(f"model.must_reconstruct={str(wanted).lower()}")
        fit(model, data, 2)
        for unit in model.units:
            unit.decoder[-1].conv.weight.data.fill_(100.0)
        if wanted:
            with pytest.raises(TrainingError, match=r"mean image alone has"):
                model.after_fit(data.train_dataloader())
        else:
            model.after_fit(data.train_dataloader())


def test_the_last_step_keeps_the_pair_that_was_chosen_and_does_not_choose_again(crn, toy, fit):
    model, data = crn("model.must_reconstruct=false"), toy()
    fit(model, data, 4)
    kept = next((a, b) for a in range(3) for b in range(3) if a != b and (a, b) != model.board.best)
    model.board.best = kept  # as the paper's rule does when it restores an earlier pair
    model.after_fit(data.train_dataloader())
    assert model.board.best == kept
    assert all(key.startswith(("residuals.", *(f"units.{k}." for k in kept)))
               for key in model.trained_tensors())  # fmt: skip


def test_per_role_statistics_keep_two_units_and_do_not_disturb_the_training(crn, toy, fit):
    often, never = crn("model.check_every=1"), crn("model.check_every=1000")
    for model in (often, never):
        fit(model, toy(), 6)
    assert len(set(often.board.best)) == 2
    for one, other in zip(often.units.parameters(), never.units.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_budget_counts_minibatches_and_the_last_one_is_always_evaluated(
    crn, toy, fit, tmp_path
):
    model = crn("model.check_every=4")
    logger = CSVLogger(tmp_path, name="", version="log")
    trainer = fit(model, toy(), 10, logger=logger)
    assert trainer.global_step == 10
    logger.save()
    rows = (tmp_path / "log" / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    points = [
        int(line.split(",")[columns.index("step")])
        for line in rows[1:]
        if line.split(",")[columns.index("auroc/last")]
    ]
    assert points == [3, 7, 9]  # Lightning counts from 0
    assert {"val/score", "val/obstruction_auroc", "auroc/oracle_best", "auroc/oracle_paper",
            "units/2/reconstruction", "train/loss"} <= set(columns)  # fmt: skip
    assert {"auroc/last", "val/obstruction_auroc"} <= set(model.learning_metrics())
    assert "auroc/last" in trainer.callback_metrics


def test_both_units_of_random_pairs_learn_and_every_unit_does_when_matching(crn, toy, fit):
    for pairing, moved in (("random", 2), ("matching", 4)):
        model = crn(f"model.pairing={pairing}", "model.num_units=4")
        before = snapshot(model.units)
        fit(model, toy(), 1)
        after = snapshot(model.units)
        changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
        assert len(changed) == moved


def test_two_runs_of_one_seed_are_equal_and_another_seed_differs(crn, toy, fit):
    states = []
    for seed in (0, 0, 1):
        model = crn(f"seed={seed}")
        fit(model, toy(), 5)
        states.append(snapshot(model))
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert any(not torch.equal(states[0][k], states[2][k]) for k in states[0])


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(crn, toy, fit, tmp_path):
    # One minibatch an epoch: after a resume by steps Lightning starts the data order anew.
    data = toy(batch_size=8)
    whole = crn("model.check_every=2")
    each = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    fit(whole, data, 8, callbacks=[each])
    second = crn("model.check_every=2", "seed=9")
    trainer = fit(second, data, 8, checkpoint=tmp_path / "epoch=3.ckpt")
    assert trainer.global_step == 8
    expected = snapshot(whole)
    for key, value in snapshot(second).items():
        assert torch.equal(value, expected[key]), key
    assert second.learning_metrics() == whole.learning_metrics()  # running maxima included


def test_bfloat16_trains_and_keeps_losses_in_float32(crn, toy, fit):
    model, data = crn(), toy()
    trainer = fit(model, data, 3, precision="bf16-mixed")
    assert model.board.loss.dtype == torch.float32
    predictions = trainer.predict(model, data.test_dataloader())
    scores, labels = torch.cat([p.score for p in predictions]), torch.arange(12) >= 6
    expected = naive_auroc(scores, labels)  # same precision
    assert model.learning_metrics()["auroc/last"] == pytest.approx(expected, abs=1e-12)
    assert torch.isfinite(model.board.reconstruction).any()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images(2)).score.dtype == torch.float32


def test_reconstruction_improves_on_a_small_set(crn, toy, fit):
    model = crn("model.optimizer.lr=2e-3", "model.selection_decay=0.0")
    fit(model, toy(), 1)
    start = model.board.reconstruction.min().item()
    model = crn("model.optimizer.lr=2e-3", "model.selection_decay=0.0")
    fit(model, toy(), 60)
    assert model.board.reconstruction.min().item() < 0.85 * start


def poison(unit):
    with torch.no_grad():
        unit.decoder[-1].conv.weight.fill_(float("nan"))


def test_nan_losses_are_reported_and_not_selected(crn, toy, fit):
    model = crn("model.num_units=6", "model.check_every=100")
    board = copy.deepcopy(model.board)
    first, second = board.draw_pairs()[0], board.draw_pairs()[0]
    assert not set(first) & set(second), "choose another seed"
    poison(model.units[first[0]])
    with pytest.warns(UserWarning, match="not a number"):
        fit(model, toy(), 2)
    assert set(model.board.broken_units()) == set(first)  # the partner's loss holds it too
    assert set(model.board.best) <= set(second)
    assert model(images(1)).score.isfinite().all()


def test_a_competition_without_any_finite_loss_stops_with_advice(crn, toy, fit):
    model = crn("model.check_every=1")
    for unit in model.units:
        poison(unit)
    with pytest.raises(ConfigError, match="No unit") as caught:
        fit(model, toy(), 1)
    assert "model.optimizer.lr" in caught.value.do


# --- curves and the paper's rule ----------------------------------------------------------------


def test_swapping_test_labels_changes_curves_but_not_the_honest_model(crn, toy, fit):
    states, metrics = [], []
    for swap in (False, True):
        data = toy()
        for row in data.test:
            row["label"] = 1 - row["label"] if swap else row["label"]
        model = crn("model.check_every=3")
        fit(model, data, 9)
        states.append(snapshot(model))
        metrics.append(model.learning_metrics())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert metrics[0]["auroc/last"] == pytest.approx(1 - metrics[1]["auroc/last"])
    assert metrics[0]["val/obstruction_auroc"] == metrics[1]["val/obstruction_auroc"]


def test_the_paper_rule_keeps_the_weights_of_its_highest_value(crn, toy, fit):
    words = ("model.check_every=1", "model.optimizer.lr=3e-3", "model.must_reconstruct=false")
    model = crn(*words, "protocol=paper")
    data = toy(batch_size=8)
    fit(model, data, 12)
    model.eval().after_fit(data.ordered_train_dataloader())
    scores, labels = model.labelled_scores(data.test_dataloader())
    kept = naive_auroc(scores, labels)
    assert max(kept, 1 - kept) == pytest.approx(model.learning_metrics()["auroc/oracle_paper"])


def test_the_three_curves_are_last_best_and_turned_best(crn, toy, fit, tmp_path):
    model = crn("model.check_every=1", "model.optimizer.lr=3e-3")
    logger = CSVLogger(tmp_path, name="", version="log")
    fit(model, toy(batch_size=8), 12, logger=logger)
    logger.save()
    lines = (tmp_path / "log" / "metrics.csv").read_text().splitlines()
    columns = lines[0].split(",")
    table = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    table = [row for row in table if row["auroc/last"]]
    last = [float(row["auroc/last"]) for row in table]
    assert len(last) == 12
    for n, row in enumerate(table, start=1):
        assert float(row["auroc/oracle_best"]) == pytest.approx(max(last[:n]))
        turned = [max(a, 1 - a) for a in last[:n]]
        assert float(row["auroc/oracle_paper"]) == pytest.approx(max(turned))


def test_auroc_of_class_sorted_batches_equals_sklearn_for_scores_beyond_one(crn):
    # torchmetrics squashes each batch that leaves [0, 1] and so breaks the order between batches.
    from sklearn.metrics import roc_auc_score

    from src.models.trained import auroc

    model = crn("model.score=rec")
    model.units[0] = Constant(0.0)
    model.board.best = (0, 0)
    generator = torch.Generator().manual_seed(1)
    normal = 0.8 + 0.3 * torch.rand(40, generator=generator)
    defective = 0.95 + 0.3 * torch.rand(30, generator=generator)
    levels = torch.cat([normal, defective])
    labels = torch.tensor([0] * 40 + [1] * 30)
    batches = [
        {"image": level[:, None, None, None].expand(-1, 3, 32, 32), "label": label}
        for level, label in zip(levels.split(10), labels.split(10), strict=True)
    ]
    scores, truth = model.labelled_scores(batches)
    assert (scores < 1).any()
    assert (scores > 1).any()
    assert auroc(scores[~truth], scores[truth]) == pytest.approx(roc_auc_score(labels, levels))


def test_a_test_set_of_one_class_gives_no_auroc_instead_of_a_perfect_one(crn, toy, fit):
    data = toy()
    data.test = [row for row in data.test if row["label"] == 0]
    model = crn()
    fit(model, data, 2)
    assert not [key for key in model.learning_metrics() if key.startswith("auroc")]


def test_without_held_out_images_there_is_no_label_free_curve(crn, toy, fit):
    model = crn()
    fit(model, toy(held_out=0), 2)
    assert not [key for key in model.learning_metrics() if key.startswith("val/")]


# --- saving -------------------------------------------------------------------------------------


def test_a_saved_model_is_the_best_pair_alone_and_predicts_the_same(crn, toy, fit, tmp_path):
    model = crn("model.num_units=4")
    fit(model, toy(), 12)
    assert model.board.best != (0, 1)  # else the test below would prove little
    model.eval()
    expected = model(images(2))
    model.save(tmp_path / "model")
    other = crn("model.num_units=4", "seed=5")
    other.load(tmp_path / "model")
    found = other.eval()(images(2))
    assert torch.equal(found.score, expected.score)
    assert torch.equal(found.anomaly_map, expected.anomaly_map)
    assert other.learning_metrics() == model.learning_metrics()
    assert len(model.trained_tensors()) < len(snapshot(model.units))


def test_one_unit_may_play_both_parts_and_is_saved_once(crn, tmp_path):
    model = crn()
    model.board.best = (2, 2)
    model.save(tmp_path / "model")
    other = crn("seed=5")
    other.load(tmp_path / "model")
    assert other.board.best == (2, 2)
    assert torch.equal(other(images(1)).score, model(images(1)).score)


def test_a_model_of_another_size_is_refused(crn, tmp_path):
    crn().save(tmp_path / "model")
    with pytest.raises(SavedModelError, match="number of units"):
        crn("model.num_units=5").load(tmp_path / "model")


# --- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.score=dics", "disc, cycle, rec"),
        ("model.max_depth=4", "model.max_depth=5"),
        ("model.num_units=1", "model.num_units=2"),
        ("model.selection_decay=1.0", "model.selection_decay=0.9"),
        ("model.pairing=matchin", "random, matching"),
        ("model.norm=layer", "batch, instance, none"),
        ("model.decoder=upsampel", "upsample, transposed"),
    ],
)
def test_mistakes_in_the_config_are_answered_with_what_to_do(crn, override, expected):
    with pytest.raises((ConfigError, HydraException)) as caught:
        crn(override)
    assert expected in f"{caught.value} {caught.value.__cause__}"  # the latter: of the schema


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.optimizer._target_=torch.optim.Adan"], "Adan"),
        (["scheduler=cosine", "model.scheduler.T_max=double"], "doubled"),
    ],
)
def test_mistakes_in_optimizer_or_schedule_are_explained(crn, toy, fit, overrides, expected):
    with pytest.raises(ConfigError, match=expected):
        fit(crn(*overrides), toy(), 1)


def test_a_backbone_is_refused(crn):
    from src.models.crn.module import CRN

    options = crn().options
    with pytest.raises(ConfigError, match="no use for a backbone"):
        CRN(nn.Identity(), (32, 32), options)


def test_cosine_ends_at_zero_and_the_official_horizon_near_half(crn, toy, fit):
    rates = {}
    for horizon in ("run", "doubled"):
        model = crn("scheduler=cosine", f"model.scheduler.T_max={horizon}")
        trainer = fit(model, toy(), 20)  # 10 epochs of 2 minibatches
        rates[horizon] = trainer.optimizers[0].param_groups[0]["lr"]
        length = trainer.lr_scheduler_configs[0].scheduler.T_max
        assert length == {"run": 10, "doubled": int(2 * 20 / (8 / 4)) + 1}[horizon]
    assert rates["run"] == pytest.approx(0, abs=1e-9)
    assert 0.4e-4 < rates["doubled"] < 0.7e-4


@pytest.mark.parametrize(
    ("name", "expected"), [("step", 1e-4 * 0.1**2), ("exponential", 1e-4 * 0.1**4), ("none", 1e-4)]
)
def test_other_schedules_step_once_an_epoch(crn, toy, fit, name, expected):
    changes = ["model.scheduler.milestones=[1,3]"] if name == "step" else []
    model = crn(f"scheduler={name}", *changes)
    trainer = fit(model, toy(), 8)  # 4 epochs
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(expected)


def test_the_default_config_is_the_official_one(composed):
    cfg = composed()
    assert cfg.model.num_units == 12
    assert dict(cfg.model.weights) == {
        "reconstruction": 0.5,
        "feedback": 1.0,
        "discrimination": 2.0,
    }
    assert (cfg.trainer.max_steps, cfg.data.batch_size) == (10000, 64)
    assert list(cfg.transform.resize) == [128, 128]
    assert list(cfg.transform.mean) == [0.5] * 3


def test_the_demo_is_the_authors_demo(composed):
    cfg = composed("experiment=crn_demo")
    assert (cfg.model.num_units, cfg.trainer.max_steps, list(cfg.transform.resize)) == (
        3,
        50,
        [32, 32],
    )
    assert cfg.hardware.accelerator == "cpu"


def test_parity_reads_mvtec_as_the_authors_do(composed):
    cfg = composed("experiment=crn_parity_mvtec")
    assert cfg.protocol == "paper"
    assert cfg.transform.antialias is False
    assert cfg.transform.mean[0] == pytest.approx(0.485)
    assert cfg.calibration.fraction == 0.0
    assert cfg.model.selection_decay == 0.0
