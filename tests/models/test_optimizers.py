from __future__ import annotations

import pytest
import torch
from torch import nn

from src.errors import ConfigError
from src.models.build import make

ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01, "weight_decay": 0.1}
LINEAR = {
    "_target_": "torch.optim.lr_scheduler.LinearLR", "_partial_": True, "start_factor": 1.0,
    "end_factor": 0.5,
}  # fmt: skip


def test_the_configuration_names_the_optimizer_and_its_numbers():
    layer = nn.Linear(2, 2)
    optimizer = make(
        "optimizer", ADAM, [{"params": [layer.weight]}, {"params": [layer.bias], "lr": 1}]
    )
    assert type(optimizer) is torch.optim.Adam
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.01, 0.1), (1, 0.1),
    ]  # fmt: skip


def test_the_run_adds_what_it_alone_knows_to_a_schedule():
    optimizer = make("optimizer", ADAM, nn.Linear(2, 2).parameters())
    schedule = make("scheduler", LINEAR, optimizer, total_iters=10)
    for _ in range(10):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == [pytest.approx(0.005)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_target_": "torch.optim.Adom"}, "Adom"),
        ({"momentum": 0.9}, "momentum"),
        ({"lr": -1.0}, "learning rate"),
    ],
)
def test_an_optimizer_that_cannot_be_made_is_explained(change, said):
    with pytest.raises(ConfigError, match=rf"model\.optimizer cannot be made[\s\S]*{said}"):
        make("optimizer", ADAM | change, nn.Linear(2, 2).parameters())
