"""Replayed inference says what the method says; on a GPU also: hot loops never wait for it."""

from __future__ import annotations

import pytest
import torch

from src.models.replay import Replay
from src.result import Prediction
from tests.bench.bench_gpu import syncs_counted
from tests.models.test_without_waiting import METHODS, fitted

CUDA = torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")


def same(found: Prediction, expected: Prediction) -> None:
    torch.testing.assert_close(found.score, expected.score, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-4)
    assert found.extra.keys() == expected.extra.keys()


def test_on_a_cpu_it_is_the_method_itself():
    model, _ = fitted("patchcore")
    image = torch.randn(2, 3, 64, 64)
    same(Replay(model)(image), model(image))


@needs_gpu
@pytest.mark.parametrize("name", METHODS)
def test_a_replay_of_any_size_says_what_the_method_says(name):
    model, side = fitted(name)
    quick = Replay(model.to(CUDA))
    with torch.inference_mode():
        for size in (1, 3, 1, 3, 2):  # graphs of several sizes share one pool
            image = torch.randn(size, 3, side, side, device=CUDA)
            same(quick(image), model(image))


@needs_gpu
def test_what_no_graph_can_hold_is_said_once_and_computed_as_before(caplog):
    model, side = fitted("patchcore")
    plain = model.traced
    model.to(CUDA).traced = lambda image: plain(image + float(image.sum() * 0))
    quick, image = Replay(model), torch.randn(2, 3, side, side, device=CUDA)
    with torch.inference_mode():
        for _ in range(2):
            same(quick(image), model(image))
    assert caplog.text.count("No CUDA graph") == 1


@needs_gpu
@pytest.mark.parametrize("name", ["patchcore", "uflow", "crn"])
def test_a_gpu_says_what_the_cpu_says(name):
    model, side = fitted(name)
    image = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        expected = model(image).cpu()
        found = Replay(model.to(CUDA))(image.to(CUDA)).cpu()
    torch.testing.assert_close(found.score, expected.score, rtol=2e-3, atol=2e-3)


@needs_gpu
@pytest.mark.parametrize("name", METHODS)
def test_scoring_never_waits(name):
    model, side = fitted(name)
    model.to(CUDA)
    image = torch.randn(2, 3, side, side, device=CUDA)
    with torch.inference_mode():
        model.traced(image)  # matrices of the maps go to the device with the first image
        with syncs_counted(CUDA) as syncs:
            model.traced(image)
    assert syncs == [0]
