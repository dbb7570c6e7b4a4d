"""The unsupervised threshold: golden values, brute force, noise control, tails, options."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import binom

from src.models.uflow.nfa import (
    CANDIDATE_LEVEL,
    POLYOMINOES,
    log10_chi2_tail,
    log10_figures,
    log10_number_of_tests,
    log10_tail,
    log_nfa,
    offset_from_normals,
    tree_log_probability,
)
from src.models.uflow.options import NfaOptions
from src.models.uflow.region_tree import region_tree, significant_regions
from tests.reference_uflow import (
    chernoff,
    count_polyominoes,
    flood_regions,
    significant_by_procedures,
)


def settings(**changes):
    paper = {
        "method": "tree",
        "tail": "bound",
        "lower_tail": "clamp",
        "counts": "asymptotic",
        "tests": "total",
        "calibrate": False,
    }
    return NfaOptions(**(paper | changes))


def golden_latents():
    torch.manual_seed(0)
    fine, coarse = torch.randn(1, 816, 28, 28), torch.randn(1, 192, 14, 14)
    fine[..., 8:14, 10:16] *= 1.4
    return [fine, coarse]


# --- the tree and its surviving regions --------------------------------------------------------


def random_map(seed):
    """3x3 to 7x7; every third with ties, every fourth around 1 and smooth."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(3, 8, size=2)
    if seed % 4 == 3:
        return np.cumsum(rng.normal(0.0, 0.2, shape), axis=1) + 1.2
    values = rng.gamma(2.0, 0.6, shape)
    return np.round(values * 3) / 3 if seed % 3 == 0 else values


@pytest.mark.parametrize("seed", range(12))
def test_tree_holds_exactly_the_regions_that_flood_fill_finds(seed):
    values = random_map(seed)
    tree = region_tree(values)
    expected = sorted((level, len(pixels)) for level, pixels in flood_regions(values))
    assert sorted(zip(tree.level.tolist(), tree.area.tolist(), strict=True)) == expected
    assert np.array_equal(tree.level[tree.node], values)


@pytest.mark.parametrize("clamp", [True, False])
def test_one_pass_equals_the_paper_s_alternating_procedures(clamp):
    for seed in range(120):
        values = np.maximum(random_map(seed), 0.05)
        channels = (2, 8, 40)[seed % 3]
        expected = significant_by_procedures(
            values, lambda level, area, c=channels: chernoff(level, area, c, clamp)
        )
        how = settings(lower_tail="clamp" if clamp else "legacy")
        ours = tree_log_probability(values, channels, how)
        np.testing.assert_allclose(ours, np.nan_to_num(expected), rtol=1e-6, atol=1e-9)
        if not clamp:  # the clamp flattens the ground first; supports agree where P < 1
            tree = region_tree(values)
            found = significant_regions(tree, tree.area * log10_tail(tree.level, channels, how))
            assert np.array_equal(np.isnan(found), np.isnan(expected))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (2, 9), (9, 2), (5, 1)])
def test_maps_of_one_or_two_rows_are_handled_as_any_other(shape):
    values = np.random.default_rng(3).gamma(2.0, 0.7, shape)
    expected = significant_by_procedures(values, lambda level, area: chernoff(level, area, 8, True))
    ours = tree_log_probability(values, 8, settings())
    np.testing.assert_allclose(ours, np.nan_to_num(expected), rtol=1e-6, atol=1e-12)


def test_regions_of_equal_probability_do_not_erase_each_other():
    values = np.full((5, 7), 0.8)
    values[1:3, 1:3] = values[1:3, 4:6] = 2.0
    ours = tree_log_probability(values, 8, settings())
    assert np.array_equal(ours < 0, values == 2.0)
    assert np.unique(ours).size == 2


@pytest.mark.parametrize(
    ("channels", "block", "column"), [(8, -1.176916, -2.028014), (64, -9.415325, -16.224110)]
)
@pytest.mark.parametrize("lower_tail", ["clamp", "legacy"])
def test_golden_5x5_map(channels, block, column, lower_tail):
    values = np.array(
        [
            [0.9, 0.8, 0.7, 0.6, 0.5],
            [1.0, 2.0, 1.8, 0.7, 0.6],
            [0.9, 1.9, 1.7, 0.8, 3.0],
            [0.8, 0.9, 0.8, 0.7, 2.5],
            [0.7, 0.6, 0.5, 0.6, 0.7],
        ],
        dtype=np.float32,
    )  # fmt: skip
    expected = np.zeros((5, 5))
    expected[1:3, 1:3] = block
    expected[2:4, 4] = column
    ours = tree_log_probability(values, channels, settings(lower_tail=lower_tail))
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=0)


# --- number of tests ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixels", "value"),
    [
        ((784, 196), 476.92371),
        ((4096, 1024, 256), 2493.27200),
        ((196,), 118.949355),
        ((25,), 14.849721),
        ((9,), 5.122185),
        ((4,), 2.114846),
        ((1,), 0.109744),
    ],
)
def test_log_number_of_tests_has_the_known_values(pixels, value):
    assert log10_number_of_tests(pixels, "asymptotic") == pytest.approx(value, abs=6e-6)


