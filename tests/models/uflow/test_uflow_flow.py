"""The flow: FrEIA parity, counts, shapes, log-determinants, invertibility."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from src.errors import ConfigError
from src.models.uflow.flow import (
    CouplingStep,
    ShuffleUp,
    UShapedFlow,
    negative_log_likelihood,
    rising_channels,
)
from src.models.uflow.published import convert_published
from tests.reference_uflow import freia_block, freia_graph, perturb

MCAIT = [(768, 28, 28), (384, 14, 14)]
RESNET18 = [(64, 64, 64), (128, 32, 32), (256, 16, 16)]
WIDE_RESNET50 = [(256, 64, 64), (512, 32, 32), (1024, 16, 16)]
SMALL = [(10, 8, 8), (16, 4, 4)]


def flow_of(shapes, steps=4, seed=0):
    return UShapedFlow(shapes, steps, [3, 1], seed)


def trainable(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("shapes", "count"),
    [(MCAIT, 12_216_480), (RESNET18, 1_479_880), (WIDE_RESNET50, 23_594_080)],
)
def test_trainable_numbers_are_those_of_the_paper_s_flows(shapes, count):
    flow = flow_of(shapes)
    assert trainable(flow) == count
    assert sum(p.numel() for p in flow.parameters()) == count  # no frozen one-hot matrices


def stages(flow):
    """Coupling steps by scale, finest first."""
    steps = [module for module in flow.graph.module_list if isinstance(module, CouplingStep)]
    count = len(steps) // len(flow.shapes)
    return [steps[i : i + count] for i in range(0, len(steps), count)][::-1]


@pytest.mark.parametrize(
    ("shapes", "per_scale"),
    [
        (MCAIT, [(4_497_384, 502_248), (996_672, 111_936)]),
        (RESNET18, [(47_922, 5_586), (173_360, 19_760), (443_264, 50_048)]),
        (WIDE_RESNET50, [(763_224, 85_848), (2_767_040, 309_440), (7_081_472, 790_016)]),
    ],
)
def test_steps_alternate_between_large_and_pointwise_kernels(shapes, per_scale):
    for stage, (large, small) in zip(stages(flow_of(shapes)), per_scale, strict=True):
        assert [trainable(step) for step in stage] == [large, small, large, small]


def test_latent_shapes_are_those_of_the_paper_and_fill_the_feature_space():
    assert flow_of(MCAIT).latent_shapes == [(816, 28, 28), (192, 14, 14)]
    assert flow_of(RESNET18).latent_shapes == [(84, 64, 64), (80, 32, 32), (128, 16, 16)]
    assert flow_of(WIDE_RESNET50).latent_shapes == [(336, 64, 64), (320, 32, 32), (512, 16, 16)]
    for shapes in (MCAIT, RESNET18, WIDE_RESNET50, [(7, 4, 4), (12, 2, 2)]):
        latent = sum(math.prod(shape) for shape in flow_of(shapes).latent_shapes)
        assert latent == sum(math.prod(shape) for shape in shapes)


@pytest.mark.parametrize("kernel", [3, 1])
@pytest.mark.parametrize("channels", [12, 13])
def test_a_step_equals_freia_s_block_with_the_same_weights(channels, kernel):
    block = perturb(freia_block((channels, 6, 5), kernel))
    step = CouplingStep(
        [(channels, 6, 5)], kernel_size=kernel, generator=torch.Generator().manual_seed(1)
    )
    state = {k: v for k, v in block.state_dict().items() if not k.startswith("w_perm")}
    step.load_state_dict(state | {"permutation": block.w_perm[:, :, 0, 0].argmax(1)})
    x = torch.randn(3, channels, 6, 5)
    (theirs,), their_log_det = block((x,))
    (ours,), our_log_det = step((x,))
    assert torch.equal(ours, theirs)
    assert torch.equal(our_log_det, their_log_det)
    (back,), _ = block((theirs,), rev=True)
    torch.testing.assert_close(step((theirs,), rev=True)[0][0], back, rtol=0, atol=1e-6)


def test_gradients_of_a_step_equal_those_of_freia_s_block():
    block = perturb(freia_block((9, 4, 4), 3)).double()
    step = CouplingStep([(9, 4, 4)], kernel_size=3, generator=torch.Generator()).double()
    state = {k: v for k, v in block.state_dict().items() if not k.startswith("w_perm")}
    step.load_state_dict(state | {"permutation": block.w_perm[:, :, 0, 0].argmax(1)})
    x = torch.randn(2, 9, 4, 4, dtype=torch.float64)
    gradients = []
    for module in (block, step):
        leaf = x.clone().requires_grad_()
        (z,), log_det = module((leaf,))
        (0.5 * z.square().sum() - log_det.sum()).backward()
        gradients.append([leaf.grad, *(p.grad for p in module.subnet.parameters())])
    for theirs, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_shuffling_up_equals_freia_s_irevnet_upsampling_bit_by_bit():
    from FrEIA.modules import IRevNetUpsampling

    x = torch.randn(2, 12, 3, 5)
    theirs, ours = IRevNetUpsampling([(12, 3, 5)]), ShuffleUp([(12, 3, 5)])
    (up,), log_det = ours((x,))
    assert log_det == 0
    assert torch.equal(up, theirs((x,))[0][0])
    assert torch.equal(up, F.pixel_shuffle(x, 2))
    assert torch.equal(ours((up,), rev=True)[0][0], theirs((up,), rev=True)[0][0])
    assert torch.equal(ours((up,), rev=True)[0][0], x)


@pytest.mark.parametrize("shapes", [SMALL, [(8, 16, 16), (12, 8, 8), (20, 4, 4)], [(9, 5, 7)]])
def test_the_u_equals_the_official_graph_of_freia_s_blocks(shapes):
    theirs = perturb(freia_graph(shapes, flow_steps=4))
    state = {f"model.flow.{key}": value for key, value in theirs.state_dict().items()}
    ours = flow_of(shapes)
    converted = {k.removeprefix("flow."): v for k, v in convert_published(state).items()}
    ours.load_state_dict(converted)
    features = [torch.randn(2, *shape) for shape in shapes]
    expected, expected_log_det = theirs(features)
    latents, log_det = ours(features)
    assert [z.shape for z in latents] == [z.shape for z in expected]
    for z, e in zip(latents, expected, strict=True):
        torch.testing.assert_close(z, e, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det, expected_log_det, rtol=1e-5, atol=1e-4)


def test_the_skip_connection_comes_first_and_the_second_half_is_the_latent():
    flow = flow_of(SMALL, steps=1)
    for stage in stages(flow):  # identity steps: no coupling, no permutation
        for step in stage:
            torch.nn.init.zeros_(step.subnet[2].weight)
            torch.nn.init.zeros_(step.subnet[2].bias)
            order = torch.arange(len(step.permutation))
            step.load_state_dict(step.state_dict() | {"permutation": order})
    fine, coarse = torch.randn(1, 10, 8, 8), torch.randn(1, 16, 4, 4)
    (z_fine, z_coarse), log_det = flow([fine, coarse])
    torch.testing.assert_close(z_coarse, coarse[:, 8:])
    torch.testing.assert_close(z_fine[:, :10], fine)
    torch.testing.assert_close(z_fine[:, 10:], F.pixel_shuffle(coarse[:, :8], 2))
    assert log_det.abs().max() < 1e-3


@pytest.mark.parametrize(
    ("shapes", "latent_shapes"),
    [
        ([(8, 4, 4), (16, 2, 2)], [(10, 4, 4), (8, 2, 2)]),
        ([(8, 4, 4), (8, 2, 2), (8, 1, 1)], [(9, 4, 4), (5, 2, 2), (4, 1, 1)]),
    ],
)
def test_log_determinant_equals_that_of_the_full_jacobian(shapes, latent_shapes):
    flow = perturb(flow_of(shapes).double())
    assert flow.latent_shapes == latent_shapes
    generator = torch.Generator().manual_seed(0)
    sizes = [math.prod(shape) for shape in shapes]
    x = torch.randn(sum(sizes), dtype=torch.float64, generator=generator)

    def run(flat):
        parts = flat.split(sizes)
        latents, _ = flow([p.view(1, *s) for p, s in zip(parts, shapes, strict=True)])
        return torch.cat([z.flatten() for z in latents])

    jacobian = torch.autograd.functional.jacobian(run, x)
    parts = [p.view(1, *s) for p, s in zip(x.split(sizes), shapes, strict=True)]
    assert abs(torch.linalg.slogdet(jacobian)[1] - flow(parts)[1][0]) < 1e-10


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_features_come_back_from_latents(dtype, tolerance):
    flow = perturb(flow_of([(24, 16, 16), (32, 8, 8)]), size=0.02).to(dtype)
    features = [torch.randn(2, *shape, dtype=dtype) for shape in flow.shapes]
    with torch.no_grad():
        latents, log_det = flow(features)
        back, reverse_log_det = flow.inverse(latents)
    for x, y in zip(features, back, strict=True):
        assert (x - y).abs().max() < tolerance
    assert (log_det + reverse_log_det).abs().max() < 1e-3


def test_a_new_flow_scales_nothing_and_keeps_the_variance():
    flow = flow_of([(64, 16, 16), (128, 8, 8)])
    scale = 0.1 * F.softplus(stages(flow)[0][0].global_scale, beta=0.5)
    assert torch.allclose(scale, torch.ones(()), atol=1e-6)
    assert stages(flow)[0][0].global_scale.flatten()[0].item() == pytest.approx(9.98647850)
    latents, _ = flow([torch.randn(4, *shape) for shape in flow.shapes])
    for z in latents:
        assert 0.95 < z.var() < 1.05


def test_the_loss_is_a_mean_over_the_batch():
    flow = perturb(flow_of(SMALL))
    features = [torch.randn(3, *shape) for shape in SMALL]
    nll = negative_log_likelihood(*flow(features))
    assert nll.shape == (3,)
    twice = negative_log_likelihood(*flow([torch.cat([x, x]) for x in features]))
    torch.testing.assert_close(twice.mean(), nll.mean(), rtol=1e-6, atol=1e-3)
    by_hand = []
    for b in range(3):
        latents, log_det = flow([x[b : b + 1] for x in features])
        by_hand.append(sum(0.5 * z.square().sum() for z in latents) - log_det[0])
    torch.testing.assert_close(nll, torch.stack(by_hand), rtol=1e-5, atol=1e-3)


def test_weights_and_permutations_come_from_the_seed_alone():
    torch.manual_seed(1)
    first = flow_of(SMALL, seed=7).state_dict()
    torch.manual_seed(2)
    second, other = flow_of(SMALL, seed=7).state_dict(), flow_of(SMALL, seed=8).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    permutations = [key for key in first if key.endswith("permutation")]
    assert len(permutations) == 8
    assert not all(torch.equal(first[key], other[key]) for key in permutations)


def test_loading_weights_also_restores_the_inverse_permutation():
    flow, other = perturb(flow_of(SMALL, seed=1)), flow_of(SMALL, seed=2)
    other.load_state_dict(flow.state_dict())
    features = [torch.randn(1, *shape) for shape in SMALL]
    latents, _ = flow(features)
    back, _ = other.inverse(latents)
    torch.testing.assert_close(back[0], features[0], rtol=1e-4, atol=1e-4)


def test_a_copied_flow_is_independent():
    flow = flow_of(SMALL)
    twin = copy.deepcopy(flow)
    perturb(twin)
    features = [torch.randn(1, *shape) for shape in SMALL]
    assert not torch.allclose(flow(features)[0][0], twin(features)[0][0])
    torch.testing.assert_close(twin(features)[0][0], twin.graph(features)[0][0])


def test_log_determinants_stay_in_float32_under_autocast():
    flow = perturb(flow_of([(16, 16, 16), (16, 8, 8)]))
    features = [torch.randn(2, *shape) for shape in flow.shapes]
    _, exact = flow(features)
    with torch.autocast("cpu", torch.bfloat16):
        latents, log_det = flow(features)
    assert log_det.dtype == torch.float32 and all(z.dtype == torch.float32 for z in latents)
    # A sum of 5000 terms kept in bfloat16 would be off by several units.
    assert (log_det - exact).abs().max() < 0.02 * exact.abs().max().clamp_min(50)


def test_shapes_that_cannot_form_a_u_are_refused_with_advice():
    with pytest.raises(ConfigError, match="half its height"):
        flow_of([(8, 7, 7), (8, 4, 4)])
    with pytest.raises(ConfigError, match="too few channels"):
        flow_of([(8, 8, 8), (7, 4, 4)])
    with pytest.raises(ConfigError, match="odd kernel"):
        UShapedFlow(SMALL, 4, [2], 0)
    assert [rising_channels(c) for c in (8, 12, 15, 16, 160, 816)] == [4, 4, 4, 8, 80, 408]
