from __future__ import annotations

import math

import pytest

from src.evaluation.threshold import Deciding
from src.reporting import wording
from src.reporting.records import ProtocolFacts
from src.result import Calibration, Threshold
from tests.reporting.pictures import make_results
from tests.reporting.report_data import make_report


def facts(**changes):
    values = {"image": 1.0, "pixel": 1.0, "rule": "conformal", "alpha": 0.01, "attained": 0.0095,
              "n": 209, "oracle": False}  # fmt: skip
    return Threshold(**(values | changes))


def text(threshold):
    return " ".join(wording.threshold_sentences(threshold, None)).replace("\N{NO-BREAK SPACE}", " ")


def test_a_kept_promise_names_its_level_and_the_images_behind_it():
    said = text(facts())
    assert "on average over calibrations, 1 % of good parts or less" in said
    assert "Set from the scores of 209 normal images" in said
    assert "95 of 100 calibrations stay at or below 2.25 % false alarms" in said


def test_too_few_calibration_images_are_said_to_break_the_promise_and_how_many_are_needed():
    said = text(facts(n=20, attained=1 / 21))
    assert "can promise no less than 4.76 %" in said
    assert "99 images are needed for 1 %" in said
    assert "1 % of good parts or less" not in said
    assert "at or below 13.9 % false alarms" in said


def test_an_oracle_is_called_an_oracle():
    assert "oracle" in text(facts(rule="f1_oracle", oracle=True, alpha=None))


def test_the_nfa_rule_is_written_as_a_condition_on_regions_not_on_a_score():
    rule = facts(rule="nfa", alpha=None, attained=None)
    assert wording.alarm_rule(rule) == "log10 NFA < 0 somewhere in the image"
    assert "Nothing was calibrated" in text(rule)


def test_an_unknown_rule_still_says_whether_labels_were_used():
    assert "used no test label" in text(facts(rule="mine"))
    assert "used test labels" in text(facts(rule="mine", oracle=True))


def test_the_protocol_box_says_what_the_labels_did_in_each_case():
    def box(name="honest", how=Calibration.leave_one_out, **changes):
        images, protocol = make_results(8), ProtocolFacts(name, 1, how, held_out=21)
        return dict(wording.protocol_rows(
            make_report(images=images, protocol=protocol, threshold=facts(**changes))
        ))  # fmt: skip

    rows = box()
    assert rows["Training"].startswith("1 normal image;")
    assert rows["Test"].startswith("4 normal and 4 defective images.")
    assert "chose nothing" in rows["Test"]
    assert rows["Calibration"] == "leave-one-image-out on the training images"
    assert "the same numbers on the same CPU" in rows["Repeating"]
    assert "Another processor rounds differently" in rows["Repeating"]
    assert "also chose the threshold" in box(oracle=True)["Test"]
    assert "test labels included" in box("paper")["Test"]
    assert box(how=Calibration.held_out)["Calibration"] == "21 held-out normal images"
    assert "shift log NFA" in box(how=Calibration.held_out, rule="nfa")["Calibration"]


@pytest.mark.parametrize("rule", ["conformal", "quantile"])
def test_each_way_of_calibrating_is_said_to_promise_what_is_proven_of_it(rule):
    said = {
        how: " ".join(wording.threshold_sentences(facts(rule=rule), how)) for how in Calibration
    }
    assert [how for how in said if "This is proven" in said[how]] == [Calibration.held_out]
    assert "2/n" in said[Calibration.cross] and "2021" in said[Calibration.cross]
    assert "without its fold" in said[Calibration.cross]
    assert "Nothing is proven" in said[Calibration.leave_one_out]
    assert "too high" in said[Calibration.leave_one_out]
    assert all("exchangeable" in each for each in said.values())
    assert [how for how in said if "were they held out" not in said[how]] == [Calibration.held_out]


def test_one_line_names_the_aim_and_its_ground():
    lines = [wording.aim(facts(), how) for how in Calibration]
    assert all("0.95 % false alarms on average, up to 2.2 %" in line for line in lines)
    assert ["not proven" in line for line in lines] == [False, True, True]
    assert wording.aim(facts(attained=None), None) == ""


def test_a_decision_is_told_with_the_picture_that_made_it():
    decides = Deciding("good/023.png", 248.04, 223.1, 2 / 55, [("good/7.png", 260.0)])
    said = wording.deciding_sentence(decides).replace("\N{NO-BREAK SPACE}", " ")
    assert said == (
        "Threshold 248 comes from good/023.png; without it 223.1, alpha 3.6 %. "
        "Above it: good/7.png (260)."
    )
    lowest = wording.deciding_sentence(decides._replace(lower=None, above=()))
    assert lowest == "Threshold 248 comes from good/023.png."


def test_numbers_that_do_not_exist_are_words():
    assert wording.number(math.nan) == "not defined"
    assert wording.number(math.inf) == "infinite"
    assert wording.number(0.98765) == "0.9877"
    assert wording.number(1432.2, "MB") == "1,432 MB"
    assert wording.score(math.nan) == "not a number"


def test_tiles_keep_their_order_and_leave_out_what_was_not_measured():
    ends = {"test/recall_ci_low": 0.4, "test/recall_ci_high": 0.6}
    metrics = {"test/recall": 0.5, "test/image_auroc": 0.9, "fit/seconds": 3.0} | ends
    tiles = wording.headline_tiles(make_report(metrics=metrics), "CPU")
    assert [tile["name"] for tile in tiles] == ["Image AUROC", "Recall"]
    assert tiles[0]["interval"] == ""
    assert "0.4000" in tiles[1]["interval"] and "0.6000" in tiles[1]["interval"]


def test_a_shifted_nfa_is_not_called_uncalibrated():
    nfa = Threshold(image=0.0, pixel=0.0, rule="nfa")
    plain = " ".join(wording.threshold_sentences(nfa, None))
    shifted = " ".join(wording.threshold_sentences(nfa, Calibration.held_out))
    assert "Nothing was calibrated" in plain
    assert "Nothing was calibrated" not in shifted
    assert "held-out" in shifted


def test_the_choice_of_the_epoch_is_told_with_the_images_it_rests_on():
    chosen = wording.checkpoint_choice("honest", {"val/images": 10.0, "val/kept_step": 540.0})
    assert chosen.startswith("step 540, the latest that is not clearly worse than the best")
    assert "10 normal images; these neither trained nor" in chosen
    assert "last weights; too few" in wording.checkpoint_choice("honest", {"val/images": 0.0})
    assert wording.checkpoint_choice("honest", {}) == ""
    assert "test set" in wording.checkpoint_choice("paper", {})


def test_no_level_is_promised_for_a_number_of_false_alarms():
    rule = facts(rule="nfa", alpha=None, attained=None, n=0)
    plain, shifted = (
        wording.threshold_sentences(rule, how) for how in (None, Calibration.held_out)
    )
    assert "nothing is promised" in " ".join(plain)
    assert "promises no level" in " ".join(shifted)
