"""A PatchCore that is broken on purpose must not count as a reproduction of the unbroken one.

What four seeds of one drawn category can tell. They cannot tell a missing blur or input that is
scaled wrongly: these stay within the spread over seeds of so small a test set.
"""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from src.data.build import build_datamodule
from src.evaluation.evaluator import build_evaluator
from src.evaluation.threshold import Threshold
from src.models.build import build_model
from src.reproduction.judging import Measured, judge_variant
from src.reproduction.papers import Published, Variant

METRICS = ("test/image_auroc", "test/pixel_auroc", "test/aupro")
SEEDS = (1, 2, 3, 4)  # of ours; the "paper" is seed 0
SMALL = ("model=patchcore", "backbone=efficientnet_lite0", "hardware=cpu", "hardware.num_workers=0",
         "evaluation.bootstrap=0", "model.coreset.ratio=0.5", "model.target_dim=256")  # fmt: skip
DRAWN = (
    *SMALL, "data=synthetic", "data.synthetic.size=96", "data.synthetic.train=24",
    "data.synthetic.test_normal=8", "data.synthetic.test_defective=18", "evaluation.size=96",
    "transform.resize=96", "transform.crop=null",
)  # fmt: skip
CELL = 8  # pixels of a feature cell
BROKEN = {
    "no patch neighbourhood": ("model.patch_size=1",),
    "map shifted by one cell": (),
}


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    """(overrides, seed, shift) -> one finished run; equal calls are computed once."""
    from tests.conftest import compose_app

    known: dict[tuple, Measured] = {}

    def once(overrides, seed, shift=0) -> Measured:
        key = (overrides, seed, shift)
        if key not in known:
            cfg = compose_app("run", *overrides, f"seed={seed}")
            known[key] = Measured(seed, evaluate(cfg, shift), {}, "h", "honest", 1.0)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(tmp_path_factory.mktemp("drawn")))
        yield once


def evaluate(cfg, shift: int) -> dict[str, float]:
    pl.seed_everything(cfg.seed, verbose=False)
    data = build_datamodule(cfg)
    data.prepare_data()
    data.setup()
    model = build_model(cfg, data.image_size)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    model.eval()
    model.after_fit(data.ordered_train_dataloader())
    evaluator = build_evaluator(cfg, data.transform, data.samples)
    for batch in data.test_dataloader():
        found = model(batch["image"])
        moved = torch.roll(found.anomaly_map, shift, dims=-1)
        evaluator.update(batch, found._replace(anomaly_map=moved))
    return evaluator.compute(Threshold(0.0, 0.0, "fixed", None, None, 0, oracle=False), None)


def fails(measure, base, change=(), shift=0) -> bool:
    """Whether four seeds of a changed PatchCore leave the tolerance of the unbroken seed 0."""
    printed = measure(base, 0).metrics
    columns = tuple(
        Published(metric, "seed 0", {"part": round(printed[metric], 4)}, 0.00005, True, "")
        for metric in METRICS
    )
    ours = [measure((*base, *change), seed, shift) for seed in SEEDS]
    rows = judge_variant("t", Variant("v", "V", (), METRICS, columns, ("part",)), {"part": ours})
    assert len(rows) == len(METRICS)
    return any(row.fails for row in rows)


def test_other_seeds_of_the_same_patchcore_reproduce_it(measure):
    assert not fails(measure, DRAWN)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_patchcore_is_no_reproduction(name, measure):
    assert fails(measure, DRAWN, BROKEN[name], CELL if "shifted" in name else 0)
