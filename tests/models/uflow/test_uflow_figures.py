"""Figures show what they claim, also for good images, unknown masks and odd shapes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from src.errors import ConfigError
from src.models.base import Prediction
from src.models.uflow.figures import latent_figure, prediction_figure
from src.models.uflow.latents import LatentStatistics


def prediction(shape=(32, 48)):
    likelihood = torch.rand(2, *shape)
    log_nfa = torch.full((2, *shape), 400.0)
    log_nfa[0, 5:15, 10:20] = -1200.0
    return Prediction(likelihood.flatten(1).amax(1), likelihood, log_nfa)


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def pixels(figure):
    stream = io.BytesIO()
    figure.savefig(stream, dpi=60)
    return np.asarray(Image.open(stream).convert("RGB"))


def test_five_panels_are_drawn_with_outlines_of_truth_and_detection():
    mask = np.zeros((64, 96), bool)
    mask[12:30, 20:40] = True
    image = np.full((64, 96, 3), 90, np.uint8)
    figure = prediction_figure(image, mask, prediction())
    assert titles(figure) == [
        "input", "truth", "anomaly likelihood", "log10 NFA", "log10 NFA < 0",
    ]  # fmt: skip
    drawn = pixels(figure)
    cyan = (abs(drawn.astype(int) - [0, 229, 255]).max(axis=2) < 60).sum()
    assert cyan > 20
    without = pixels(prediction_figure(image, mask, prediction(), row=1))  # nothing detected
    assert (abs(without.astype(int) - [0, 229, 255]).max(axis=2) < 60).sum() == 0


def test_good_images_and_unknown_masks_are_drawn_too():
    image = np.full((40, 40, 3), 90, np.uint8)
    pixels(prediction_figure(image, np.zeros((40, 40), bool), prediction((16, 16)), row=1))
    pixels(prediction_figure(image, None, prediction((16, 16)), row=1))


def test_a_prediction_without_nfa_is_explained():
    bare = prediction()._replace(log_nfa=None)
    with pytest.raises(ConfigError, match="threshold=nfa"):
        prediction_figure(np.zeros((8, 8, 3), np.uint8), None, bare)


def test_latent_histograms_have_one_panel_per_scale():
    collected, generator = LatentStatistics(), torch.Generator().manual_seed(0)
    fine = torch.randn(9, 20, 16, 16, generator=generator)
    collected.update([fine, torch.randn(9, 20, 8, 8, generator=generator) * 0.8])
    figure = latent_figure([found.to_json() for found in collected.result()])
    assert len(titles(figure)) == 2
    assert "scale 2: deviation 0.79" in titles(figure)[1]
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    width = figure.axes[0].patches[0].get_width()
    assert sum(heights) * width == pytest.approx(1.0)
