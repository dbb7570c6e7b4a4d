"""The live page as a person meets it: a real server, a real browser, a crowd of clients."""

from __future__ import annotations

import concurrent.futures
import re
import time

import httpx
import numpy as np
import pytest

from src.data.images import open_rgb
from src.detector import Detector
from tests import chromium
from tests.serving.live import served


@pytest.fixture(scope="module")
def address(finished_run):
    with served(finished_run) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.MISSING:
        pytest.skip("no chromium with chromedriver on this machine")
    pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver = chromium.open_browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


def send(browser, *paths):
    """Choose files on the page; the texts of all cards once the page says it is done."""
    from selenium.webdriver.common.by import By

    before = len(browser.find_elements(By.CSS_SELECTOR, ".card"))
    browser.find_element(By.ID, "files").send_keys("\n".join(map(str, paths)))
    for _ in range(300):
        cards = browser.find_elements(By.CSS_SELECTOR, ".card")
        status = browser.find_element(By.ID, "status").text
        if len(cards) == before + len(paths) and f"{len(paths)} image" in status:
            return [card.text for card in cards]
        time.sleep(0.1)
    raise AssertionError(f"no answer; the page says {status!r}")


def test_dropped_images_get_cards_with_the_decision_of_the_detector(
    browser, address, finished_run, drawn_images, tmp_path
):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"this is no image")
    parts = [tmp_path / f"part{number}.png" for number in range(5)]
    for part, image in zip(parts, drawn_images, strict=False):
        part.write_bytes(image.read_bytes())
    browser.get(address)
    cards = send(browser, *parts, broken)
    detector = Detector.load(finished_run, "cpu")
    by_name = {card.splitlines()[1]: card.splitlines() for card in cards}
    assert by_name.pop("broken.png")[0] == "Not scored"
    for path in parts:
        found = detector.detect([open_rgb(path)])[0]
        lines = by_name[path.name]
        assert lines[0] == ("Alarm" if found.alarm else "Good part")
        shown = re.search(r"score (\S+),", "\n".join(lines))
        assert shown is not None
        assert float(shown[1]) == pytest.approx(found.score, rel=1e-3)
    assert browser.get_log("browser") == []


def test_the_page_loads_nothing_from_elsewhere_and_clears_at_a_click(
    browser, address, drawn_images
):
    from selenium.webdriver.common.by import By

    browser.get_log("performance")  # forget what came before
    browser.get(address)
    send(browser, drawn_images[0])
    asked = [entry["message"] for entry in browser.get_log("performance")]
    urls = [m for m in asked if '"Network.requestWillBeSent"' in m]
    assert urls
    assert all(address in m or '"url":"data:' in m or "blob:" in m for m in urls)
    heat = browser.find_element(By.ID, "heat")
    assert heat.is_enabled()
    browser.find_element(By.ID, "clear").click()
    assert browser.find_elements(By.CSS_SELECTOR, ".card") == []
    assert browser.find_element(By.ID, "empty").is_displayed()


def test_a_crowd_gets_the_same_answers_as_one_client(address, drawn_images):
    def ask(path):
        began = time.perf_counter()
        upload = {"files": (path.name, path.read_bytes(), "image/png")}
        reply = httpx.post(f"{address}api/score", files=upload, timeout=60)
        return path, reply.json()[0]["score"], time.perf_counter() - began

    alone = {path: ask(path)[1] for path in drawn_images[:4]}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, drawn_images[:4] * 6))
    for path, score, _ in answers:
        assert score == pytest.approx(alone[path], rel=1e-5)
    p50, p95 = np.percentile([1e3 * seconds for *_, seconds in answers], [50, 95])
    print(f"8 clients: p50 {p50:.0f} ms, p95 {p95:.0f} ms")
