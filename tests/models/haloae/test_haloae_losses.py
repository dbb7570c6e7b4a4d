from __future__ import annotations

from itertools import pairwise

import kornia
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from src.models.haloae.losses import (
    loss_weights,
    reconstruction_losses,
    ssim,
)
from src.models.haloae.options import Border, Curriculum, ScheduleOptions, SsimOptions
from tests.reference_haloae import ssim_by_convolution, weights_by_epoch

PUBLISHED = ScheduleOptions(
    Curriculum.logistic,
    start=(1.0, -1e-8, -1e-8),
    end=(0.4, 1.2, 2.0),
    midpoint=(40 / 251, 75 / 251, 150 / 251),
    slope=(0.07 * 251, 0.05 * 251, 0.05 * 251),
    constant=(1.0, 1.0, 1.0),
)


def options(border: str = "zero") -> SsimOptions:
    return SsimOptions(window=11, sigma=1.5, border=Border(border))


def pair(shape: tuple[int, ...] = (2, 3, 40, 32), dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator, dtype=dtype)
    return x, (x + 0.1 * torch.randn(shape, generator=generator, dtype=dtype)).clamp(0, 1)


def cells(x: Tensor, y: Tensor) -> Tensor:
    """Similarity at each cell of the valid border, as images of one window each."""
    cut = [v.unfold(2, 11, 1).unfold(3, 11, 1).reshape(-1, 1, 11, 11) for v in (x, y)]
    return ssim(*cut, options("valid")).view(*x.shape[:2], x.shape[2] - 10, -1)


@pytest.mark.parametrize("border", ["zero", "reflect", "valid"])
def test_matrices_equal_the_depthwise_convolution(border):
    x, y = pair()
    expected = ssim_by_convolution(x, y, border=border).mean((1, 2, 3))
    assert (ssim(x, y, options(border)) - expected).abs().max() < 1e-12
    single = ssim(x.float(), y.float(), options(border))
    assert (single - expected).abs().max() < 1e-5


def test_reflect_border_equals_torchmetrics_and_kornia():
    x, y = pair()
    ours = float(ssim(x, y, options("reflect")).mean())
    theirs = structural_similarity_index_measure(y, x, data_range=1.0)
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    same = kornia.metrics.ssim(x, y, 11, 1.0, padding="same").mean()
    assert ours == pytest.approx(float(same), abs=1e-6)


def test_every_cell_of_the_valid_border_equals_kornia_and_the_convolution():
    x, y = pair()
    valid = kornia.metrics.ssim(x, y, 11, 1.0, padding="valid")
    assert (cells(x, y) - valid).abs().max() < 1e-6
    assert (cells(x, y) - ssim_by_convolution(x, y, border="valid")).abs().max() < 1e-12


def test_the_loss_is_twice_that_of_kornia():
    x, y = pair()
    _, ours = reconstruction_losses(y, x, options("reflect"))
    theirs = kornia.losses.ssim_loss(x, y, 11, reduction="mean")
    assert float(ours.mean()) == pytest.approx(2 * float(theirs), abs=1e-6)
    metric = kornia.metrics.ssim(x, y, 11)
    assert float(theirs) == pytest.approx(float((1 - metric).mean() / 2), abs=1e-6)


def test_identical_images_have_similarity_one():
    x, _ = pair()
    for border in ("zero", "reflect", "valid"):
        assert torch.allclose(ssim(x, x, options(border)), torch.ones(2, dtype=x.dtype))


def test_similarity_never_exceeds_one_on_nearly_constant_features():
    """E[x²] - E[x]² of values around 20 has no correct digit left in float32."""
    generator = torch.Generator().manual_seed(0)
    x = 20 + 1e-3 * torch.randn(1, 8, 32, 32, generator=generator)
    y = 20 + 1e-3 * torch.randn(1, 8, 32, 32, generator=generator)
    assert ssim_by_convolution(x, y).max() > 1.0005  # the plain formula does
    assert cells(x, y).max() <= 1.0 + 1e-6


