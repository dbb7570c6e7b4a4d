"""U-Flow whose latents are standardised at each place, in the whole module."""

from __future__ import annotations

import torch

from src.models.uflow.flow import UShapedFlow
from tests.models.uflow.conftest import SIDE
from tests.models.uflow.test_uflow_module import batch_of, trainer

CHANGES = {"likelihood": "position", "score": "top", "blur": 2.0}


def test_a_fitted_model_scores_normal_images_about_zero_and_is_saved(toy_model, toy_data, tmp_path):
    model, data = toy_model(**CHANGES), toy_data()
    trainer(tmp_path).fit(model, data)
    model.eval()
    model.after_fit(data.ordered_train_dataloader())
    image = next(iter(data.ordered_train_dataloader()))["image"]
    found = model(image)
    assert found.anomaly_map.shape == (len(image), SIDE, SIDE)
    assert abs(found.anomaly_map.mean().item()) < 0.5
    model.save(tmp_path / "model")
    other = toy_model(**CHANGES)
    other.load(tmp_path / "model")
    new = batch_of()["image"]
    assert torch.equal(other.eval()(new).anomaly_map, model(new).anomaly_map)
    assert torch.allclose(other(new[:1]).score, other(new).score[:1], atol=1e-5)


def test_scales_apart_hand_nothing_up_and_the_map_stays_a_bijection():
    shapes = [(8, 8, 8), (16, 4, 4), (16, 2, 2)]
    flow = UShapedFlow(shapes, 2, [3, 1], 0, apart=1)
    features = [torch.randn(2, *shape) for shape in shapes]
    latents, _ = flow(features)
    other, _ = flow([*features[:2], features[2] + 1])
    assert torch.equal(latents[0], other[0])
    assert torch.equal(latents[1], other[1])
    assert not torch.equal(latents[2], other[2])
    back, _ = flow.inverse(latents)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(back, features, strict=True))
    joined, _ = UShapedFlow(shapes, 2, [3, 1], 0)([*features[:2], features[2] + 1])
    assert joined[0].shape != latents[0].shape or not torch.equal(joined[0], latents[0])


def test_scales_apart_score_and_stay_out_of_the_map(toy_model):
    images = batch_of()["image"]
    joined = toy_model(likelihood="paper", score="max").eval()(images)
    apart = toy_model(likelihood="paper", score="max", apart=1).eval()
    found = apart(images)
    assert found.anomaly_map.shape == joined.anomaly_map.shape
    assert not torch.equal(found.score, found.anomaly_map.flatten(1).amax(1))
    assert torch.equal(joined.score, joined.anomaly_map.flatten(1).amax(1))
