"""The block-greedy coreset against one-by-one greedy and recorded picks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.models.patchcore import coreset
from src.models.patchcore.coreset import greedy_coreset, random_coreset, random_projection
from tests.models.patchcore import stand_ins
from tests.reference_patchcore import k_center_from_row, k_center_official

ROW_0 = 474  # a seed that draws row 0 of 2000
ROW_START = [
    0, 1042, 1006, 603, 348, 1255, 1322, 1879, 1612, 374,
    1930, 1148, 1604, 1590, 183, 383, 1326, 226, 459, 1734,
]  # fmt: skip
OFFICIAL = [
    1138, 348, 1869, 1981, 1326, 114, 1602, 1042, 1879, 1322,
    1255, 1168, 795, 404, 1583, 1612, 1238, 1668, 544, 1630,
]  # fmt: skip
FARTHEST = [348, 555, 1024, 1668, 1475, 795, 266, 1583, 1612, 338]


@pytest.fixture(scope="module")
def cloud() -> torch.Tensor:
    points = np.random.default_rng(0).standard_normal((2000, 64))
    return torch.from_numpy(points.astype(np.float32))


def clustered(n: int, d: int, seed: int) -> torch.Tensor:
    """Tight clusters of uneven size with a few outliers: most rows freeze early."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((12, d)) * 5
    spread = rng.gamma(1.0, 0.2, (n, 1))
    rows = centres[rng.integers(0, 12, n)] + spread * rng.standard_normal((n, d))
    return torch.from_numpy(rows.astype(np.float32))


def test_picks_from_a_row_are_the_recorded_ones(cloud):
    kept = greedy_coreset(cloud, 200, start="row", seed=ROW_0, block=64).rows
    assert kept[:20].tolist() == ROW_START
    assert int(kept.sum()) == 197_781


def test_picks_of_the_official_start_are_the_recorded_ones(cloud):
    kept = greedy_coreset(cloud, 200, start="official", seed=0, block=64).rows
    assert kept[:20].tolist() == OFFICIAL
    assert int(kept.sum()) == 211_153


def test_farthest_start_is_the_official_full_matrix_sampler(cloud):
    kept = greedy_coreset(cloud, 10, start="farthest", seed=0, block=8).rows
    assert kept.tolist() == FARTHEST


@pytest.mark.parametrize("block", [1, 2, 7, 64, 600])
@pytest.mark.parametrize("start", ["official", "row", "farthest"])
def test_any_block_picks_the_rows_of_one_by_one_greedy(block, start):
    rows = clustered(600, 8, 3)
    kept = greedy_coreset(rows, 90, start=start, seed=4, block=block).rows.tolist()
    if start == "official":
        starts = np.random.RandomState(4).choice(600, 10, replace=False)
        assert kept == k_center_official(rows, 90, starts)
    else:
        assert kept == k_center_from_row(rows, 90, kept[0])
        assert start == "farthest" or kept[0] == np.random.RandomState(4).randint(600)


def test_frozen_rows_keep_exact_distances():
    rows = clustered(3000, 6, 5)
    found = greedy_coreset(rows, 300, start="row", seed=0, block=50)
    gaps = torch.cdist(rows.double(), rows[found.rows].double())
    torch.testing.assert_close(found.distance.double(), gaps.amin(1), atol=3e-3, rtol=0)


def test_duplicates_are_picked_once_each():
    rows = torch.ones(100, 4)
    for start in ("official", "row", "farthest"):
        kept = greedy_coreset(rows, 20, start=start, seed=0, block=16).rows
        assert len(set(kept.tolist())) == 20


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 60),
    d=st.integers(1, 5),
    block=st.integers(1, 70),
    start=st.sampled_from(["official", "row", "farthest"]),
)
def test_picks_are_unique_and_their_radius_never_grows(seed, n, d, block, start):
    rows = torch.from_numpy(np.random.default_rng(seed).integers(-3, 4, (n, d)).astype(np.float32))
    found = greedy_coreset(rows, n, start=start, seed=seed, block=block)
    assert sorted(found.rows.tolist()) == list(range(n))
    radius = found.radius.numpy()
    assert (np.diff(radius[1:]) <= 1e-4).all()
    assert float(found.distance.max()) <= 1e-3


def test_stop_radius_keeps_just_enough_rows_to_cover(cloud):
    full = greedy_coreset(cloud, 300, start="row", seed=ROW_0, block=32)
    limit = float(full.radius[120]) * 1.000001
    found = greedy_coreset(cloud, 2000, start="row", seed=ROW_0, block=32, stop_radius=limit)
    assert found.rows.tolist() == full.rows[:120].tolist()
    assert float(found.distance.max()) <= limit


def test_progress_reports_growing_counts_and_falling_radius(cloud, monkeypatch):
    seen: list[tuple[int, float]] = []

    class Bar(coreset.tqdm):
        def update(self, n=1):
            self.n += n
            seen.append((self.n, float(self.postfix.removeprefix("radius="))))

    monkeypatch.setattr(coreset, "tqdm", Bar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    greedy_coreset(cloud, 300, start="row", seed=0, block=32)
    assert seen[-1][0] == 300
    assert all(a[0] < b[0] and a[1] >= b[1] for a, b in itertools.pairwise(seen))


def test_projection_keeps_distances_on_average_and_draws_like_the_official_layer():
    rows = torch.randn(400, 256, generator=torch.Generator().manual_seed(0))
    small = random_projection(rows, 128, seed=3)
    ratio = torch.pdist(small).mean() / torch.pdist(rows).mean()
    assert ratio.item() == pytest.approx(1.0, abs=0.05)
    torch.manual_seed(3)
    official = torch.nn.Linear(256, 128, bias=False)(rows).detach()
    torch.testing.assert_close(small / 6**0.5, official)


def test_random_coreset_draws_without_replacement_and_repeats_with_its_seed():
    kept = random_coreset(1000, 100, seed=5)
    assert len(set(kept.tolist())) == 100
    assert torch.equal(kept, random_coreset(1000, 100, seed=5))
    assert not torch.equal(kept, random_coreset(1000, 100, seed=6))


@pytest.mark.parametrize(("shots", "kept"), [(1, 50), (16, 50), (17, 10), (None, 10)])
def test_of_few_shots_every_row_is_kept(shots, kept):
    assert stand_ins.coreset(shots=shots, ratio=0.2).size(50) == kept
