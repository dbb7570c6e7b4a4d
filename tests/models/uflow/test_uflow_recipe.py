"""conf/recipe/uflow: what U-Flow's numbers owe to backbone and category, in the composed config."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from src.composing import compose

OURS = ([1, 2, 3], True, "per_size", True)  # stages, standardise, tests, calibrate
PAPER = ([1, 2, 3], False, "total", False)


@pytest.mark.parametrize(
    ("words", "recipe", "learning"),
    [
        (["data.category=hazelnut"], PAPER, (1.3268898640895934e-3, 21, 500)),
        (["data.category=carpet", "protocol=paper"], PAPER, (3.163419554150971e-5, 13, 200)),
        (["data=synthetic"], PAPER, (1e-4, 8, 200)),  # the authors searched MVTec AD alone
        (["backbone=efficientnet_lite0"], ([2, 3, 4], True, "per_size", True), (1e-3, 16, 1000)),
        (["backbone=resnet18", "data.category=carpet"], OURS, (1e-3, 16, 100)),
        (["backbone=resnet18", "model.optimizer.lr=0.5", "data.batch_size=3",
          "trainer.max_epochs=7"], OURS, (0.5, 3, 7)),
    ],
)  # fmt: skip
def test_backbone_and_category_choose_the_recipe_and_the_user_has_the_last_word(
    words, recipe, learning
):
    cfg = compose("run", ["model=uflow", "data=mvtec", *words])
    model = OmegaConf.to_container(cfg.model, resolve=True)
    nfa = model["nfa"]
    assert (model["stages"], model["standardise"], nfa["tests"], nfa["calibrate"]) == recipe
    assert (model["optimizer"]["lr"], cfg.data.batch_size, cfg.trainer.max_epochs) == learning
    held_out = (cfg.calibration.fraction, cfg.validation.fraction)
    assert held_out == ((0.0, 0.0) if "protocol=paper" in words else (0.1, 0.05))
