from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.reporting import page_images, report
from src.reporting.pages import resource
from src.reporting.records import Picture
from src.result import Threshold
from src.saved_run import ScoreRow
from tests.reporting.pictures import SCALE, make_picture
from tests.reporting.report_data import EVIL, make_report

VOID = {"meta", "link", "img", "input", "br", "wbr", "hr"}


class Page(HTMLParser):
    """Collects elements, text by element, and whether tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"{tag} closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    def text_of(self, tag):
        return "".join(text for name, text in self.texts if name == tag)


def write(path, data, images=120, side=96, size=1e9):
    report.write_report(path, data, max_images=images, max_side=side, max_megabytes=size / 1e6)
    return path.read_text(encoding="utf-8")


def rendered(data, images=120, side=96, size=1e9):
    with tempfile.TemporaryDirectory() as folder:
        text = write(Path(folder) / "report.html", data, images, side, size)
    return text, Page(text)


def test_the_page_is_well_formed_and_names_no_address_outside_itself():
    for changes in ({}, {"match": True}, {"extra": True}, {"evil": True}):
        text, page = rendered(make_report(**changes))
        for _, attrs in page.elements:
            for name in ("src", "href", "action", "poster", "srcset"):
                value = attrs.get(name) or ""
                assert value == "" or value.startswith(("data:", "#")), (name, value)
            assert "style" not in attrs and not any(name.startswith("on") for name in attrs)
        bare = re.sub(r"data:image/webp;base64,[A-Za-z0-9+/=]*", "", text)
        assert not re.search(r"(https?:)?//[a-z]|url\(|@import|\bfetch\(|XMLHttp", bare)


def test_the_security_policy_allows_exactly_the_style_and_script_of_the_page():
    _, page = rendered(make_report())
    metas = page.all("meta")
    policy = next(a["content"] for a in metas if "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    for tag in ("style", "script"):
        body = page.text_of(tag)
        if tag == "script":
            body = "".join(t for n, t in page.texts if n == "script" and not t.startswith("{"))
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_hostile_names_are_shown_as_text_everywhere():
    text, page = rendered(make_report(evil=True, match=True))
    assert '<script>alert("1")' not in text
    assert len(page.all("script")) == 2
    assert page.text_of("h1") == EVIL
    assert "49" not in page.text_of("h1")
    assert any(attrs.get("title") == EVIL for attrs in page.all("p"))
    assert any(attrs.get("value") == EVIL for attrs in page.all("option"))


def test_the_data_of_the_page_is_valid_json_and_equals_the_results():
    data = make_report(evil=True)
    _, page = rendered(data)
    block = next(t for n, t in page.texts if n == "script" and t.startswith("{"))
    read = json.loads(block)
    assert read["threshold"] == 1.0
    assert [row[0] for row in read["rows"]] == [row.path for row in data.images]
    assert [row[4] for row in read["rows"]] == [int(row.decision) for row in data.images]


def test_every_image_has_an_alternative_text_and_every_field_a_label():
    _, page = rendered(make_report(match=True, extra=True))
    assert all("alt" in attrs for attrs in page.all("img"))
    photos = [attrs for attrs in page.all("img") if attrs.get("class") == "photo"]
    assert all(attrs["alt"] for attrs in photos)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            if name in attrs:
                assert attrs[name] in ids
    assert {"header", "main", "nav"} <= {name for name, _ in page.elements}


def test_wrong_decisions_stand_first_and_right_ones_follow_by_how_close_they_were():
    data = make_report(40)
    _, page = rendered(data)
    cards = [a for a in page.all("li") if a.get("class") == "card" and "data-outcome" in a]
    rows = [data.images[int(a["data-index"])] for a in cards]
    assert len(rows) == 40
    wrong = [row.outcome in ("miss", "false alarm") for row in rows]
    assert wrong == sorted(wrong, reverse=True) and sum(wrong) == 2
    margins = [abs(row.score - 1.0) for row in rows]
    assert margins[0] >= margins[1]
    assert margins[2:] == sorted(margins[2:])


def test_at_most_the_wanted_pictures_are_embedded_and_all_images_are_listed():
    _, page = rendered(make_report(30), images=5)
    assert sum(a.get("class") == "photo" for a in page.all("img")) == 5
    assert sum(a.get("class") == "card" for a in page.all("li")) == 30


def test_pictures_stop_when_the_page_is_full():
    small = len(rendered(make_report(30), size=0)[0])
    bounded = len(rendered(make_report(30), size=20_000)[0])
    assert small < bounded < small + 20_000 + 30 * 700  # a picture costs its data and some markup


def test_pictures_are_decoded_one_at_a_time_and_only_those_that_are_shown():
    calls = []

    def lazy(k):
        def make():
            calls.append(k)
            return make_picture(seed=k)

        return make

    rows = [ScoreRow(f"{k}", 1, "a", float(k), True) for k in range(20)]
    pictures = {k: lazy(k) for k in range(20)}
    data = make_report(images=rows, pictures=pictures, threshold=Threshold(-1.0, 1.0, "x"))
    rendered(data, images=3)
    assert sorted(calls) == [0, 1, 2]


def test_a_page_without_any_image_or_number_can_be_written(tmp_path):
    empty = make_report(images=[], recalls=[], curves=[], metrics={}, manifest={},
                        config_yaml="", command="")  # fmt: skip
    write(tmp_path / "new" / "report.html", empty)
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["report.html"]


def test_infinite_thresholds_and_scores_that_are_not_numbers_are_shown_in_words():
    rows = [ScoreRow("a", 0, "good", math.nan, False),
            ScoreRow("b", 1, "x", 2.0, False)]  # fmt: skip
    text, page = rendered(make_report(images=rows, threshold=Threshold(math.inf, 1, "conformal")))
    assert "anomaly score &gt; infinite" in text
    assert "NaN" not in next(t for n, t in page.texts if n == "script" and t.startswith("{"))


def test_decisions_that_do_not_come_from_the_score_show_no_threshold_among_the_scores():
    data = make_report(threshold=Threshold(0.0, 0.0, "nfa"))
    assert math.isnan(report.score_threshold(data))
    text, page = rendered(data)
    assert all(a.get("id") != "threshold-line" for a in page.all("line"))
    assert "did not decide by one finite threshold" in text
    assert report.score_threshold(make_report()) == 1.0


def test_names_that_are_no_valid_unicode_do_not_stop_the_page(tmp_path):
    rows = [ScoreRow("bad\udce4name.png", 0, "good", 0.1, False)]
    assert r"bad\udce4name.png" in write(tmp_path / "report.html", make_report(images=rows))


def test_layers_decode_to_the_shown_size_and_fade_where_nothing_is_wrong():
    layers = page_images.encode_layers(make_picture(480, 640), SCALE, 320)
    assert (layers.width, layers.height) == (320, 240)
    heat = decode(layers.heat)
    assert heat.shape[0] / heat.shape[1] == 240 / 320
    assert heat[-20:, -20:, 3].max() <= 2  # no anomaly there
    assert heat[:, :, 3].max() > 150
    photo = decode(layers.photo).astype(float)
    assert photo.shape == (240, 320, 3)
    none = page_images.encode_layers(make_picture(defect=False), SCALE, 320)
    assert not none.lines


def test_a_picture_smaller_than_the_limit_is_not_enlarged():
    layers = page_images.encode_layers(make_picture(20, 30, defect=False), SCALE, 384)
    assert (layers.width, layers.height) == (30, 20)


def test_a_one_pixel_picture_can_be_shown():
    tiny = Picture(np.zeros((1, 1, 3), np.uint8), np.full((1, 1), 9.0, np.float32))
    layers = page_images.encode_layers(tiny, SCALE, 384)
    assert decode(layers.heat)[0, 0, 3] > 200


def decode(uri):
    kind, data = uri.split(",", 1)
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_nested_facts_become_dotted_rows_in_order():
    rows = report.flatten({"a": {"b": 1, "c": [1, 2]}, "d": "x", "e": None})
    assert rows == [("a.b", "1"), ("a.c", "[1, 2]"), ("d", "x"), ("e", "null")]


def test_the_page_reads_the_same_when_it_is_written_twice(tmp_path):
    data = make_report(match=True)
    write(tmp_path / "a.html", data)
    write(tmp_path / "b.html", data)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def luminance(colour):
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_has_at_least_the_contrast_of_wcag_aa_in_both_schemes(scheme):
    css = resource("report.css")
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme]
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    inks = ("ink", "soft", "accent", "miss", "false-alarm", "hit", "correct-pass")
    pairs = [(ink, ground) for ink in inks for ground in ("paper", "card", "tint")]
    pairs += [("accent-ink", "accent"), ("notice-ink", "notice")]
    for ink, ground in pairs:
        low, high = sorted((luminance(colour[ink]), luminance(colour[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
    for mark in ("normal", "defective", "edge"):  # graphics and borders of fields: 3 to 1
        low, high = sorted((luminance(colour[mark]), luminance(colour["card"])))
        assert (high + 0.05) / (low + 0.05) >= 3.0, mark
