"""Requests that come while the detector works are scored together, and each gets its own answer."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from src.commands import serve


class Slow:
    """A detector whose first batch waits until `others` requests have come."""

    def __init__(self, answering_of, others):
        self.sizes, self.others, self.of = [], others, answering_of
        self.run = SimpleNamespace()

    def score(self, inputs):
        self.sizes.append(len(inputs))
        if len(self.sizes) == 1:
            while len(self.of()._waiting) < self.others:
                threading.Event().wait(0.001)
        if any(float(one) < 0 for one in inputs):
            raise RuntimeError("broken")
        return [float(one) for one in inputs]


def answering(monkeypatch, others):
    monkeypatch.setattr(serve.ColourScale, "of_run", lambda run: None)
    monkeypatch.setattr(serve, "sources_of", lambda run: [])
    made = []
    made.append(serve.Answering(Slow(lambda: made[0], others)))
    return made[0]


def test_requests_that_wait_are_one_batch_and_get_their_own_answers(monkeypatch):
    service = answering(monkeypatch, others=11)
    requests = [[torch.tensor(float(10 * i + j)) for j in range(1 + i % 2)] for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(service._score, requests))
    assert found == [[float(one) for one in some] for some in requests]
    assert len(service.detector.sizes) == 3  # the first alone, eight requests, the last three
    assert not service._waiting


def test_a_failure_reaches_every_request_of_its_batch_and_none_waits_for_ever(monkeypatch):
    service = answering(monkeypatch, others=2)

    def ask(value):
        try:
            return service._score([torch.tensor(value)])
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(ask, [-1.0, -2.0, -3.0]))
    assert all(isinstance(one, str) for one in found)
    with pytest.raises(RuntimeError):
        service._score([torch.tensor(-4.0)])
    assert service._score([torch.tensor(5.0)]) == [5.0]
