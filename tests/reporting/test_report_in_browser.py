"""report.html in headless Chromium, from file://, with the network watched."""

from __future__ import annotations

import json
import time

import pytest

from src.reporting.report import write_report
from src.reporting.tables import Cell, Column, Line, Table, as_html, percent
from tests import chromium
from tests.reporting.report_data import make_report, wilson

if chromium.MISSING:
    pytest.skip("no chromium with chromedriver on this machine", allow_module_level=True)
pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = chromium.open_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, changes in {"plain": {"match": True, "extra": True}, "evil": {"evil": True}}.items():
        write_report(
            folder / f"{name}.html", make_report(**changes), max_images=120, max_side=384,
            max_megabytes=40,
        )  # fmt: skip
    return folder


def test_a_table_sorts_by_its_headings_from_the_keyboard(browser, pages):
    columns = (Column("name", numeric=False), Column("value"))
    values = {"b": 0.5, "a": float("nan"), "c": 0.25}
    lines = tuple(Line((Cell(name), percent(value))) for name, value in values.items())
    path = pages / "table.html"
    path.write_text(as_html("Results", [Table("t", columns, lines)]), encoding="utf-8")
    browser.get(path.as_uri())
    script = "return [...document.querySelectorAll('tbody tr')].map(r => r.cells[0].textContent)"
    heading = browser.find_elements(By.CSS_SELECTOR, "th button")[1]
    heading.send_keys(Keys.ENTER)
    assert browser.execute_script(script) == ["c", "b", "a"]  # unknown values stay last
    heading.send_keys(Keys.ENTER)
    assert browser.execute_script(script) == ["b", "c", "a"]
    assert browser.find_elements(By.TAG_NAME, "th")[1].get_attribute("aria-sort") == "descending"
    browser.find_elements(By.CSS_SELECTOR, "th button")[0].click()
    assert browser.execute_script(script) == ["a", "b", "c"]
    assert browser.get_log("browser") == []


@pytest.fixture
def page(browser, pages):
    resize(browser, 1280)
    browser.get((pages / "plain.html").as_uri())
    yield browser
    problems = [
        each for each in browser.get_log("browser") if each["level"] in ("SEVERE", "WARNING")
    ]
    assert problems == []


