from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from src.models.haloae.halo_attention import HaloAttention
from src.models.haloae.options import AttentionOptions, Mask
from tests.reference_haloae import attention_pixel_by_pixel, attention_unfold_then_project


def layer_of(
    width: int = 6,
    heads: int = 2,
    block: int = 4,
    halo: int = 1,
    dim_head: int = 4,
    mask: str = "correct",
    seed: int = 0,
) -> HaloAttention:
    torch.manual_seed(seed)
    return HaloAttention(width, heads, AttentionOptions(block, halo, dim_head, Mask(mask))).double()


def image_of(layer: HaloAttention, batch: int, H: int, W: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    width = layer.to_q.in_features
    return torch.randn(batch, width, H, W, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("mask", ["correct", "none"])
@pytest.mark.parametrize(("H", "W", "block", "halo"), [(12, 8, 4, 1), (6, 9, 3, 2), (8, 8, 8, 2)])
def test_attention_equals_one_query_at_a_time(mask, H, W, block, halo):
    layer = layer_of(block=block, halo=halo, mask=mask)
    x = image_of(layer, 1, H, W)
    with torch.no_grad():
        assert (layer(x) - attention_pixel_by_pixel(layer, x)).abs().max() < 1e-12


@pytest.mark.parametrize("mask", ["correct", "none"])
def test_attention_equals_unfold_then_project_at_the_size_of_the_paper(mask):
    layer = layer_of(width=29, heads=8, block=12, halo=2, dim_head=16, mask=mask)
    x = image_of(layer, 1, 60, 60)
    with torch.no_grad():
        expected = attention_unfold_then_project(layer, x)
        assert (layer(x) - expected).abs().max() < 1e-12
        single = layer.float()(x.float())
        assert (single - expected).abs().max() < 1e-5


def test_the_brute_force_agrees_with_the_window_formulation_at_the_size_of_the_paper():
    layer = layer_of(width=3, heads=1, block=12, halo=2, dim_head=4)
    x = image_of(layer, 1, 12, 24)
    with torch.no_grad():
        expected = attention_pixel_by_pixel(layer, x)
        assert (attention_unfold_then_project(layer, x) - expected).abs().max() < 1e-12


def test_gradients_pass_gradcheck_on_a_small_case():
    layer = layer_of(width=2, heads=1, block=2, halo=1, dim_head=2)
    x = image_of(layer, 1, 4, 4).requires_grad_()
    parameters = tuple(layer.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *parameters))


def test_gradients_equal_those_of_unfold_then_project_in_single_precision():
    layer = layer_of(width=29, heads=4, block=12, halo=2, dim_head=16).float()
    x = image_of(layer, 2, 24, 36).float().requires_grad_()
    gradients = []
    for run in (layer, lambda x: attention_unfold_then_project(layer, x)):
        inputs = (x, *layer.parameters())
        gradients.append(torch.autograd.grad((run(x) ** 2).sum(), inputs))
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() < 1e-5 * one.norm()


def test_inverted_mask_equals_suppressing_real_pixels_as_the_release_does():
    layer = layer_of(width=5, heads=2, block=12, halo=2, dim_head=16, mask="inverted")
    x = image_of(layer, 2, 60, 60)
    with torch.no_grad():
        expected = attention_unfold_then_project(layer, x, mask="inverted")
        assert (layer(x) - expected).abs().max() < 1e-12


def test_inverted_mask_gives_the_output_bias_at_the_border_and_a_window_mean_inside():
    layer = layer_of(width=5, heads=2, block=12, halo=2, dim_head=16, mask="inverted")
    x = image_of(layer, 1, 60, 60)
    with torch.no_grad():
        out = layer(x)
        values = F.linear(x.permute(0, 2, 3, 1), layer.to_kv.weight[32:]).permute(0, 3, 1, 2)
        windows = F.avg_pool2d(values[:, :, 10:50, 10:50], 16, 12)  # the nine inner windows
        expected = layer.to_out(windows.permute(0, 2, 3, 1))[0]  # (3, 3, C)
    bias = layer.to_out.bias[:, None, None]
    border = torch.ones(60, 60, dtype=torch.bool)
    border[12:48, 12:48] = False
    assert bool((out[0] == bias)[:, border].all())
    for row in range(3):
        for column in range(3):
            y, x0 = 12 * (row + 1), 12 * (column + 1)
            block = out[0, :, y : y + 12, x0 : x0 + 12]
            assert (block - expected[row, column][:, None, None]).abs().max() < 1e-12


def test_inverted_mask_gives_queries_keys_and_positions_no_gradient():
    layer = layer_of(mask="inverted")
    layer(image_of(layer, 1, 12, 12)).pow(2).sum().backward()
    for parameter in (layer.to_q.weight, layer.rel_height, layer.rel_width):
        assert parameter.grad is None or not parameter.grad.any()
    inner = layer.heads * layer.dim_head
    assert not layer.to_kv.weight.grad[:inner].any()
    assert layer.to_kv.weight.grad[inner:].any()


def test_correct_mask_trains_queries_and_the_reachable_rows_of_the_tables():
    layer = layer_of(block=12, halo=2, dim_head=16)
    out = layer(image_of(layer, 1, 24, 24))
    out.pow(2).sum().backward()
    assert layer.to_q.weight.grad.abs().min() > 0
    for table in (layer.rel_height, layer.rel_width):
        assert not table.grad[:4].any()  # 16 - 1 - 11 = 4 rows are out of reach
        assert bool((table.grad[4:].abs().sum(1) > 0).all())
    assert out[0, :, :12, :12].var(dim=(1, 2)).min() > 0  # not one vector per block


def test_moving_the_input_by_one_block_moves_inner_blocks_alike():
    layer = layer_of(block=4, halo=1)
    x = image_of(layer, 1, 20, 20)
    moved = torch.roll(x, shifts=(4, 4), dims=(2, 3))
    with torch.no_grad():
        before, after = layer(x), layer(moved)
    assert (before[:, :, 4:12, 4:12] - after[:, :, 8:16, 8:16]).abs().max() < 1e-12


@pytest.mark.parametrize("mask", ["correct", "inverted"])
def test_padding_does_not_leak_into_the_result(mask):
    """A map of zeros has nothing to say: the output is the bias whatever the mask."""
    layer = layer_of(mask=mask)
    with torch.no_grad():
        out = layer(torch.zeros(1, 6, 8, 8, dtype=torch.float64))
    assert torch.allclose(out, layer.to_out.bias[None, :, None, None].expand_as(out))


def test_autocast_to_bfloat16_stays_close_to_single_precision():
    layer = layer_of(width=16, heads=2, block=4, halo=1, dim_head=16).float()
    x = image_of(layer, 1, 12, 12).float()
    with torch.no_grad():
        exact = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = layer(x)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.03 * exact.norm()
