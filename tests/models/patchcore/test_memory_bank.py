"""Exact search, its back ends, and what it refuses."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.errors import ConfigError
from src.models.patchcore.bank import MemoryBank
from src.models.patchcore.nearest import smallest
from tests.models.patchcore.stand_ins import search
from tests.reference_patchcore import k_center_from_row, nearest


def make_bank(rows: torch.Tensor, images: int = 10, **options) -> MemoryBank:
    bank = MemoryBank(search(**({"nprobe": 8} | options)))
    M = len(rows)
    image = torch.arange(M) * images // M
    origin = torch.stack([image, torch.arange(M) // 7, torch.arange(M) % 7], 1)
    bank.fill(rows, origin)
    return bank


@pytest.fixture(scope="module")
def cloud():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1301, 12, generator=generator), torch.randn(600, 12, generator=generator)


@pytest.mark.parametrize("backend", ["flat", "faiss"])
@pytest.mark.parametrize("k", [1, 3, 9])
def test_search_equals_brute_force(cloud, backend, k):
    rows, queries = cloud
    distance, row = make_bank(rows, backend=backend).search(queries, k)
    expected, at = nearest(queries, rows, k)
    assert torch.equal(row, at)
    torch.testing.assert_close(distance, expected.float(), rtol=1e-5, atol=1e-5)


def test_search_of_the_spec_finds_query_18_at_bank_position_88():
    points = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    rows = torch.from_numpy(points)
    kept = rows[k_center_from_row(rows, 200, 0)]
    queries = np.random.default_rng(1).standard_normal((50, 64)).astype(np.float32)
    distance, row = make_bank(kept).search(torch.from_numpy(queries), 1)
    worst = int(distance[:, 0].argmax())
    assert (worst, int(row[worst, 0])) == (18, 88)
    assert distance[worst, 0].item() == pytest.approx(119.770241, rel=1e-6)


def test_a_query_that_is_in_the_bank_has_distance_zero_despite_large_norms():
    rows = torch.randn(500, 16) + 1000.0
    distance, row = make_bank(rows).search(rows.clone(), 1)
    assert distance.max().item() == 0.0
    assert torch.equal(row[:, 0], torch.arange(500))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_equal_rows_are_found_lowest_first(k):
    generator = torch.Generator().manual_seed(k)
    rows = torch.randn(190, 6, generator=generator).repeat(8, 1)
    queries = torch.randn(60, 6, generator=generator)
    bank = make_bank(rows)
    expected = nearest(queries, rows, k)[1]
    assert torch.equal(bank.search(queries, k).row, expected)
    assert torch.equal(bank.search(queries, k).row, bank.search(queries, k).row)


def test_a_batch_gives_each_query_what_it_gets_alone(cloud):
    rows, queries = cloud
    bank = make_bank(rows)
    together = bank.search(queries, 2)
    for i in (0, 511, 512, 599):
        alone = bank.search(queries[i : i + 1], 2)
        assert torch.equal(alone.row[0], together.row[i])
        torch.testing.assert_close(alone.distance[0], together.distance[i])


@pytest.mark.parametrize("backend", ["flat", "ivf"])
def test_leaving_an_image_out_equals_a_bank_without_its_rows(cloud, backend):
    rows, queries = cloud
    bank = make_bank(rows, backend=backend)
    others = bank.origin[:, 0] != 4
    expected, at = nearest(queries, rows[others], 2)
    found = bank.search(queries, 2, without=4)
    assert torch.equal(found.row, others.nonzero()[:, 0][at])
    torch.testing.assert_close(found.distance, expected.float(), rtol=1e-5, atol=1e-5)


def test_leaving_out_the_only_image_leaves_nothing_to_match():
    bank = make_bank(torch.randn(30, 4), images=1)
    assert torch.isinf(bank.search(torch.randn(5, 4), 3, without=0).distance).all()


def test_half_precision_storage_halves_the_bytes_and_keeps_distances(cloud):
    rows, queries = cloud
    half, full = make_bank(rows, dtype="float16"), make_bank(rows)
    assert half.rows.nbytes * 2 == full.rows.nbytes
    expected = full.search(queries, 1).distance
    torch.testing.assert_close(half.search(queries, 1).distance, expected, rtol=2e-3, atol=1e-2)


def test_half_precision_refuses_values_beyond_its_range():
    with pytest.raises(ConfigError, match="not finite"):
        make_bank(torch.randn(4, 4) * 1e6, dtype="float16")


def test_inverted_lists_never_report_a_smaller_distance_than_the_exact_one(cloud):
    rows, queries = cloud
    exact = make_bank(rows).search(queries, 1).distance
    found = make_bank(rows, backend="ivf", cells=40, nprobe=4).search(queries, 1).distance
    assert (found >= exact - 1e-5).all()
    everything = make_bank(rows, backend="ivf", cells=40, nprobe=40).search(queries, 1).distance
    torch.testing.assert_close(everything, exact)


def test_score_error_is_zero_for_exact_search_and_positive_for_too_few_lists(cloud):
    rows, queries = cloud
    images = queries.view(6, 100, -1)
    assert make_bank(rows, backend="faiss").score_error(images) == 0.0
    few = make_bank(rows, backend="ivf", cells=40, nprobe=1)
    exact = make_bank(rows).search(queries, 1).distance.sqrt().view(6, 100).amax(1)
    found = few.search(queries, 1).distance.sqrt().view(6, 100).amax(1)
    assert few.score_error(images) == pytest.approx(float((found / exact - 1).mean()), rel=1e-3)
    assert few.score_error(images) > 0.0


def test_missing_faiss_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match="backend=flat"):
        MemoryBank(search(backend="ivf"))


@settings(max_examples=40, deadline=None)
@given(t=st.integers(1, 9), n=st.integers(1, 400), k=st.integers(1, 12), seed=st.integers(0, 99))
def test_two_step_minimum_finds_the_smallest_values(t, n, k, seed):
    values = torch.randint(0, 50, (t, n), generator=torch.Generator().manual_seed(seed)).float()
    found, column = smallest(values, k)
    expected = values.sort(1).values[:, : min(k, n)]
    assert torch.equal(found.sort(1).values, expected)
    assert torch.equal(values.gather(1, column), found)
