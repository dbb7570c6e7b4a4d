"""The figure of the latents shows what was counted."""

from __future__ import annotations

import pytest
import torch

from src.models.uflow.figures import latent_figure
from src.models.uflow.latents import LatentStatistics


def test_latent_histograms_have_one_panel_per_scale():
    collected, generator = LatentStatistics(), torch.Generator().manual_seed(0)
    fine = torch.randn(9, 20, 16, 16, generator=generator)
    collected.update([fine, torch.randn(9, 20, 8, 8, generator=generator) * 0.8])
    figure = latent_figure([found.to_json() for found in collected.result()])
    titles = [axis.get_title() for axis in figure.axes]
    assert len(titles) == 2
    assert "scale 2: deviation 0.79" in titles[1]
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    width = figure.axes[0].patches[0].get_width()
    assert sum(heights) * width == pytest.approx(1.0)