def resize(browser, width, height=900):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def one(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def click(browser, selector):
    """As a mouse would, after scrolling there at once."""
    element = one(browser, selector)
    scroll = "arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})"
    browser.execute_script(scroll, element)
    element.click()


def wait_for(question, seconds=5):
    """True as soon as the question is answered with yes; False after some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if question():
            return True
        time.sleep(0.02)
    return False


def shown(browser):
    script = "return [...document.querySelectorAll('#cards > .card')].filter(c => !c.hidden)"
    return browser.execute_script(f"{script}.map(c => Number(c.dataset.index))")


def counts(browser):
    cells = browser.find_elements(By.CSS_SELECTOR, "[data-count]")
    return {cell.get_attribute("data-count"): int(cell.text) for cell in cells}


def set_value(browser, selector, value, event="input"):
    script = (
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event(arguments[2]))"
    )
    browser.execute_script(script, one(browser, selector), value, event)


def focused(browser):
    return browser.execute_script(
        "const c = document.activeElement.closest('.card'); return c ? Number(c.dataset.index) : -1"
    )


def test_hostile_names_run_no_code_and_nothing_is_fetched(browser, pages):
    browser.get("about:blank")
    time.sleep(0.2)
    browser.get_log("performance")  # forget what the browser fetched for itself at its start
    browser.get((pages / "evil.html").as_uri())
    time.sleep(0.3)
    assert "{{ 7 * 7 }}" in one(browser, "h1").text
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    assert [url for url in asked if not url.startswith(("file:///", "data:"))] == []
    assert browser.get_log("browser") == []  # no alert, no error, no refused resource


def test_filters_by_outcome_defect_and_name_show_what_they_say(page):
    data = make_report()
    click(page, 'input[name="outcome"][value="miss"]')
    assert shown(page) == [1]
    click(page, 'input[name="outcome"][value=""]')
    set_value(page, "#defect", "stain", "change")
    assert {data.images[k].defect for k in shown(page)} == {"stain"}
    set_value(page, "#defect", "", "change")
    one(page, "#search").send_keys("CRACK/00")
    assert {data.images[k].defect for k in shown(page)} == {"crack"}
    assert one(page, "#shown").text == str(len(shown(page)))
    one(page, "#search").send_keys("nothing like this")
    assert shown(page) == [] and one(page, "#empty").is_displayed()


def test_sorting_puts_scores_and_names_in_order(page):
    data = make_report()
    score = [row.score for row in data.images]
    keys = {"high": lambda k: -score[k], "low": score.__getitem__}
    for name, key in {**keys, "name": lambda k: data.images[k].path}.items():
        set_value(page, "#sort", name, "change")
        assert shown(page) == sorted(range(12), key=key)


def test_moving_the_threshold_changes_every_count_and_going_back_restores_them(page):
    data = make_report()
    before = (counts(page), one(page, ".recall tbody").text, shown(page))
    set_value(page, "#threshold-value", "1.9", "change")
    expected = {"hit": 0, "miss": 0, "false alarm": 0, "correct pass": 0}
    for row in data.images:
        alarm = row.score > 1.9
        names = ("hit", "miss") if row.label else ("false alarm", "correct pass")
        expected[names[not alarm]] += 1
    assert counts(page) == expected and expected != before[0]
    rate = float(one(page, '[data-rate="recall"]').text)
    assert rate == pytest.approx(expected["hit"] / 6, abs=1e-4)
    badges = [
        cell.text.split()[-1] for cell in page.find_elements(By.CSS_SELECTOR, "#cards .badge")
    ]
    assert badges.count("miss") == expected["miss"]
    said = f"{expected['miss']} misses"
    assert wait_for(lambda: said in one(page, "#live").get_attribute("textContent"))
    click(page, "#threshold-reset")
    assert (counts(page), one(page, ".recall tbody").text, shown(page)) == before


def test_the_slider_works_from_the_keyboard_and_moves_the_line(page):
    before = one(page, "#threshold-line").get_attribute("x1")
    slider = one(page, "#threshold")
    slider.send_keys(Keys.END)
    assert one(page, "#threshold-line").get_attribute("x1") == "100%" != before
    assert counts(page)["hit"] == 0 and counts(page)["false alarm"] == 0
    slider.send_keys(Keys.HOME)
    assert counts(page)["miss"] == 0 and counts(page)["correct pass"] == 0


def test_recall_intervals_follow_wilson_as_scipy_computes_it(page):
    data = make_report()
    set_value(page, "#threshold-value", "1.85", "change")
    for name in ("crack", "stain"):
        mine = [row for row in data.images if row.defect == name]
        low, high = wilson(sum(row.score > 1.85 for row in mine), len(mine))
        cell = one(page, f'[data-recall="{name}"] [data-cell="interval"]')
        assert cell.text == f"{low:.3f} to {high:.3f}"


def test_operating_points_lie_on_the_curves_of_the_confusion_table(page):
    set_value(page, "#threshold-value", "1.9", "change")
    c = counts(page)
    point = one(page, '[data-curve="roc"]')
    assert float(point.get_attribute("cx")) == pytest.approx(100 * c["false alarm"] / 6)
    assert float(point.get_attribute("cy")) == pytest.approx(100 - 100 * c["hit"] / 6)


def test_the_viewer_opens_walks_and_closes_by_keyboard_and_gives_the_focus_back(page):
    order = shown(page)
    one(page, "#cards .open").send_keys(Keys.ENTER)
    viewer = one(page, "#viewer")
    paths = [make_report().images[k].path for k in order]
    assert viewer.is_displayed() and one(page, "#viewer-name").text == paths[0]
    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert one(page, "#viewer-name").text == paths[1]
    page.switch_to.active_element.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert one(page, "#viewer-name").text == paths[-1]
    assert one(page, "#viewer-place").text == "12 of 12"
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not viewer.is_displayed()
    assert wait_for(lambda: focused(page) == order[-1])


def test_arrow_keys_walk_through_the_gallery(page):
    order = shown(page)
    one(page, "#cards .open").send_keys(Keys.ARROW_RIGHT)
    assert focused(page) == order[1]
    page.switch_to.active_element.send_keys(Keys.END)
    assert focused(page) == order[-1]
    page.switch_to.active_element.send_keys(Keys.HOME)
    assert focused(page) == order[0]
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert focused(page) not in (-1, order[0], order[1])


def test_the_viewer_explains_a_picture_with_its_patch_match_and_further_maps(page):
    page.execute_script("document.querySelector('.card[data-index=\"3\"] .open').click()")
    extra = one(page, "#viewer-extra")
    assert "train/<b>7.png" in extra.text and "2.5" in extra.text
    assert extra.find_elements(By.CSS_SELECTOR, "img.extra")
    assert not page.find_elements(By.CSS_SELECTOR, "#viewer-extra [id]")


def test_heat_fades_and_outlines_can_be_hidden_everywhere_at_once(page):
    set_value(page, "#opacity", "30")
    heat = "return getComputedStyle(document.querySelector('#cards .heat')).opacity"
    assert float(page.execute_script(heat)) == pytest.approx(0.3)
    assert one(page, "#viewer-opacity").get_attribute("value") == "30"
    click(page, "#lines")
    line = "return getComputedStyle(document.querySelector('#cards .line')).display"
    assert page.execute_script(line) == "none"


def test_a_dot_among_the_scores_opens_its_image(page):
    page.execute_script(
        "document.querySelector('circle[data-index=\"7\"]')"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    assert one(page, "#viewer-name").text == make_report().images[7].path


@pytest.mark.parametrize("width", [360, 768, 1440, 3840])
def test_no_screen_width_makes_the_page_scroll_sideways(page, width):
    resize(page, width)
    wide, inner = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= inner


def test_targets_on_a_phone_are_large_enough_to_hit(page):
    resize(page, 360)
    script = """return [...document.querySelectorAll('button, select, .check, .chips span,' +
      'input:not([type=radio]):not([type=checkbox])')].filter(e => e.checkVisibility())
      .map(e => [e.id || e.className, e.getBoundingClientRect().height]).filter(x => x[1] < 24)"""
    assert page.execute_script(script) == []  # 24 pixels: WCAG 2.2, target size


def test_without_scripts_pictures_and_numbers_are_readable_and_dead_controls_hidden(page, pages):
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.get((pages / "plain.html").as_uri())
        cards = page.find_elements(By.CSS_SELECTOR, "#cards .photo")
        assert len(cards) == 12 and cards[0].is_displayed()
        assert counts(page) == {"hit": 5, "miss": 1, "false alarm": 1, "correct pass": 5}
        assert not one(page, ".controls").is_displayed()
        assert not one(page, "#threshold").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_a_reader_who_wants_less_motion_gets_none(page):
    feature = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": feature})
    script = "return getComputedStyle(document.documentElement).scrollBehavior"
    assert page.execute_script(script) == "auto"
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
