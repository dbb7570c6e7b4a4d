from __future__ import annotations

from pathlib import Path

import pytest

from src.composing import compose_checked
from src.data.samples import DEFECTIVE, NORMAL, Sample
from src.data.splits import hold_out, limit_test, limit_train
from src.errors import ConfigError

TRAIN = [Sample(Path(f"/{i}.png"), None, NORMAL, "good", "train") for i in range(37)]
TEST = [Sample(Path(f"/t{i}.png"), None, NORMAL, "good", "test") for i in range(20)] + [
    Sample(Path(f"/d{i}.png"), None, DEFECTIVE, f"kind{i % 3}", "test") for i in range(60)
]


@pytest.mark.parametrize(
    ("fraction", "held"), [(0, 0), (0.001, 2), (0.1, 4), (0.5, 18), (0.999, 36)]
)
def test_the_hold_out_has_the_rounded_share_and_at_least_two_images(fraction, held):
    kept, calibration = hold_out(TRAIN, fraction, seed=0)
    assert len(calibration) == held
    paths = [s.image_path for s in kept + calibration]
    assert sorted(paths) == sorted(s.image_path for s in TRAIN)
    assert {s.split for s in calibration} <= {"calibration"}
    assert [s.image_path for s in kept] == [s.image_path for s in TRAIN if s.image_path in
                                            {k.image_path for k in kept}]  # fmt: skip


def test_the_hold_out_depends_on_the_seed_only():
    assert hold_out(TRAIN, 0.3, 1) == hold_out(TRAIN, 0.3, 1)
    assert hold_out(TRAIN, 0.3, 1) != hold_out(TRAIN, 0.3, 2)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 10])
def test_a_hold_out_of_nothing_sensible_is_refused(fraction):
    with pytest.raises(ConfigError, match=r"calibration\.fraction"):
        compose_checked("run", [f"calibration.fraction={fraction}"])


def test_one_training_image_is_never_held_out():
    assert hold_out(TRAIN[:1], 0.5, 0) == (TRAIN[:1], [])


@pytest.mark.parametrize("limit", [2, 3, 8, 79])
def test_a_limited_test_set_keeps_both_classes_and_takes_every_defect_in_turn(limit):
    chosen = limit_test(TEST, limit, seed=0)
    kinds = [sum(s.defect == f"kind{k}" for s in chosen) for k in range(3)]
    assert len(chosen) == limit
    assert sum(kinds) >= 1
    assert any(s.label == NORMAL for s in chosen)
    assert max(kinds) - min(kinds) <= 1
    assert chosen == [s for s in TEST if s in chosen]


def test_limits_beyond_the_set_or_null_change_nothing():
    assert limit_test(TEST, None, 0) == limit_test(TEST, 80, 0) == TEST
    assert limit_train(TRAIN, None, 0) == limit_train(TRAIN, 99, 0) == TRAIN
    assert len(limit_train(TRAIN, 5, 0)) == 5


def test_limits_that_leave_no_class_are_refused():
    with pytest.raises(ConfigError, match=r"limit_test=2"):
        limit_test(TEST, 1, 0)
    with pytest.raises(ConfigError, match=r"limit_train=1"):
        compose_checked("run", ["data.limit_train=0"])
    assert len(limit_test(TEST[:5], 1, 0)) == 1  # one class only: one image is fine
