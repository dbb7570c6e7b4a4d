"""Numbers of the authors' own code on weights that every machine can make (golden.json)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from src.models.crn.competition import UnitBoard, pair_loss
from src.models.crn.options import LossWeights
from src.models.crn.unit import CompetitiveUnit
from tests.reference_crn import hashed, hashed_images, hashed_weights

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
WEIGHTS = LossWeights(0.5, 1.0, 2.0)


def case_name(case):
    kind = "improved" if case["improved"] else "transposed"
    return f"{case['imsize']}px-c{case['ngf']}-{case['norm']}-{kind}-{case['dtype'][6:]}"


def small(case):
    return case["ngf"] == 8


def build_units(case, dtype):
    decoder = "upsample" if case["improved"] else "transposed"
    units = []
    for number in range(3):
        unit = CompetitiveUnit(case["depth"], case["ngf"], case["norm"], decoder, False)
        unit.to(dtype)
        hashed_weights(unit, number)
        units.append(unit)
    return units


def tolerance(case):
    # float32: the first Adam steps divide gradients by their own size, so rounding noise in tiny
    # ones becomes a full step; after three steps losses differ by up to 2e-4.
    return {"rel": 1e-9, "abs": 1e-12} if case["dtype"] == "torch.float64" else {"rel": 5e-4}


def test_the_hash_gives_the_published_values():
    assert hashed(5, 7).tolist() == pytest.approx(GOLDEN["hash01_5_7"], rel=1e-12)


@pytest.mark.parametrize("case", filter(small, GOLDEN["cases"]), ids=case_name)
def test_steps_and_scores_equal_the_authors(case):
    run_case(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in GOLDEN["cases"] if not small(c)], ids=case_name)
def test_full_width_units_equal_the_authors(case):
    run_case(case)


def run_case(case):
    dtype = getattr(torch, case["dtype"][6:])
    units = build_units(case, dtype)
    image = hashed_images(case["batch"], case["imsize"], 7).to(dtype)
    close = tolerance(case)
    check_forward(case, image, dtype, close)
    board = UnitBoard(3, "random", 0.0, 0).to(dtype)
    parameters = [p for unit in units for p in unit.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-4)
    for step in case["steps"]:
        take_step(units, board, optimizer, image, tuple(step["pair"]))
        check_step(case, step, units, board, close)
    check_scores(case, units, board, dtype, close)


def check_forward(case, image, dtype, close):
    unit = build_units(case, dtype)[0]
    assert sum(p.numel() for p in unit.parameters()) == case["params_per_unit"]
    assert len(list(unit.parameters())) == case["tensors"]
    unit.eval()
    with torch.no_grad():
        fresh = unit(image)
        unit.train()
        made = unit(image)
    assert fresh.mean().item() == pytest.approx(case["fwd_eval_fresh"]["mean"], **close)
    assert fresh.abs().mean().item() == pytest.approx(case["fwd_eval_fresh"]["absmean"], **close)
    assert made.mean().item() == pytest.approx(case["fwd_train"]["mean"], **close)
    assert made.flatten()[:5].tolist() == pytest.approx(case["fwd_train"]["first5"], **close)


def take_step(units, board, optimizer, image, pair):
    optimizer.zero_grad()
    result = pair_loss([units[k] for k in pair], image, WEIGHTS)
    board.record(pair, result)
    result.total.backward()
    optimizer.step()


def check_step(case, step, units, board, close):
    loose = close if case["dtype"] == "torch.float64" else {"rel": 2e-3}
    for k, unit in enumerate(units):
        seen = not board.loss[k].isinf()
        if seen:
            assert board.loss[k].item() == pytest.approx(step["unit_losses"][k], **close)
            assert board.reconstruction[k].item() == pytest.approx(
                step["reconstruction_losses"][k], **close
            )
            assert board.discrimination[k].item() == pytest.approx(
                step["discriminator_losses"][k], **close
            )
        gradients = [p.grad for p in unit.parameters() if p.grad is not None]
        if step["grad_norm"][k] is None:
            assert not gradients
        else:
            norm = torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt().item()
            assert norm == pytest.approx(step["grad_norm"][k], **loose)
        total = sum(p.double().sum().item() for p in unit.parameters())
        assert total == pytest.approx(step["param_sum"][k], **loose)
        check_statistics(step, k, unit, close)


def check_statistics(step, k, unit, close):
    norms = [m for m in unit.modules() if getattr(m, "running_mean", None) is not None]
    if step["bn_last_running_mean_sum"][k] is None:
        return
    mean, var = norms[-1].running_mean.sum().item(), norms[-1].running_var.sum().item()
    assert mean == pytest.approx(step["bn_last_running_mean_sum"][k], **{"abs": 1e-5, **close})
    assert var == pytest.approx(step["bn_last_running_var_sum"][k], **close)
    # Two forwards with adjusted momenta stand for the authors' four.
    assert 2 * norms[-1].num_batches_tracked.item() == step["num_batches_tracked"][k]


@torch.no_grad()
def check_scores(case, units, board, dtype, close):
    expected = case["validation"]
    generator, discriminator = board.choose_best()
    # The authors start R and D at 0; after the three steps every unit has been seen.
    assert (generator, discriminator) == (expected["best_gen"], expected["best_disc"])
    image = hashed_images(4, case["imsize"], 99).to(dtype)
    made = units[generator].eval()(image)
    judged = units[discriminator].eval()(made)
    assert (made - judged).abs().mean((1, 2, 3)).tolist() == pytest.approx(
        expected["scores"], **close
    )
    assert (image - judged).abs().mean((1, 2, 3)).tolist() == pytest.approx(
        expected["inference_scores_eval"], **close
    )
