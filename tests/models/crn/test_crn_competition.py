from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from src.composing import CONF
from src.models.build import make
from src.models.crn.competition import PairLoss, UnitBoard, pair_loss
from src.models.crn.options import LossWeights
from src.models.crn.unit import CompetitiveUnit
from tests.reference_crn import SlowCompetition

WEIGHTS = LossWeights(0.5, 1.0, 2.0)
OPTIMIZERS = {path.stem: path for path in (CONF / "optimizer").glob("*.yaml")}


@pytest.fixture
def units():
    generator = torch.Generator().manual_seed(3)
    made = [CompetitiveUnit(5, 4, "batch", "upsample", False).double() for _ in range(3)]
    for unit in made:
        unit.initialize(generator)
    return made


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(4)
    return torch.rand(4, 3, 32, 32, generator=generator, dtype=torch.float64) * 2 - 1


def state_of(unit):
    return {k: v.clone() for k, v in unit.state_dict().items()}


def gradients(unit):
    return [p.grad.clone() for p in unit.parameters()]


def adam(units, name="adam", lr=1e-3):
    node = OmegaConf.to_container(OmegaConf.load(OPTIMIZERS[name]).model.optimizer) | {"lr": lr}
    if name == "sgd":
        node["momentum"] = 0.9
    return make("optimizer", node, [p for unit in units for p in unit.parameters()])


def step(units, optimizer, image, pair):
    optimizer.zero_grad()
    result = pair_loss([units[k] for k in pair], image, WEIGHTS)
    result.total.backward()
    optimizer.step()
    return result


def test_a_step_leaves_idle_units_untouched_and_changes_every_tensor_of_the_pair(units, image):
    optimizer = adam(units)
    step(units, optimizer, image, (1, 2))  # unit 1 has an optimizer state that could move it
    before = [state_of(unit) for unit in units]
    moments = copy.deepcopy([optimizer.state[p] for p in units[1].parameters()])
    step(units, optimizer, image, (0, 2))
    for name, value in units[1].state_dict().items():
        assert torch.equal(value, before[1][name]), name
    assert all(p.grad is None for p in units[1].parameters())
    for p, old in zip(units[1].parameters(), moments, strict=True):
        assert all(torch.equal(optimizer.state[p][k], old[k]) for k in old)
    for k in (0, 2):
        for name, value in units[k].named_parameters():
            assert not torch.equal(value, before[k][name]), name


def test_swapping_the_pair_changes_no_loss_and_no_gradient(units, image):
    one = pair_loss(units[:2], image, WEIGHTS)
    one.total.backward()
    first = [gradients(unit) for unit in units[:2]]
    for unit in units[:2]:
        unit.zero_grad()
    other = pair_loss(units[1::-1], image, WEIGHTS)
    other.total.backward()
    assert other.loss.tolist() == pytest.approx(one.loss.flip(0).tolist(), rel=1e-14)
    for unit, old in zip(units[:2], first, strict=True):
        for new, kept in zip(gradients(unit), old, strict=True):
            torch.testing.assert_close(new, kept, rtol=1e-10, atol=1e-16)


def test_a_units_loss_gives_no_gradient_to_its_partner(units, image):
    a, b = units[:2]
    made_a, made_b = a(image), b(image)
    judged_a, judged_b = b(made_a.detach()), a(made_b.detach())
    loss_a = (
        0.5 * (image - made_a).abs().mean()
        + (made_a - judged_a.detach()).abs().mean()
        - 2 * (made_b.detach() - judged_b).abs().mean()
    )
    loss_a.backward()
    assert all(p.grad is None for p in b.parameters())
    alone = gradients(a)
    a.zero_grad()
    pair_loss([a, b], image, WEIGHTS).total.backward()
    for new, kept in zip(gradients(a), alone, strict=True):
        torch.testing.assert_close(new, kept, rtol=1e-10, atol=1e-16)


