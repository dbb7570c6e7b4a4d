"""PatchCore as a whole, on a small stand-in backbone: fit, score, hold out, save, stream."""

from __future__ import annotations

import logging

import pytest
import torch

from src.errors import ConfigError, SavedModelError
from src.models.patchcore import streaming
from src.models.patchcore.module import PatchCore
from tests.models.patchcore import stand_ins
from tests.models.patchcore.stand_ins import SIZE, Noise, build, fitted
from tests.reference_patchcore import nearest


def all_patches(model: PatchCore, count: int = 9) -> torch.Tensor:
    return model.patches(Noise(count).images)[0].flatten(1, 2)  # (n, P, D)


@pytest.fixture(scope="module")
def plain() -> PatchCore:
    return fitted()


def test_bank_holds_the_asked_share_with_the_source_of_every_row(plain):
    bank = plain.memory.bank
    patches = all_patches(plain)  # (9, 96, 16)
    assert len(bank) == int(0.2 * 9 * 96)
    image, row, column = bank.origin.long().unbind(1)
    source = patches[image - 100, row * 12 + column]
    torch.testing.assert_close(bank.vectors(), source)


def test_score_is_the_largest_distance_to_the_bank_and_the_map_has_image_size(plain):
    images = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(5))
    found = plain(images)
    patches = plain.patches(images)[0].flatten(0, 2)
    gaps = nearest(patches, plain.memory.bank.vectors(), 1)[0].sqrt().view(3, -1)
    torch.testing.assert_close(found.score, gaps.amax(1).float())
    assert found.anomaly_map.shape == (3, *SIZE)
    assert (found.anomaly_map.amax((1, 2)) <= found.score).all()


def test_an_image_scores_the_same_alone_and_in_any_batch(plain):
    images = torch.randn(5, 3, *SIZE)
    together = plain(images)
    for i in range(5):
        alone = plain(images[i : i + 1])
        torch.testing.assert_close(alone.score[0], together.score[i], rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(
            alone.anomaly_map[0], together.anomaly_map[i], rtol=1e-5, atol=1e-5
        )


def test_training_images_score_zero_when_every_patch_is_kept():
    model = fitted(coreset={"method": "none"})
    assert plain_max(model) < 1e-3


def plain_max(model: PatchCore) -> float:
    return model(Noise(9).images).score.max().item()


@pytest.mark.parametrize("projection_dim", [None, 8])
@pytest.mark.parametrize("neighbors", [1, 3])
def test_held_out_scores_are_those_of_a_bank_without_the_image(projection_dim, neighbors):
    model = fitted(coreset={"projection_dim": projection_dim}, neighbors=neighbors)
    bank = model.memory.bank
    rows = bank.vectors()
    expected = []
    for i, patches in enumerate(all_patches(model)):
        others = bank.origin[:, 0] != 100 + i
        gaps = nearest(patches, rows[others], neighbors)[0].sqrt().mean(1)
        expected.append(gaps.max().float())
    held_out = model.held_out_scores()
    assert held_out is not None
    torch.testing.assert_close(held_out.image, torch.stack(expected))
    assert (held_out.map_max <= held_out.image).all()
    assert (held_out.image >= model(Noise(9).images).score - 1e-4).all()


def test_a_single_training_image_still_gives_finite_scores():
    model = fitted(count=1)
    held_out = model.held_out_scores()
    assert held_out is not None
    assert torch.isfinite(held_out.image).all()
    assert torch.isfinite(model(torch.randn(1, 3, *SIZE)).score).all()


def test_saved_model_predicts_the_same_after_loading(plain, tmp_path):
    plain.save(tmp_path)
    other = build()
    other.load(tmp_path)
    images = torch.randn(2, 3, *SIZE)
    assert torch.equal(plain(images).anomaly_map, other(images).anomaly_map)
    assert torch.equal(plain.held_out_scores().image, other.held_out_scores().image)
    assert not any(key.startswith("backbone") for key in plain.trained_tensors())


def test_tensors_of_another_model_are_refused(plain):
    with pytest.raises(SavedModelError, match="names differ"):
        build().restore_tensors({"memories.0.bank.rows": torch.ones(1)}, {})


def test_same_seed_same_bank_and_batch_size_does_not_matter(plain):
    again = fitted(batch_size=9)
    assert torch.equal(again.memory.bank.origin, plain.memory.bank.origin)


def test_nearest_patches_names_the_source_of_a_kept_training_patch(plain):
    match = plain.nearest_patches(Noise(9).images[3])
    bank = plain.memory.bank
    own = (bank.origin[:, 0] == 103).nonzero()[:, 0]
    for index in own.tolist():
        row, column = bank.origin[index, 1:].tolist()
        assert match.row[row, column] == index
        assert match.image[row, column] == 103
        assert match.place[row, column].tolist() == [row, column]
        assert match.distance[row, column].item() < 1e-3


def test_reweighted_scores_are_lower_and_held_out_ones_follow():
    none, paper = fitted(), fitted(reweight="paper")
    images = torch.randn(3, 3, *SIZE)
    assert (paper(images).score < none(images).score).all()
    assert (paper.held_out_scores().image < none.held_out_scores().image).all()


def test_squared_scores_are_squares_and_cosine_stays_between_zero_and_two():
    images = torch.randn(3, 3, *SIZE)
    plain, squared, cosine = fitted(), fitted(squared=True), fitted(distance="cosine")
    torch.testing.assert_close(squared(images).score, plain(images).score ** 2)
    assert 0.0 <= cosine(images).score.min() <= cosine(images).score.max() <= 2.0
    norms = cosine.memory.bank.vectors(torch.arange(5)).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(5))


