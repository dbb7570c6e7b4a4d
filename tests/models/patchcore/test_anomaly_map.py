"""Anomaly maps against SciPy, and Eq. 7 against recorded values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from src.models.patchcore.options import Distance
from src.models.patchcore.region import smooth_maps
from src.models.patchcore.scores import euclidean_and_cosine, neighbourhood_weight, patch_score
from tests.models.patchcore.stand_ins import options
from tests.reference_patchcore import k_center_from_row, nearest, official_map


@pytest.mark.parametrize(
    ("grid", "size"),
    [((28, 28), (224, 224)), ((40, 40), (320, 320)), ((14, 14), (224, 224)), ((4, 9), (17, 31))],
)
@pytest.mark.parametrize("sigma", [4.0, 1.3])
def test_maps_equal_scipy_after_bilinear_resize(grid, size, sigma):
    scores = np.random.default_rng(0).gamma(2.0, 5.0, (3, *grid)).astype(np.float32)
    maps = smooth_maps(torch.from_numpy(scores), size, sigma)
    expected = np.stack([official_map(s, size, sigma) for s in scores])
    np.testing.assert_allclose(maps.numpy(), expected, atol=5e-5)


def test_no_blur_is_the_bilinear_resize_and_constants_stay_constant():
    scores = torch.rand(2, 5, 7)
    resized = torch.nn.functional.interpolate(scores[:, None], size=(40, 21), mode="bilinear")
    torch.testing.assert_close(smooth_maps(scores, (40, 21), 0.0), resized[:, 0])
    flat = smooth_maps(torch.full((1, 3, 3), 7.0), (9, 50), 4.0)
    torch.testing.assert_close(flat, torch.full((1, 9, 50), 7.0))


def spec_case():
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((2000, 64)).astype("float32"))
    bank = rows[k_center_from_row(rows, 200, 0)]
    query = torch.from_numpy(np.random.default_rng(1).standard_normal((50, 64)).astype("float32"))
    q, match = query[18:19], bank[88:89]
    near = nearest(match, bank, 9)[1][0]
    return (q - match).norm(dim=1), (q - bank[near]).norm(dim=1)[None]


def test_reweighting_of_the_paper_gives_the_recorded_score():
    nearest_, neighbours = spec_case()
    weight = neighbourhood_weight("paper", nearest_, neighbours, 64)
    assert (weight * nearest_).item() == pytest.approx(10.675658, rel=1e-6)


def test_scaled_reweighting_gives_the_recorded_score():
    nearest_, neighbours = spec_case()
    weight = neighbourhood_weight("scaled", nearest_, neighbours, 64)
    assert (weight * nearest_).item() == pytest.approx(9.805326, rel=1e-6)


def test_reweighting_stays_finite_for_huge_distances():
    weight = neighbourhood_weight("paper", torch.tensor([5e3]), torch.tensor([[5e3, 5.1e3]]), 4)
    assert math.isfinite(weight.item())
    assert 0.0 <= weight.item() <= 1.0


def test_patch_score_is_the_mean_of_its_k_distances():
    gaps = torch.tensor([[4.0, 9.0], [1.0, 1.0]])
    torch.testing.assert_close(patch_score(gaps, options()), torch.tensor([2.5, 1.0]))
    squared = patch_score(gaps, options(squared=True))
    torch.testing.assert_close(squared, torch.tensor([6.5, 1.0]))


def test_cosine_score_is_one_minus_the_cosine():
    a, b = torch.nn.functional.normalize(torch.randn(2, 50, 8), dim=2)
    gap = (a - b).square().sum(1, keepdim=True)
    score = patch_score(gap, options(distance=Distance.cosine))
    torch.testing.assert_close(score, 1 - torch.cosine_similarity(a, b))


def test_distances_of_figures_equal_those_computed_pair_by_pair():
    rng = np.random.default_rng(0)
    patches, rows = (rng.normal(size=size).astype("float32") for size in ((3, 4, 7), (11, 7)))
    euclidean, cosine = euclidean_and_cosine(torch.from_numpy(patches), torch.from_numpy(rows))
    for place in np.ndindex(3, 4):
        p = patches[place]
        slow = min(np.sqrt(((p - b) ** 2).sum()) for b in rows)
        assert euclidean[place].item() == pytest.approx(slow, rel=1e-5)
        angles = [1 - p @ b / np.linalg.norm(p) / np.linalg.norm(b) for b in rows]
        assert cosine[place].item() == pytest.approx(min(angles), abs=1e-5)


def test_a_vector_of_length_zero_has_distances_too():
    euclidean, cosine = euclidean_and_cosine(torch.zeros(1, 1, 3), torch.ones(2, 3))
    assert euclidean.item() == pytest.approx(np.sqrt(3))
    assert cosine.item() == pytest.approx(1.0)