def test_polyominoes_are_counted_right():
    assert list(POLYOMINOES[:8]) == count_polyominoes(8)


def test_exact_counts_equal_an_integer_sum_on_small_maps():
    by_hand = math.log10(25 * sum(POLYOMINOES[:25]) + 4 * sum(POLYOMINOES[:4]))
    assert log10_number_of_tests((25, 4), "exact") == pytest.approx(by_hand, abs=1e-12)
    assert log10_number_of_tests((1,), "exact") == 0.0  # one pixel: one test
    np.testing.assert_allclose(
        10 ** log10_figures(np.array([1, 2, 5, 28]), "exact"), [1, 2, 63, POLYOMINOES[27]]
    )


def test_exact_and_asymptotic_numbers_of_tests_agree_on_real_maps():
    for pixels in ((784, 196), (4096, 1024, 256), (64,)):
        difference = log10_number_of_tests(pixels, "exact") - log10_number_of_tests(
            pixels, "asymptotic"
        )
        assert abs(difference) < 1e-9


def test_the_number_of_tests_covers_every_connected_figure_of_a_map():
    shape, figures = (3, 3), set()
    for bits in range(1, 2**9):
        mask = np.array([(bits >> n) & 1 for n in range(9)]).reshape(shape)
        regions = [r for level, r in flood_regions(mask) if level == 1]
        if len(regions) == 1:
            figures.add(regions[0])
    assert len(figures) == 218  # connected subsets of the 3x3 grid graph (OEIS A059525)
    assert log10_number_of_tests((9,), "exact") >= math.log10(len(figures))


# --- tails -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dof", [1, 8, 192, 816])
def test_exact_tail_equals_high_precision_far_beyond_double_range(dof):
    mpmath.mp.dps = 40
    for t in (0.5, 1.0, 1.3, 2.0, 6.0, 40.0, 3000.0):
        exact = mpmath.gammainc(mpmath.mpf(dof) / 2, dof * t / 2, mpmath.inf, regularized=True)
        ours = float(log10_chi2_tail(np.array(dof * t), dof))
        assert ours == pytest.approx(float(mpmath.log10(exact)), rel=1e-9, abs=1e-12)


def test_the_bound_is_above_the_exact_tail_and_clamped_below_the_mean():
    t = np.linspace(0.05, 6.0, 200)
    bound = log10_tail(t, 192, settings())
    assert (bound >= log10_tail(t, 192, settings(tail="exact"))).all()
    assert (bound[t <= 1] == 0).all()
    assert log10_tail(np.array([1.2, 1.5, 2.0]), 816, settings()) == pytest.approx(
        [-3.13, -16.75, -54.37], abs=0.01
    )
    legacy = log10_tail(np.array([0.0, 0.5]), 816, settings(lower_tail="legacy"))
    assert np.isfinite(legacy).all() and (legacy < -10).all()


# --- whole maps --------------------------------------------------------------------------------


def test_golden_latents_give_the_official_map():
    value = -log_nfa(golden_latents(), (256, 256), settings())
    assert value.shape == (1, 256, 256)
    assert value.max().item() == pytest.approx(902.05, abs=0.02)
    assert value.mean().item() == pytest.approx(-418.671, abs=0.005)
    assert (value > 0).float().mean().item() == pytest.approx(0.048279, abs=1e-5)


def test_golden_latents_give_the_official_block_map():
    value = -log_nfa(golden_latents(), (256, 256), settings(method="block"))
    assert value.max().item() == pytest.approx(-1.1761, abs=1e-4)
    assert value.mean().item() == pytest.approx(-2.35766, abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"tail": "exact"}, {"tests": "per_size"}])
def test_noise_is_never_detected(options):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        latents = [
            torch.randn(1, 816, 28, 28, generator=generator),
            torch.randn(1, 192, 14, 14, generator=generator),
        ]
        assert not (log_nfa(latents, (64, 64), settings(**options)) < 0).any()


def test_per_size_keeps_its_promise_with_few_channels():
    """At most one false alarm expected per image; Chernoff's bound leaves far fewer."""
    generator = torch.Generator().manual_seed(1)
    fired = 0
    for _ in range(40):
        latents = [
            torch.randn(1, 6, 32, 32, generator=generator),
            torch.randn(1, 6, 16, 16, generator=generator),
        ]
        fired += int(
            (log_nfa(latents, (64, 64), settings(tests="per_size", tail="exact")) < 0).any()
        )
    assert fired <= 4


def test_small_latents_flood_the_mask_only_in_legacy_mode():
    generator = torch.Generator().manual_seed(0)
    flooded = 0
    for _ in range(10):
        latents = [
            0.95 * torch.randn(1, 816, 28, 28, generator=generator),
            torch.randn(1, 192, 14, 14, generator=generator),
        ]
        assert not (log_nfa(latents, (64, 64), settings()) < 0).any()
        flooded += int((log_nfa(latents, (64, 64), settings(lower_tail="legacy")) < 0).all())
    assert flooded >= 8