def test_a_feedback_through_the_partner_would_be_noticed(units, image):
    a, b = units[:2]
    pair_loss([a, b], image, WEIGHTS).total.backward()
    right = gradients(b)
    b.zero_grad()
    a.zero_grad()
    made_a, made_b = a(image), b(image)
    judged_a, judged_b = b(made_a.detach()), a(made_b.detach())
    wrong = (
        0.5 * ((image - made_a).abs().mean() + (image - made_b).abs().mean())
        + (made_a - judged_a).abs().mean()  # the stop-gradient on the partner's picture is gone
        + (made_b - judged_b.detach()).abs().mean()
        - 2
        * ((made_b.detach() - judged_b).abs().mean() + (made_a.detach() - judged_a).abs().mean())
    )
    wrong.backward()
    assert not torch.allclose(gradients(b)[0], right[0], rtol=1e-3)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_one_optimizer_and_four_forwards_equal_the_authors_scheme(units, image, name):
    # The twin also adds the constant 4 to discriminator losses: it has no effect.
    twins = copy.deepcopy(units)
    for twin in twins:
        twin.set_norm_momentum(0.1)
    optimizer = adam(units, name)
    kind = partial(type(optimizer), lr=1e-3, **({"momentum": 0.9} if name == "sgd" else {}))
    slow = SlowCompetition(twins, dataclasses.astuple(WEIGHTS), kind)
    board = UnitBoard(3, "random", 0.0, 11).double()
    for _ in range(6):
        (pair,) = board.draw_pairs()
        board.record(pair, step(units, optimizer, image, pair))
        slow.step(image, *pair)
    assert board.loss.tolist() == pytest.approx(slow.loss, rel=1e-9)
    assert board.reconstruction.tolist() == pytest.approx(slow.reconstruction, rel=1e-9)
    assert board.discrimination.tolist() == pytest.approx(slow.discrimination, rel=1e-9)
    for unit, twin in zip(units, twins, strict=True):
        other = twin.state_dict()
        for key, value in unit.state_dict().items():
            if not key.endswith("num_batches_tracked"):
                torch.testing.assert_close(value, other[key], rtol=1e-7, atol=1e-10)


def test_a_step_costs_four_forwards_where_the_authors_take_eight(units, image):
    calls = []
    for unit in units[:2]:
        unit.register_forward_hook(lambda *_args: calls.append(1))
    pair_loss(units[:2], image, WEIGHTS)
    assert len(calls) == 4
    calls.clear()
    slow = SlowCompetition(units, dataclasses.astuple(WEIGHTS), partial(torch.optim.SGD, lr=0.0))
    slow.step(image, 0, 1)
    assert len(calls) == 8


def test_running_statistics_equal_the_closed_form_of_the_authors_four_updates(units, image):
    a, b = units[:2]
    seen = {0: [], 1: []}
    for k, unit in enumerate((a, b)):
        norm = unit.decoder[1].norm
        norm.register_forward_pre_hook(lambda _m, inputs, k=k: seen[k].append(inputs[0].detach()))
        norm.running_mean.fill_(0.3)
        norm.running_var.fill_(2.0)
    with torch.no_grad():
        pictures = {"x": image, "r_a": a.train()(image), "r_b": b.train()(image)}
        order = {0: ("x", "r_b"), 1: ("r_a", "x")}
        expected = {0: [], 1: []}
        for k, unit in enumerate((a, b)):
            for name in order[k]:
                seen[k].clear()
                unit(pictures[name])
                expected[k].append(seen[k][0])
    for unit in (a, b):
        unit.decoder[1].norm.running_mean.fill_(0.3)
        unit.decoder[1].norm.running_var.fill_(2.0)
    pair_loss([a, b], image, WEIGHTS)
    for k, unit in enumerate((a, b)):
        first, last = (e.mean(dim=(0, 2, 3)) for e in expected[k])
        mean = 0.6561 * 0.3 + 0.1629 * first + 0.181 * last
        torch.testing.assert_close(unit.decoder[1].norm.running_mean, mean, rtol=1e-12, atol=1e-13)
        first, last = (e.var(dim=(0, 2, 3), unbiased=True) for e in expected[k])
        var = 0.6561 * 2.0 + 0.1629 * first + 0.181 * last
        torch.testing.assert_close(unit.decoder[1].norm.running_var, var, rtol=1e-12, atol=1e-13)


# --- the board --------------------------------------------------------------------------------


def outcome(reconstruction, discrimination, loss=(0.0, 0.0)):
    return PairLoss(
        torch.zeros(()), torch.tensor(loss), torch.tensor(reconstruction),
        torch.tensor(discrimination),
    )  # fmt: skip


def test_unseen_units_are_never_best():
    board = UnitBoard(4, "random", 0.0, 0)
    board.record((3, 2), outcome((0.9, 0.8), (-0.9, -0.8)))  # bad, but seen
    assert board.choose_best() == (2, 2)


def test_the_lowest_reconstruction_and_the_highest_discrimination_are_best_first_on_ties():
    board = UnitBoard(4, "random", 0.0, 0)
    board.record((0, 1), outcome((0.5, 0.3), (0.2, -0.1)))
    board.record((2, 3), outcome((0.3, 0.4), (0.1, 0.2)))
    assert board.choose_best() == (1, 0)
    assert board.best == (1, 0)


