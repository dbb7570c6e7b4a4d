"""Held-out scores by folds, normalised channels, and the mean of the largest patch scores."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from src.errors import ConfigError
from src.models.patchcore.options import Normalise
from src.models.patchcore.patches import fit_normalisation, normalise
from src.models.patchcore.scores import image_score
from src.result import Calibration
from tests.models.patchcore.stand_ins import Noise, build, fitted, options, trainer

NORMALISED = ("none", "layer", "channel", "whiten")


def test_each_fold_is_scored_by_a_model_that_was_fitted_without_it():
    count, folds = 9, 3
    model = fitted(count=count, held_out="cross", folds=folds)
    scores = model.held_out_scores()
    assert scores.way == Calibration.cross
    dealt = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    images = Noise(count)
    for fold in range(folds):
        mine = dealt[fold::folds]
        others = [i for i in range(count) if i not in mine]
        apart = build()
        loader = DataLoader(Subset(images, others), 4)
        trainer().fit(apart, loader)
        apart.eval()
        for i in mine.tolist():
            alone = apart(images[i]["image"][None])
            torch.testing.assert_close(scores.image[i], alone.score[0])
            torch.testing.assert_close(scores.map_max[i], alone.anomaly_map.max())


def test_folds_score_as_new_images_do_and_leaving_one_out_scores_higher():
    memory = build(coreset={"ratio": 0.1}).memory
    patches = torch.rand(240, 4, 4, 3, generator=torch.Generator().manual_seed(3))
    known, new, index = patches[:120], patches[120:], torch.arange(120)
    memory.reduce(memory.bank, known, index)
    fresh, cross = memory.score(new).grid.median(), memory.cross(known, index).grid.median()
    left_out = memory.held_out(known, index).grid.median()
    assert cross == pytest.approx(float(fresh), rel=0.02)
    assert left_out > 1.04 * fresh


def test_as_many_folds_as_images_when_there_are_few():
    model = fitted(count=3, held_out="cross")
    assert len(model.held_out_scores().image) == 3


def test_what_the_scores_rest_on_is_saved(tmp_path):
    model = fitted(held_out="cross", normalise="whiten")
    model.save(tmp_path)
    loaded = build(held_out="cross", normalise="whiten")
    loaded.load(tmp_path)
    assert loaded.held_out_scores().way == Calibration.cross
    image = Noise(1)[0]["image"][None]
    torch.testing.assert_close(loaded(image).anomaly_map, model(image).anomaly_map)


@pytest.mark.parametrize("kind", NORMALISED)
def test_a_memory_holds_patches_on_the_scale_in_which_it_is_asked(kind):
    model = fitted(normalise=kind)
    again = model(Noise(9)[0]["image"][None])
    assert again.anomaly_map.isfinite().all()
    kept = fitted(normalise=kind, coreset={"method": "none", "ratio": 1.0})
    assert kept(Noise(9)[0]["image"][None]).score == pytest.approx(0.0, abs=1e-3)


def test_normalised_patches_have_the_variance_that_is_promised():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    patches = torch.randn(4000, 6, generator=generator) @ mixing + 100.0
    patches[:, :2] *= 50.0

    def spread(kind):
        return normalise(patches, fit_normalisation(patches, (2, 4), kind))

    by_layer = spread(Normalise.layer).var(0, correction=0)
    torch.testing.assert_close(by_layer[:2].sum(), torch.tensor(1.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(by_layer[2:].sum(), torch.tensor(1.0), rtol=1e-3, atol=0)
    by_channel = spread(Normalise.channel).var(0, correction=0)
    torch.testing.assert_close(by_channel, torch.ones(6), rtol=1e-3, atol=0)
    whitened = spread(Normalise.whiten)
    cov = torch.cov(whitened.T, correction=0)
    assert whitened.shape[1] < 6  # the two loud channels hold nearly all of the variance
    torch.testing.assert_close(cov, torch.eye(len(cov)), rtol=0, atol=2e-3)


def test_the_top_score_is_the_mean_of_the_largest_share_of_patches():
    grid = torch.arange(200.0)[None]
    top = options(score="top", top_share=0.02)
    assert image_score(grid, top) == (199 + 198 + 197 + 196) / 4
    assert image_score(grid[:, :30], top) == 29  # at least one patch
    assert image_score(grid, options(score="max")) == 199


def test_options_that_exclude_each_other_are_refused():
    with pytest.raises(ConfigError, match="one worst patch"):
        options(score="top", reweight="paper")
    with pytest.raises(ConfigError, match="embedding mixes"):
        options(embedding="official", normalise="layer")


def test_a_streamed_memory_normalises_too_and_says_how_it_was_held_out(monkeypatch):
    monkeypatch.setattr("src.models.patchcore.streaming._SMALLEST_PART", 64)
    monkeypatch.setattr("src.models.patchcore.streaming.WORKSPACE", 0)
    model = fitted(count=30, held_out="cross", normalise="whiten", memory_budget_gb=0.00023)
    assert model.held_out_scores().way == Calibration.leave_one_out
