"""The ensemble: one bank a member, scores on a common scale, saved and loaded."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from src.models.patchcore.module import PatchCore
from src.models.patchcore.scores import Scored, held_out_scale
from tests.models.patchcore.stand_ins import SIZE, Noise, TwoMaps, build, fitted, trainer


class Louder(TwoMaps):
    """The same features in another unit, as another network would give."""

    identity = "louder"

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [50.0 * feature for feature in super().forward(image)]


def ensemble(**changes) -> PatchCore:
    return fitted(TwoMaps(), Louder(), count=12, **changes)


@pytest.fixture(scope="module")
def plain() -> PatchCore:
    return ensemble()


def test_members_in_other_units_weigh_the_same(plain):
    images = torch.randn(4, 3, *SIZE)
    found = plain(images)
    parts = [m.score(p) for m, p in zip(plain.memories, plain.patches(images), strict=True)]
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
    other = build(TwoMaps(), Louder())
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
    model = ensemble(normalisation="test_set")
    assert model.held_out_scores() is None
    loader = DataLoader(Noise(8), 4)
    parts = trainer().predict(model, loader)
    for memory, patches in zip(model.memories, model.patches(Noise(8).images), strict=True):
        scores = memory.score(patches).image
        assert scores.min() < scores.max()
    scores = torch.cat([part.score for part in parts])
    assert scores.min().item() == pytest.approx(0.0, abs=1e-4)
    assert scores.max().item() == pytest.approx(1.0, abs=1e-4)


def test_scale_of_constant_scores_is_one_instead_of_zero():
    scale = held_out_scale(Scored(torch.ones(5), torch.ones(5, 2, 2)))
    assert scale.tolist() == [[1.0, 1.0], [1.0, 1.0]]
