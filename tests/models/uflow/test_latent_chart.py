"""The chart of the latents shows what was counted."""

from __future__ import annotations

import pytest
import torch

from src.models.uflow.latents import LatentStatistics, latent_chart


def test_the_chart_has_a_density_for_each_scale_beside_the_one_it_should_have():
    collected, generator = LatentStatistics(), torch.Generator().manual_seed(0)
    fine = torch.randn(9, 20, 16, 16, generator=generator)
    collected.update([fine, torch.randn(9, 20, 8, 8, generator=generator) * 0.8])
    chart = latent_chart(collected.result())
    normal, first, second = chart.lines
    assert "scale 2: deviation 0.79" in second
    width = chart.lines[normal][0][1] - chart.lines[normal][0][0]
    for name in (first, second):
        assert sum(chart.lines[name][1]) * width == pytest.approx(1.0)
    assert max(chart.lines[normal][1]) == pytest.approx(0.3989, abs=1e-3)
    assert chart.lines[first][1] == pytest.approx(chart.lines[normal][1], abs=0.03)
