from __future__ import annotations

import numpy as np

from src.commands.predict import DriftMonitor


def warnings_of(live, calibration, window=100, alpha=0.001):
    monitor = DriftMonitor(calibration, window, alpha)
    return [warning for score in live if (warning := monitor.update(score))]


def test_a_shift_of_scores_is_noticed_with_its_direction():
    chance = np.random.default_rng(0)
    calm = chance.normal(10, 1, 200)
    found = warnings_of(chance.normal(11.5, 1, 100), calm)
    assert len(found) == 1
    assert "higher" in str(found[0])
    assert "lower" in str(warnings_of(chance.normal(8.5, 1, 100), calm)[0])


def test_without_a_shift_warnings_are_as_rare_as_alpha_says():
    chance = np.random.default_rng(1)
    raised = sum(
        bool(warnings_of(chance.normal(0, 1, 100), chance.normal(0, 1, 200), alpha=0.02))
        for _ in range(400)
    )
    assert raised <= 400 * 0.02 + 3 * (400 * 0.02 * 0.98) ** 0.5


def test_few_calibration_images_keep_it_silent():
    assert warnings_of([100.0] * 200, [1.0] * 19) == []
    assert warnings_of([100.0] * 200, [1.0] * 20)


def test_it_recovers_when_the_old_scores_have_left_the_window():
    chance = np.random.default_rng(2)
    calm = chance.normal(0, 1, 300)
    live = np.concatenate([chance.normal(3, 1, 100), chance.normal(0, 1, 300)])
    monitor = DriftMonitor(calm, 100, 0.001)
    raised = [monitor.update(score) is not None for score in live]
    assert any(raised[:100])
    assert not any(raised[-100:])
