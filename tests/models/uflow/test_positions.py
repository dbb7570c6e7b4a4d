"""U-Flow whose latents are standardised at each place, in the whole module."""

from __future__ import annotations

import torch

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
