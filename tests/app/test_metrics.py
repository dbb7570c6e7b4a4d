from __future__ import annotations

import numpy as np
import pytest
import torch

from src import metrics
from src.data.samples import Sample
from src.errors import ConfigError
from src.evaluation import overlap
from src.evaluation.evaluator import Evaluator
from src.evaluation.pixels import PixelStore
from src.evaluation.view import View
from src.result import Prediction, Threshold


def test_every_number_the_evaluator_returns_is_explained(tmp_path):
    evaluator = Evaluator(View(8), memory_gb=1, resamples=10, limits=[0.3, 0.05, 0.01], seed=0)
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[1, :3, :3] = True
    batch = {"index": torch.arange(2), "label": torch.tensor([0, 1]), "mask": mask}
    evaluator.update(batch, Prediction(torch.tensor([0.0, 1.0]), mask.float()))
    threshold = Threshold(0.5, 0.5, "quantile", None, None, 1, oracle=False)
    samples = [Sample(tmp_path, None, y, d, "test") for y, d in ((0, "good"), (1, "big dent"))]
    for key in evaluator.compute(threshold, samples):
        assert len(metrics.metric_card(key)) > 25


def test_the_lines_of_a_card_are_true_where_they_can_be_checked():
    """Guessing gives an AUPRO of 0.15, as the card says."""
    store = PixelStore(1)
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:40, 10:40] = True
    rng = np.random.default_rng(0)
    for index in range(20):
        store.add(index, rng.random((64, 64)).astype(np.float32), mask)
    guessing = overlap.area_under_overlap(store.rank().regions, 0.3)
    assert guessing == pytest.approx(0.15, abs=0.005)
    assert "Guessing gives 0.15" in metrics.metric_card("aupro")


def test_a_misspelt_metric_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="test/aupro"):
        metrics.metric_card("test/auprou")


def test_the_cards_are_printed_on_the_command_line(capsys):
    assert metrics.main(["test/miou"]) == 0
    assert "never fires scores the share of good images" in " ".join(
        capsys.readouterr().out.split()
    )
    assert metrics.main([]) == 0
    assert metrics.main(["test/nonsense_metric"]) == 2