def test_clamping_changes_nothing_on_ordinary_data():
    x, y = pair((1, 2, 32, 32))
    difference = cells(x, -y) - ssim_by_convolution(x, -y, border="valid")
    assert difference.abs().max() < 1e-12  # anti-correlated: covariance is negative


def test_similarity_stays_in_single_precision_under_autocast():
    x, y = pair(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssim(x, y, options())
        rough = ssim(x.bfloat16(), y.bfloat16(), options())
    assert inside.dtype == rough.dtype == torch.float32
    assert torch.equal(inside, ssim(x, y, options()))


@pytest.mark.parametrize("border", ["zero", "reflect", "valid"])
def test_the_mean_and_its_handmade_gradient_are_those_of_the_map(border):
    x, y = pair((2, 2, 12, 14))
    y.requires_grad_()
    upstream = torch.tensor([1.0, -2.0], dtype=x.dtype)
    ours = ssim(x, y, options(border))
    expected = ssim_by_convolution(x, y, border=border).mean((1, 2, 3))
    assert (ours - expected).abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(ours, y, upstream)
    (automatic,) = torch.autograd.grad(expected, y, upstream)
    assert (gradient - automatic).abs().max() < 1e-12
    assert torch.autograd.gradcheck(lambda t: ssim(x, t, options(border)), (y,))


def test_squared_error_is_the_mean_over_all_elements_of_an_image():
    x, y = pair()
    squared, _ = reconstruction_losses(y, x, options())
    assert torch.allclose(squared, ((x - y) ** 2).flatten(1).mean(1))


def test_an_axis_shorter_than_the_window_is_refused():
    x, y = pair((1, 1, 8, 8))
    with pytest.raises(ValueError, match="too few"):
        ssim(x, y, options("valid"))
    assert ssim(x, x, options("zero")).item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("epoch", "weights"),
    [
        (0, (0.9712, 0.0277, 0.0011)),
        (10, (0.9525, 0.0457, 0.0019)),
        (20, (0.9215, 0.0754, 0.0031)),
        (40, (0.7902, 0.2006, 0.0092)),
        (50, (0.6810, 0.3038, 0.0152)),
        (75, (0.4093, 0.5486, 0.0420)),
        (100, (0.2738, 0.6246, 0.1016)),
        (125, (0.2053, 0.5670, 0.2277)),
        (150, (0.1556, 0.4557, 0.3887)),
        (200, (0.1161, 0.3476, 0.5364)),
        (250, (0.1115, 0.3345, 0.5539)),
    ],
)
def test_the_curriculum_reproduces_the_published_table(epoch, weights):
    assert loss_weights(epoch / 251, PUBLISHED) == pytest.approx(weights, abs=5.1e-5)


def test_fractions_equal_epochs_and_weights_sum_to_one():
    for epoch in range(251):
        ours = loss_weights(epoch / 251, PUBLISHED)
        assert ours == pytest.approx(weights_by_epoch(epoch), abs=1e-12)
        assert sum(ours) == pytest.approx(1)


def test_classification_fades_the_image_grows_and_features_peak_at_epoch_100():
    table = [loss_weights(epoch / 251, PUBLISHED) for epoch in range(251)]
    cls, features, image = zip(*table, strict=True)
    assert all(a > b for a, b in pairwise(cls))
    assert all(a < b for a, b in pairwise(image))
    assert abs(features.index(max(features)) - 100) <= 2
    assert next(e for e in range(251) if features[e] > cls[e]) == 67
    assert next(e for e in range(251) if image[e] > features[e]) == 158


def test_constant_weights_stay_as_given():
    constant = ScheduleOptions(
        Curriculum.constant, (1, 0, 0), (0, 1, 1), (0, 0, 0), (1, 1, 1), (1, 2, 0.5)
    )
    assert loss_weights(0.0, constant) == loss_weights(1.0, constant) == [1.0, 2.0, 0.5]
