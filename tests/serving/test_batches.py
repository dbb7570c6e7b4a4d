"""Requests that come while the detector works are scored together, and each gets its own answer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from src.commands import serve


class Told:
    """A detector that says the numbers it is given; negative ones break it."""

    run = None

    def __init__(self):
        self.sizes = []

    def score(self, inputs):
        self.sizes.append(len(inputs))
        if any(float(one) < 0 for one in inputs):
            raise RuntimeError("broken")
        return [float(one) for one in inputs]


@pytest.fixture
def ask(monkeypatch):
    """What requests that came while the detector worked are told, and the service itself."""
    monkeypatch.setattr(serve.ColourScale, "of_run", lambda run: None)
    monkeypatch.setattr(serve, "sources_of", lambda run: [])
    service = serve.Answering(Told())

    def answer(request):
        try:
            return service._score(list(map(torch.tensor, request)))
        except RuntimeError as error:
            return str(error)

    def together(requests):
        with ThreadPoolExecutor(len(requests)) as pool:
            with service._one_at_a_time:
                found = [pool.submit(answer, request) for request in requests]
                while len(service._waiting) < len(requests):
                    time.sleep(0.001)
            return [one.result(60) for one in found]

    return together, service


def test_requests_that_wait_are_one_batch_and_get_their_own_answers(ask):
    together, service = ask
    requests = [[float(10 * i + j) for j in range(1 + i % 2)] for i in range(12)]
    assert together(requests) == requests
    assert len(service.detector.sizes) == 2 and sum(service.detector.sizes) == 18
    assert not service._waiting


def test_a_failure_reaches_every_request_of_its_batch_and_none_waits_for_ever(ask):
    together, _ = ask
    assert all(isinstance(one, str) for one in together([[-1.0], [2.0], [3.0]]))
    assert together([[5.0]]) == [[5.0]]
