"""A PatchCore that is broken on purpose must not count as a reproduction of the unbroken one.

The paper's side is the mean of other seeds of the unbroken one, printed as finely as the official
repository prints. Both sides share the images, as a paper and we do; what a seed changes is the
bank. Images are read and features computed once for each normalisation.

Banks are large here, because four seeds of one category then suffice. With 2 % of 60 bottles at
224 px, pixel AUROC spreads by 0.0006 over seeds (measured, five seeds) and a missing blur costs
0.0019: less than the 0.003 that four seeds of one category leave open. Three seeds of fifteen such
categories leave their mean 0.0006 and rounding.
"""

from __future__ import annotations

import os
from statistics import fmean
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from src.data.datamodule import AnomalyDataModule
from src.evaluation.evaluator import build_evaluator
from src.models.build import build_model
from src.models.patchcore.region import smooth_maps
from src.models.patchcore.scores import Scored
from src.reproduction.judging import Measured, judge_variant
from src.reproduction.planning import Published, Variant
from src.result import Prediction, Threshold
from tests.conftest import compose_app

METRICS = ("test/image_auroc", "test/pixel_auroc", "test/aupro")  # of conf/paper/patchcore.yaml
PAPER, OURS = (0, 1), (2, 3, 4, 5)  # seeds
CELL = 8  # pixels of a feature cell
SMALL = ("model=patchcore", "backbone=efficientnet_lite0", "hardware=cpu", "hardware.num_workers=0",
         "evaluation.bootstrap=0", "model.target_dim=256", "model.embedding=official",
         "model.normalise=none", "model.score=max", "calibration.method=leave_one_out")  # fmt: skip
DRAWN = (
    *SMALL, "data=synthetic", "data.synthetic.size=96", "data.synthetic.train=12",
    "data.synthetic.test_normal=8", "data.synthetic.test_defective=18", "evaluation.size=96",
    "transform.resize=96", "transform.crop=null", "model.coreset.ratio=0.9",
)  # fmt: skip
REAL = (
    *SMALL, "data=mvtec", "data.category=bottle", "data.shots=30", "data.limit_test=40",
    "transform.resize=128", "transform.crop=112", "evaluation.size=112", "model.coreset.ratio=0.5",
)  # fmt: skip


class Change(NamedTuple):
    """What is broken: overrides, and pixels by which the map is shifted to the right."""

    overrides: tuple[str, ...] = ()
    shift: int = 0


FAITHFUL = Change()
BROKEN = {
    "no blur": Change(("model.sigma=0",)),
    "no patch neighbourhood": Change(("model.patch_size=1",)),
    "map shifted by one cell": Change(shift=CELL),
    "input scaled wrongly": Change(("backbone.mean=[0,0,0]", "backbone.std=[1,1,1]")),
}


class Remembered(nn.Module):
    """A backbone that computes the features of a batch once, whichever model asks."""

    def __init__(self, backbone: nn.Module, known: dict[int, list[Tensor]]) -> None:
        super().__init__()
        self.backbone, self.known = backbone, known

    def forward(self, image: Tensor) -> list[Tensor]:
        key = image.data_ptr()  # batches live as long as `known`
        if key not in self.known:
            self.known[key] = self.backbone(image)
        return self.known[key]


class Images:
    """Batches of one data set under one normalisation, and their features."""

    def __init__(self, cfg) -> None:
        self.data = AnomalyDataModule(cfg)
        self.data.prepare_data()
        self.data.setup()
        self.train = list(self.data.ordered_train_dataloader())
        self.test = list(self.data.test_dataloader())
        self.features: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def scored(self, cfg) -> list[Scored]:
        """Patch scores of the test batches by a PatchCore fitted to the training batches."""
        model = build_model(cfg, self.data.image_size).eval()
        model.backbone = Remembered(model.backbone, self.features)
        model.memory.begin(len(self.data.train_samples))
        for i, batch in enumerate(self.train):
            model.training_step(batch, i)
        model.memory.finish()
        return [model.memory.score(model.patches(batch["image"])[0]) for batch in self.test]

    def metrics(self, cfg, scored: list[Scored], shift: int) -> dict[str, float]:
        """What these patch scores amount to, with the maps moved `shift` pixels to the right."""
        evaluator = build_evaluator(cfg, self.data.transform, self.data.samples)
        for batch, found in zip(self.test, scored, strict=True):
            maps = smooth_maps(found.grid, self.data.image_size, cfg.model.sigma)
            moved = torch.roll(maps, shift, dims=-1)
            evaluator.update(batch, Prediction(found.image, moved))
        return evaluator.compute(Threshold(0.0, 0.0, "fixed", None, None, 0, oracle=False), None)


class Runs:
    """Finished runs of one base config; whatever several of them share is computed once."""

    def __init__(self, base: tuple[str, ...]) -> None:
        self.base = base
        self.images: dict[tuple[str, ...], Images] = {}
        self.scored: dict[tuple, list[Scored]] = {}

    def run(self, change: Change, seed: int) -> Measured:
        cfg = compose_app("run", *self.base, *change.overrides, f"model.seed={seed}")
        normalisation = tuple(o for o in change.overrides if o.startswith("backbone."))
        if normalisation not in self.images:
            self.images[normalisation] = Images(cfg)
        images = self.images[normalisation]
        fit = (*(o for o in change.overrides if "sigma" not in o), seed)  # blind to the blur
        if fit not in self.scored:
            self.scored[fit] = images.scored(cfg)
        metrics = images.metrics(cfg, self.scored[fit], change.shift)
        return Measured(seed, metrics, {}, "h", "honest", 1.0)

    def failing(self, change: Change) -> list[str]:
        """Metrics outside their tolerance; what was measured is printed."""
        paper = [self.run(FAITHFUL, seed).metrics for seed in PAPER]
        columns = tuple(
            Published(metric, "other seeds", {"part": round(fmean(p[metric] for p in paper), 4)},
                      0.00005, True, "")
            for metric in METRICS
        )  # fmt: skip
        ours = [self.run(change, seed) for seed in OURS]
        rows = judge_variant(
            "t", Variant("v", "V", (), METRICS, columns, ("part",)), {"part": ours}
        )
        assert [row.judged for row in rows] == [True] * len(METRICS)
        for row in rows:
            reach = row.tolerance.high - row.ours
            print(f"{row.metric} {row.difference:+.5f}, within {reach:.5f}: {row.verdict}")
        return [row.metric for row in rows if row.fails]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(tmp_path_factory.mktemp("drawn")))
        yield Runs(DRAWN)


@pytest.fixture(scope="module")
def bottles():
    if not os.environ.get("MVTEC_AD_ROOT"):
        pytest.skip("set MVTEC_AD_ROOT to real images")
    return Runs((*REAL, f"data.root={os.environ['MVTEC_AD_ROOT']}"))


def test_other_seeds_of_the_same_patchcore_reproduce_it(drawn):
    assert not drawn.failing(FAITHFUL)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_patchcore_is_no_reproduction(name, drawn):
    assert drawn.failing(BROKEN[name])


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", [None, *BROKEN])
def test_on_real_bottles_only_the_unbroken_patchcore_is_a_reproduction(name, bottles):
    assert bool(bottles.failing(BROKEN[name] if name else FAITHFUL)) == (name is not None)