def test_distinct_roles_take_the_next_best_discriminator():
    board = UnitBoard(3, "random", 0.0, 0)
    board.record((0, 1), outcome((0.1, 0.5), (0.9, 0.2)))
    board.record((2, 2), outcome((0.6, 0.6), (0.4, 0.4)))
    assert board.choose_best() == (0, 0)
    assert board.choose_best(distinct=True) == (0, 2)


def test_beyond_its_margin_discrimination_gives_no_gradient(units, image):
    pair, only = units[:2], LossWeights(0.0, 0.0, 1.0)
    free = pair_loss(pair, image, only)
    far = float(free.total.detach().neg())
    assert far > 0.01
    held = pair_loss(pair, image, only, margin=far / 100)
    held.total.backward()
    assert all(not p.grad.any() for p in pair[0].parameters() if p.grad is not None)
    assert float(held.total.detach()) == pytest.approx(-2 * far / 100)
    assert held.discrimination.tolist() == pytest.approx(free.discrimination.tolist(), rel=1e-6)


def test_painted_images_are_to_be_rebuilt_as_what_they_hide(units, image):
    painted = image.clone()
    painted[:, :, 4:20, 4:20] = 1.0
    a, b = units[:2]
    result = pair_loss([a, b], image, WEIGHTS, shown=painted)
    expected = [(image - unit(painted)).abs().mean().item() for unit in (a, b)]
    assert result.reconstruction.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_unit_starts_at_the_image_it_is_given(units, image):
    unit, start = units[0], image[0].clamp(-0.9, 0.9)
    before = (unit(image) - start).abs().mean()
    unit.start_from(start)
    after = (unit(image) - start).abs().mean()
    assert after < 0.2
    assert after < before / 3


def test_gathered_statistics_are_those_of_the_images_alone(units, image):
    unit = units[0]
    unit(torch.full_like(image, 5.0))  # as another role would leave them
    unit.eval()
    unit.gather_statistics([image[:2], image[2:]])
    assert not unit.training
    second = unit.encoder[1]
    seen = second.conv(F.leaky_relu(unit.encoder[0](image), 0.2))
    torch.testing.assert_close(second.norm.running_mean, seen.mean((0, 2, 3)))


def test_a_unit_that_became_nan_is_reported_and_passed_over():
    board = UnitBoard(3, "random", 0.9, 0)
    board.record((0, 1), outcome((0.1, 0.5), (0.3, 0.1)))
    board.record((0, 2), outcome((float("nan"), 0.6), (float("nan"), 0.0)))
    board.record((0, 2), outcome((0.1, 0.6), (0.3, 0.0)))
    assert board.broken_units() == [0]
    assert board.choose_best() == (1, 1)


def test_a_moving_average_starts_at_the_first_value():
    board = UnitBoard(2, "random", 0.9, 0)
    board.record((0, 1), outcome((1.0, 2.0), (-1.0, -2.0)))
    assert board.reconstruction.tolist() == [1.0, 2.0]
    board.record((0, 1), outcome((0.0, 0.0), (0.0, 0.0)))
    assert board.reconstruction.tolist() == pytest.approx([0.9, 1.8])
    assert board.discrimination.tolist() == pytest.approx([-0.9, -1.8])


def test_random_pairs_are_ordered_different_and_uniform():
    board = UnitBoard(4, "random", 0.9, 7)
    pairs = [pair for _ in range(6000) for pair in board.draw_pairs()]
    counts = Counter(pairs)
    assert len(pairs) == 6000
    assert len(counts) == 12  # every ordered pair of different units
    assert all(400 < count < 600 for count in counts.values())  # 500 expected, sd 21


@pytest.mark.parametrize(("units", "pairs"), [(4, 2), (5, 2), (12, 6)])
def test_matching_pairs_every_unit_once_and_lets_an_odd_one_rest(units, pairs):
    board = UnitBoard(units, "matching", 0.9, 7)
    for _ in range(20):
        drawn = board.draw_pairs()
        assert len(drawn) == pairs
        assert len({unit for pair in drawn for unit in pair}) == 2 * pairs


def test_a_restored_board_draws_the_same_pairs_and_knows_the_best():
    board = UnitBoard(5, "random", 0.9, 1)
    for _ in range(7):
        board.record(board.draw_pairs()[0], outcome((0.5, 0.4), (0.0, 0.1)))
    board.choose_best()
    other = UnitBoard(5, "random", 0.9, 99)
    other.load_state_dict(copy.deepcopy(board.state_dict()))
    assert other.best == board.best
    assert torch.equal(other.reconstruction, board.reconstruction)
    assert [other.draw_pairs() for _ in range(9)] == [board.draw_pairs() for _ in range(9)]
