from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from src.composing import compose_checked
from src.data.samples import DEFECTIVE, NORMAL, Sample
from src.data.splits import choose_shots, hold_out, limit_test, split_training
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


@pytest.mark.parametrize(("at_least", "held"), [(2, 4), (9, 9), (19, 12)])
def test_small_sets_hold_out_what_alpha_needs_up_to_a_third(at_least, held):
    words = ["calibration.fraction=0.1", f"calibration.at_least={at_least}"]
    kept, calibration, _ = split_training(TRAIN, compose_checked("run", words), given=False)
    assert (len(kept), len(calibration)) == (37 - held, held)


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
    assert choose_shots(TRAIN, None, 0) == choose_shots(TRAIN, 37, 3) == (TRAIN, [])


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_shots_are_the_slices_of_anomaly_dino(shots, seed):
    chosen, others = choose_shots(TRAIN, shots, seed)
    assert chosen == TRAIN[seed * shots : (seed + 1) * shots]  # run_anomalydino.py
    assert [one for one in TRAIN if one not in chosen] == others


def test_a_slice_beyond_the_end_goes_on_with_the_first_images():
    chosen, others = choose_shots(TRAIN, 16, seed=2)  # 32..47 of 37
    assert chosen == TRAIN[:11] + TRAIN[32:] and len(others) == 21


def test_every_category_has_its_own_shots_and_its_own_share_for_calibration():
    two = [replace(one, category=name) for name in "ab" for one in TRAIN[: 20 + 10 * (name == "b")]]
    words = ["data.shots=4", "calibration.fraction=0.5", "seed=1"]
    train, held, _ = split_training(two, compose_checked("run", words), given=False)
    assert [(one.category, one.image_path.stem) for one in train] == [
        (name, str(k)) for name in "ab" for k in range(4, 8)
    ]
    assert [one.category for one in held] == ["a"] * 16 + ["b"] * 26
    train, held, _ = split_training(two, compose_checked("run", words[1:]), given=False)
    assert [one.category for one in held] == ["a"] * 10 + ["b"] * 15
    assert split_training(two, compose_checked("run", words), given=True)[1] == []


def test_limits_that_leave_no_class_are_refused():
    with pytest.raises(ConfigError, match=r"limit_test=2"):
        limit_test(TEST, 1, 0)
    with pytest.raises(ConfigError, match=r"shots=1"):
        compose_checked("run", ["data.shots=0"])
    assert len(limit_test(TEST[:5], 1, 0)) == 1  # one class only: one image is fine