def test_plan_is_told_before_the_fit(caplog):
    with caplog.at_level(logging.INFO):
        fitted()
    assert "9 images x 96 patches = 864 vectors of 16 values" in caplog.text
    assert "bank 172 rows" in caplog.text


def test_streaming_gives_a_bank_of_the_same_size_and_held_out_scores(monkeypatch):
    monkeypatch.setattr("src.models.patchcore.streaming._SMALLEST_PART", 64)
    monkeypatch.setattr("src.models.patchcore.streaming.WORKSPACE", 0)
    held = fitted(count=30)
    streamed = fitted(count=30, memory_budget_gb=0.00023)
    assert len(streamed.memory.bank) == len(held.memory.bank)
    patches = all_patches(held, 30).flatten(0, 1)
    radius = [
        nearest(patches, model.memory.bank.vectors(), 1)[0].sqrt().max()
        for model in (held, streamed)
    ]
    assert radius[1] <= radius[0] * 1.15
    assert len(streamed.held_out_scores().image) == 30
    assert (streamed.memory.bank.origin[1:, 0] >= streamed.memory.bank.origin[:-1, 0]).all()


def test_rows_carried_on_know_how_far_they_are_from_all_rows_kept(monkeypatch):
    monkeypatch.setattr("src.models.patchcore.streaming._SMALLEST_PART", 64)
    monkeypatch.setattr("src.models.patchcore.streaming.WORKSPACE", 0)
    known: list[torch.Tensor | None] = []
    select = streaming.greedy_coreset

    def watched(points, size, *, known_gap=None, **options):
        known.append(known_gap)
        if known_gap is not None:
            gap = nearest(points, stream._bank.values[:, -points.shape[1] :], 1)[0].flatten()
            torch.testing.assert_close(known_gap, gap.float(), rtol=1e-4, atol=1e-5)
        return select(points, size, known_gap=known_gap, **options)

    monkeypatch.setattr(streaming, "greedy_coreset", watched)
    options = stand_ins.coreset(ratio=0.1, projection_dim=8)
    cost = streaming.FitCost.of(1000, 16, options, 0.00006)
    stream = streaming.StreamingCoreset(cost, options, 0)
    rows = torch.randn(1000, 16, generator=torch.Generator().manual_seed(3))
    for part in rows.split(100):
        stream.add(part, torch.zeros(len(part), 3, dtype=torch.int32))
    assert len(stream.finish()[0]) == 100
    assert len(known) > 3


def test_a_budget_too_small_for_the_bank_is_refused_with_the_size_it_needs():
    with pytest.raises(ConfigError, match=r"allow 0\.0"):
        fitted(memory_budget_gb=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": None}, "has no size"),
        ({"ratio": None, "stop_radius": 1.0, "method": "random"}, "has no size"),
        ({"block": 0}, "is a count"),
    ],
)
def test_wrong_coreset_settings_are_explained(change, message):
    with pytest.raises(ConfigError, match=message):
        build(coreset=change)


def test_radius_curve_is_drawn_after_a_greedy_selection_only(plain):
    ((_, heights),) = plain.diagnostics()["coreset_radius"].lines.values()
    assert heights == plain.memory.radius.tolist()
    assert fitted(coreset={"method": "random"}).diagnostics() == {}


def test_reweighted_means_of_several_neighbours_fit_an_onnx_file(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    model = fitted(neighbors=3, reweight="paper")
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        model.export_form().eval(), (torch.randn(2, 3, *SIZE),), tmp_path / "model.onnx",
        dynamo=True, input_names=["image"], dynamic_shapes=({0: batch},), verbose=False,
    )  # fmt: skip
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    for count in (1, 5):
        images = torch.randn(count, 3, *SIZE)
        found, expected = session.run(None, {"image": images.numpy()}), model(images)
        torch.testing.assert_close(torch.from_numpy(found[0]), expected.score, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            torch.from_numpy(found[1]), expected.anomaly_map, rtol=1e-4, atol=1e-4
        )
