"""A window of places: what a patch is compared with, against a search written out in loops."""

from __future__ import annotations

import pytest
import torch

from src.errors import ConfigError
from src.models.patchcore.bank import MemoryBank, cover_places, surroundings
from src.models.patchcore.options import SearchOptions
from src.models.patchcore.streaming import patch_origins
from tests.models.patchcore.stand_ins import SIZE, Noise, build, fitted, options, search

NONE = {"method": "none"}


def bank_of(grids: torch.Tensor, radius: int | None, dtype: str = "float32") -> MemoryBank:
    n, h, w, _ = grids.shape
    bank = MemoryBank(SearchOptions(**vars(search(window=radius, dtype=dtype))))
    bank.fill(grids.flatten(0, 2), patch_origins(torch.arange(n), h, w))
    return bank


def in_loops(queries, grids, radius, k, without=None):
    """(B, h, w, k) squared distances to the k nearest patches around the same place."""
    B, h, w, _ = queries.shape
    kept = [i for i in range(len(grids)) if i != without]
    found = torch.empty(B, h, w, k)
    for b in range(B):
        for i in range(h):
            for j in range(w):
                rows = slice(max(0, i - radius), i + radius + 1)
                columns = slice(max(0, j - radius), j + radius + 1)
                near = grids[kept, rows, columns].flatten(0, 2)
                gap = (near - queries[b, i, j]).square().sum(1)
                found[b, i, j] = gap.sort().values[:k]
    return found


@pytest.mark.parametrize("radius", [0, 1, 2, 9])
@pytest.mark.parametrize(("k", "without"), [(1, None), (3, None), (1, 2), (2, 2)])
def test_a_patch_meets_the_patches_around_its_place_and_no_others(radius, k, without):
    generator = torch.Generator().manual_seed(0)
    grids = torch.rand(4, 5, 7, 3, generator=generator)
    queries = torch.rand(2, 5, 7, 3, generator=generator)
    match = bank_of(grids, radius).search(queries.flatten(0, 2), k, without)
    expected = in_loops(queries, grids, radius, k, without)
    torch.testing.assert_close(match.distance.view(2, 5, 7, k), expected, rtol=1e-4, atol=1e-6)


def test_the_row_of_a_match_names_where_it_stems_from():
    generator = torch.Generator().manual_seed(0)
    grids = torch.rand(4, 5, 7, 3, generator=generator)
    bank = bank_of(grids, 1)
    match = bank.search(grids[2].flatten(0, 1), 1)
    image, row, column = bank.origin[match.row[:, 0]].unbind(1)
    assert (image == 2).all()
    assert (row * 7 + column).tolist() == list(range(35))
    torch.testing.assert_close(bank.vectors(match.row[:, 0]), grids[2].flatten(0, 1))


def test_neighbours_stand_in_opposite_columns_and_gaps_have_none():
    origin = patch_origins(torch.arange(1), 3, 4)[[0, 1, 2, 5, 7, 11]]  # a region with holes
    around = surroundings(origin, 1)
    assert around[:, 4].tolist() == list(range(6))
    for place, row in enumerate(around.tolist()):
        for column, other in enumerate(row):
            assert other == -1 or around[other, 8 - column] == place
    far = (origin[:, None, 1:] - origin[None, :, 1:]).abs().amax(2) > 1
    for place, row in enumerate(around.tolist()):
        assert {x for x in row if x >= 0} == set((~far[place]).nonzero()[:, 0].tolist())


def test_no_other_image_of_a_place_gives_no_match():
    grids = torch.rand(1, 2, 2, 3)
    assert bank_of(grids, 1).search(grids[0].flatten(0, 1), 1, 0).distance.isinf().all()


def test_half_precision_rows_stay_close():
    grids = torch.rand(6, 5, 7, 16, generator=torch.Generator().manual_seed(0))
    queries = torch.rand(35, 16)
    exact, rough = (bank_of(grids, 1, kind).search(queries, 1) for kind in ("float32", "float16"))
    torch.testing.assert_close(rough.distance, exact.distance, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("held_out", ["cross", "leave_one_out"])
def test_a_fold_is_scored_by_the_other_images_around_each_place(held_out):
    model = fitted(held_out=held_out, folds=9, coreset=NONE, search=search(window=1))
    grids = model.patches(Noise(9).images)[0]
    scores = model.held_out_scores().image
    for i in range(9):
        gaps = in_loops(grids[i : i + 1], grids, 1, 1, without=i)
        torch.testing.assert_close(scores[i], gaps.sqrt().max(), rtol=1e-4, atol=1e-4)


def test_a_region_a_saved_model_and_explanations_know_the_window(tmp_path):
    roi = torch.zeros(SIZE, dtype=torch.bool)
    roi[4:28, 8:40] = True
    changes = {"coreset": NONE, "search": search(window=1)}
    model = build(**changes)
    model.look_at(roi)
    for memory in model.memories:
        memory.begin(9)
        memory.add(model.backbone(Noise(9).images)[0], {"index": torch.arange(9), **ALONE})
        memory.finish()
    model.save(tmp_path)
    loaded = build(**changes)
    loaded.load(tmp_path)
    images = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(loaded(images).anomaly_map, model(images).anomaly_map)
    match = loaded.nearest_patches(images[0])
    places = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(12), indexing="ij"), 2)
    seen = loaded.memory.region.place >= 0
    assert seen.sum() == 48
    assert (match.place - places)[seen].abs().max() == 1


ALONE: dict[str, torch.Tensor] = {}


@pytest.mark.parametrize(
    "change",
    [
        {"coreset": {"ratio": 0.01}},
        {"coreset": {"stop_radius": 1.0}},
        {"coreset": {"method": "random"}},
        {"reweight": "paper"},
        {"search": search(window=1, backend="ivf")},
    ],
)
def test_a_window_wants_every_patch_and_an_exact_search(change):
    with pytest.raises(ConfigError, match="window of places needs"):
        options(**({"coreset": NONE, "search": search(window=1)} | change))


def test_a_coreset_of_each_place_is_the_greedy_cover_of_its_patches():
    grids = torch.rand(9, 6, 4, generator=torch.Generator().manual_seed(0))
    rows = cover_places(grids, 3)
    assert rows.tolist() == sorted(rows.tolist())
    for place in range(6):
        points = grids[:, place].double()
        gap, expected = (points - points.mean(0)).norm(dim=1), []
        for _ in range(3):
            expected.append(int(gap.argmax()))
            gap = torch.minimum(gap, torch.cdist(points, points[expected[-1:]])[:, 0])
        found = [row // 6 for row in rows.tolist() if row % 6 == place]
        assert found == sorted(expected)


def test_a_bank_of_places_keeps_as_many_rows_of_each_also_in_folds():
    model = fitted(held_out="cross", folds=3, coreset={"ratio": 0.5}, search=search(window=1))
    bank = model.memory.bank
    assert len(bank) == 4 * 8 * 12
    assert (bank.origin[:, 1] * 12 + bank.origin[:, 2]).bincount().tolist() == [4] * 96
    source = model.patches(Noise(9).images)[0]
    image, row, column = bank.origin.long().unbind(1)
    torch.testing.assert_close(bank.vectors(), source[image - 100, row, column])


def test_an_exported_graph_searches_around_places_too():
    model = fitted(coreset=NONE, search=search(window=1))
    form = model.export_form()
    images = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(5))
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(form, (images,), dynamic_shapes=({0: batch},)).module()
    for some in (images, images[:1]):
        torch.testing.assert_close(program(some)[0], model(some).score, rtol=1e-4, atol=1e-4)
