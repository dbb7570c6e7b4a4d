"""A memory for each layer, references chosen by tokens, and the recipes made of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from src.errors import ConfigError
from src.models.patchcore.coreset import greedy_coreset
from src.models.patchcore.region import smooth_maps
from src.models.patchcore.scores import image_score
from src.result import Calibration
from tests.models.patchcore.stand_ins import SIZE, Noise, TwoMaps, build, fitted

APART = {"memories": "per_layer"}


class OneMap(TwoMaps):
    """One of the two maps, as a network of its own."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.channels, self.identity = at, (TwoMaps.channels[at],), f"map {at}"

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [super().forward(image)[self.at]]


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(5))


def test_layers_with_a_memory_each_are_an_ensemble_of_networks_with_one_layer(images):
    layers, networks = fitted(**APART), fitted(OneMap(0), OneMap(1))
    assert [tuple(one.grid.shape[1:]) for one in layers._scores(images)] == [(8, 12), (4, 6)]
    torch.testing.assert_close(layers(images).score, networks(images).score)
    torch.testing.assert_close(layers(images).anomaly_map, networks(images).anomaly_map)
    torch.testing.assert_close(layers.held_out_scores().image, networks.held_out_scores().image)


def test_without_a_common_scale_the_mean_map_is_scored(images):
    changes = {**APART, "normalisation": "none", "distance": "cosine", "score": "top"}
    model = fitted(**changes)
    fine, coarse = (one.grid for one in model._scores(images))
    found = model(images)
    maps = [smooth_maps(grid, SIZE, model.options.sigma) for grid in (fine, coarse)]
    torch.testing.assert_close(found.anomaly_map, (maps[0] + maps[1]) / 2)
    coarse = F.interpolate(coarse[:, None], size=fine.shape[1:], mode="bilinear")[:, 0]
    expected = image_score(((fine + coarse) / 2).flatten(1), model.options)
    torch.testing.assert_close(found.score, expected)
    assert model.held_out_scores().way == Calibration.leave_one_out


def test_memories_of_layers_look_at_a_region_on_their_own_grids_and_are_saved(tmp_path, images):
    roi = torch.zeros(SIZE, dtype=torch.bool)
    roi[4:28, 8:40] = True
    model = build(**APART)
    model.look_at(roi)
    for memory, maps in zip(model.memories, model.backbone(Noise(9).images), strict=True):
        memory.begin(9)
        memory.add(maps, {"index": torch.arange(9)})
    model._note_held_out([memory.finish() for memory in model.memories], Calibration.cross)
    model.save(tmp_path)
    loaded = build(**APART)
    loaded.load(tmp_path)
    torch.testing.assert_close(loaded(images).anomaly_map, model(images).anomaly_map)
    grids = [memory.region.place.shape for memory in loaded.memories]
    assert grids == [(8, 12), (4, 6)]


@pytest.mark.parametrize("memories", ["joint", "per_layer"])
def test_only_the_images_that_cover_the_others_are_remembered(memories):
    model = fitted(memories=memories, references=0.5, coreset={"method": "none"}, batch_size=2)
    tokens = TwoMaps().describe(Noise(9).images)
    cover = greedy_coreset(tokens, 4, start=model.options.coreset.start, seed=0, block=64)
    for memory in model.memories:
        kept = sorted(set((memory.bank.origin[:, 0] - 100).tolist()))
        assert kept == sorted(cover.rows.tolist())
    assert len(model.held_out_scores().image) == 9


def test_each_fold_chooses_its_references_among_the_others():
    changes = {"references": 0.5, "coreset": {"method": "none"}}
    model = fitted(held_out="cross", folds=9, **changes)
    grids, tokens = model.patches(Noise(9).images)[0], TwoMaps().describe(Noise(9).images)
    start = model.options.coreset.start
    for i in range(9):
        others = [j for j in range(9) if j != i]
        cover = greedy_coreset(tokens[others], 4, start=start, seed=0, block=64).rows
        rows = grids[[others[j] for j in cover.tolist()]].flatten(0, 2)
        expected = torch.cdist(grids[i].flatten(0, 1), rows).amin(1).max()
        torch.testing.assert_close(model.held_out_scores().image[i], expected, rtol=1e-3, atol=1e-3)


def test_references_need_all_patches_at_once():
    with pytest.raises(ConfigError, match="References and windows"):
        fitted(references=0.5, memory_budget_gb=0.001)
