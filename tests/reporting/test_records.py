from __future__ import annotations

import math

from src.reporting.records import choose_pictures
from src.saved_run import ScoreRow, outcome
from tests.reporting.pictures import make_results


def test_outcomes_name_the_four_cases_and_images_without_a_label():
    assert outcome(1, True) == "hit" and outcome(1, False) == "miss"
    assert outcome(0, True) == "false alarm" and outcome(0, False) == "correct pass"
    assert outcome(-1, True) == "alarm" and outcome(-1, False) == "pass"


def test_wrong_decisions_come_first_and_no_image_twice():
    rows = make_results(20)
    order = choose_pictures(rows, 1.0, 100)
    assert sorted(order) == list(range(20))
    assert [rows[k].outcome for k in order[:2]] == ["miss", "false alarm"]


def test_every_defect_type_is_shown_even_when_few_pictures_fit():
    rows = [ScoreRow(f"{k}", 1, "common", 5.0 + k, True) for k in range(50)]
    rows += [ScoreRow("r", 1, "rare", 500.0, True)]
    assert {rows[k].defect for k in choose_pictures(rows, 1.0, 4)} == {"common", "rare"}


def test_scores_that_are_not_numbers_do_not_stop_the_choice():
    rows = [ScoreRow(f"{k}", 1, "a", s, True) for k, s in enumerate((math.nan, math.inf, 1.0))]
    assert len(choose_pictures(rows, math.inf, 10)) == 3