@pytest.mark.parametrize("tests", ["total", "per_size"])
def test_a_box_of_stronger_latents_is_found_where_it_is(tests):
    generator = torch.Generator().manual_seed(0)
    overlaps = []
    for _ in range(8):
        z = torch.randn(1, 816, 28, 28, generator=generator)
        z[..., 8:14, 10:16] *= 1.4
        truth = torch.zeros(28, 28, dtype=torch.bool)
        truth[8:14, 10:16] = True
        found = log_nfa([z], (28, 28), settings(tests=tests))[0] < 0
        overlaps.append(((found & truth).sum() / (found | truth).sum()).item())
    assert min(overlaps) >= 0.75
    assert sum(overlaps) / len(overlaps) > 0.85


def test_few_channels_blind_the_total_count_but_not_the_count_per_size():
    z = torch.randn(1, 40, 32, 32, generator=torch.Generator().manual_seed(0))
    z[..., 10:15, 10:15] *= 2.0  # a 5x5 defect with four times the energy
    truth = torch.zeros(32, 32, dtype=torch.bool)
    truth[10:15, 10:15] = True
    assert not (log_nfa([z], (32, 32), settings()) < 0).any()
    found = log_nfa([z], (32, 32), settings(tests="per_size"))[0] < 0
    assert ((found & truth).sum() / (found | truth).sum()) > 0.7


def test_maps_are_the_best_of_the_scales_and_images_do_not_mix():
    first, second = golden_latents(), [torch.randn(1, 816, 28, 28), torch.randn(1, 192, 14, 14)]
    both = log_nfa(
        [torch.cat(pair) for pair in zip(first, second, strict=True)], (32, 32), settings()
    )
    torch.testing.assert_close(both[:1], log_nfa(first, (32, 32), settings()))
    torch.testing.assert_close(both[1:], log_nfa(second, (32, 32), settings()))


# --- block NFA ---------------------------------------------------------------------------------


def test_block_nfa_of_a_pixel_equals_counting_by_hand():
    assert pytest.approx(2.705543454) == CANDIDATE_LEVEL
    z = torch.randn(1, 5, 9, 9, generator=torch.Generator().manual_seed(0)) * 1.5
    value = log_nfa([z], (9, 9), settings(method="block"))[0, 4, 6].item()
    window = z[0, :, 2:7, 4:9].square() >= CANDIDATE_LEVEL
    count = window.sum().item() / 5
    expected = binom.logsf(count, 25, 0.1) / math.log(10) + math.log10(81)
    assert value == pytest.approx(expected, abs=1e-5)


def test_block_nfa_with_the_exact_integral_equals_quadrature():
    z = torch.randn(1, 3, 7, 7, generator=torch.Generator().manual_seed(2)) * 1.5
    value = log_nfa([z], (7, 7), settings(method="block", tail="exact"))[0, 3, 3].item()
    count = (z[0, :, 1:6, 1:6].square() >= CANDIDATE_LEVEL).sum().item() / 3
    mpmath.mp.dps = 20
    integral = mpmath.quad(
        lambda k: mpmath.binomial(25, k) * mpmath.mpf("0.1") ** k * mpmath.mpf("0.9") ** (25 - k),
        [count, 25],
    )
    assert value == pytest.approx(float(mpmath.log10(integral)) + math.log10(49), abs=1e-4)


def test_block_nfa_stays_finite_when_every_latent_is_extreme():
    z = [
        torch.full((1, 4, 8, 8), 5.0),
        torch.full((1, 4, 4, 4), 5.0),
        torch.full((1, 4, 2, 2), 5.0),
    ]
    for tail in ("bound", "exact"):
        value = log_nfa(z, (32, 32), settings(method="block", tail=tail))
        assert torch.isfinite(value).all() and (value < 0).all()


# --- calibration and mistakes ------------------------------------------------------------------


def test_the_offset_silences_every_held_out_normal_and_never_sensitises():
    assert offset_from_normals([-57.7, 3.0, -2.0]) == 57.7
    assert offset_from_normals([5.0, 3.0]) == 0.0
    assert offset_from_normals([]) == 0.0


@pytest.mark.parametrize("n", [4, 19])
def test_after_the_shift_one_in_n_plus_one_exchangeable_images_alarms(n):
    rng = np.random.default_rng(n)
    level = rng.normal(-30, 3, (20_000, 1))  # the draw of each day: exchangeable, not independent
    lowest = level + 5 * rng.standard_t(3, (20_000, n + 1))  # of n calibrating images and a new one
    alarms = [row[n] + offset_from_normals(row[:n]) < 0 for row in lowest]
    rate, promised = np.mean(alarms), 1 / (n + 1)
    assert abs(rate - promised) < 4 * (promised * (1 - promised) / 20_000) ** 0.5
