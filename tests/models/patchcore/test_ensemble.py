"""The ensemble: one bank a member, scores on a common scale, saved and loaded."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from src.errors import ConfigError
from src.models.patchcore.ensemble import PatchCoreEnsemble, held_out_scale
from src.models.patchcore.memory import Scored
from tests.models.patchcore.stand_ins import OPTIONS, SIZE, Noise, TwoMaps


class Louder(TwoMaps):
    """The same features in another unit, as another network would give."""

    identity = "louder"

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [50.0 * feature for feature in super().forward(image)]


def build(normalisation: str = "held_out", **options) -> PatchCoreEnsemble:
    return PatchCoreEnsemble(
        [TwoMaps(), Louder()], **(OPTIONS | {"normalisation": normalisation} | options)
    )


def trainer() -> pl.Trainer:
    return pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def fitted(normalisation: str = "held_out", **options) -> PatchCoreEnsemble:
    model, loader = build(normalisation, **options), DataLoader(Noise(12), 4)
    trainer().fit(model, loader)
    model.eval()
    model.after_fit(loader)
    return model


@pytest.fixture(scope="module")
def plain() -> PatchCoreEnsemble:
    return fitted()


def test_members_in_other_units_weigh_the_same(plain):
    images = torch.randn(4, 3, *SIZE)
    found = plain(images)
    parts = [memory.score(net(images)) for net, memory in plain._members()]
    scaled = [
        (part.image - scale[0, 0]) / scale[0, 1]
        for part, scale in zip(parts, plain.scale, strict=True)
    ]
    torch.testing.assert_close(scaled[0], scaled[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.score, (scaled[0] + scaled[1]) / 2)
    assert found.anomaly_map.shape == (4, *SIZE)


def test_held_out_scores_are_centred_and_of_unit_spread(plain):
    held_out = plain.held_out_scores()
    assert held_out is not None
    assert held_out.image.shape == held_out.map_max.shape == (12,)
    assert held_out.image.sort().values[6].abs().item() < 0.2
    assert 0.5 < held_out.image.max().item() < 5.0


def test_an_image_scores_the_same_alone_and_in_a_batch(plain):
    images = torch.randn(3, 3, *SIZE)
    together = plain(images)
    for i in range(3):
        alone = plain(images[i : i + 1])
        torch.testing.assert_close(alone.score[0], together.score[i], rtol=1e-4, atol=1e-4)


def test_saved_ensemble_predicts_the_same_after_loading(plain, tmp_path):
    plain.save(tmp_path)
    other = build()
    other.load(tmp_path)
    images = torch.randn(2, 3, *SIZE)
    assert torch.equal(plain(images).score, other(images).score)


def test_the_export_form_gives_the_same_numbers_for_any_batch(plain):
    graph = torch.export.export(
        plain.export_form().eval(), (torch.randn(2, 3, *SIZE),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},), strict=False,
    ).module()  # fmt: skip
    for count in (1, 5):
        images = torch.randn(count, 3, *SIZE)
        found, expected = graph(images), plain(images)
        torch.testing.assert_close(found[0], expected.score, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[1], expected.anomaly_map, rtol=1e-4, atol=1e-4)


def test_official_scaling_uses_the_range_of_the_images_predicted():
    model = fitted("test_set")
    assert model.held_out_scores() is None
    loader = DataLoader(Noise(8), 4)
    parts = trainer().predict(model, loader)
    for net, memory in model._members():
        scores = memory.score(net(Noise(8).images)).image
        assert scores.min() < scores.max()
    scores = torch.cat([part.score for part in parts])
    assert scores.min().item() == pytest.approx(0.0, abs=1e-4)
    assert scores.max().item() == pytest.approx(1.0, abs=1e-4)


def test_scale_of_constant_scores_is_one_instead_of_zero():
    scale = held_out_scale(Scored(torch.ones(5), torch.ones(5, 2, 2)))
    assert scale.tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_unknown_normalisation_is_explained():
    with pytest.raises(ConfigError, match="Did you mean 'held_out'"):
        build("heldout")
