# SPDX-License-Identifier: Apache-2.0
"""The dashboard as a browser draws it."""

import json
from dataclasses import replace

import pytest
from selenium.webdriver.common.by import By

from blkd.cli import quantities
from blkd.daemon.dashboard import live_rows
from harness.browser import browser, complaints, forget_all, waiting
from tests.doing_exports import Doing, DoingExports
from tests.played_dashboard import KEY, dashboard_in_thread

INKED = """
    const canvas = arguments[0];
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let inked = 0;
    for (let at = 3; at < pixels.length; at += 4) inked += pixels[at] > 128;
    return inked;
"""
HIGHEST = """
    const canvas = arguments[0];
    const {width, height} = canvas;
    const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
    for (let row = 0; row < height; row++)
        for (let at = 0; at < width; at++)
            if (pixels[4 * (row * width + at) + 3] > 128) return row / height;
    return 1;
"""


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Looks follow each other faster than people need."""
    monkeypatch.setattr(live_rows, "INTERVAL", 0.2)


@pytest.fixture(scope="module")
def chrome():
    with browser() as driver:
        yield driver


@pytest.fixture
def exports():
    return DoingExports(
        {
            "busy": Doing(reads=20_000, writes=5000, latency=200e-6, in_flight=8),
            "slow": Doing(reads=300, latency=50e-3, in_flight=2, oldest=2.5, errors=4),
            "idle": Doing(),
        }
    )


@pytest.fixture
def page(chrome, exports):
    """The page, logged in, with figures of a second look."""
    forget_all(chrome)
    with dashboard_in_thread(exports) as port:
        chrome.get(f"http://127.0.0.1:{port}/#{KEY.token}")
        waiting(chrome).until(lambda _: cell(chrome, "busy", "iops") == "25000")
        yield chrome
        assert complaints(chrome) == []


def names(page):
    return [
        row.get_attribute("data-name") for row in page.find_elements(By.CSS_SELECTOR, "tbody tr")
    ]


def found(page, name, key):
    selector = f"tr[data-name={json.dumps(name)}] td[data-key={key}]"
    cells = page.find_elements(By.CSS_SELECTOR, selector)
    return cells[0] if cells else None


def cell(page, name, key):
    element = found(page, name, key)
    return None if element is None else element.text


def card(page, key):
    return page.find_element(By.CSS_SELECTOR, f".card [data-key={key}]").text


def red(element):
    """Whether a colour is more red than anything else."""
    text = element.value_of_css_property("color")
    r, g, b = (int(part) for part in text[text.index("(") + 1 :].rstrip(")").split(",")[:3])
    return r > 150 and r > 2 * g and r > 2 * b


def test_the_table_has_the_numbers_of_each_export(page):
    shown = {
        key: cell(page, "busy", key) for key in ("state", "read_bytes", "write_bytes", "oldest")
    }
    assert shown == {"state": "serving", "read_bytes": "78M", "write_bytes": "20M", "oldest": "0"}
    assert cell(page, "busy", "cpu_us") == "4.0"
    assert cell(page, "slow", "oldest") == "2.5s"
    assert cell(page, "slow", "errors") == "4.0"
    assert cell(page, "idle", "p99") == "-"


def test_the_cards_have_the_sums(page):
    assert card(page, "iops") == "25300"
    assert card(page, "in_flight") == "10"
    assert card(page, "p99") == cell(page, "slow", "p99")


def test_charts_are_drawn_and_rise_with_what_they_show(page, exports):
    canvas = page.find_element(By.CSS_SELECTOR, ".card canvas")
    waiting(page).until(lambda _: page.execute_script(INKED, canvas) > 100)
    row = found(page, "busy", "trend").find_element(By.TAG_NAME, "canvas")
    assert page.execute_script(INKED, row) > 20
    exports.doing["busy"] = Doing(reads=1)
    waiting(page).until(lambda _: cell(page, "busy", "iops") == "1.0")
    # The line of an export that does nothing lies at the bottom.
    idle = found(page, "idle", "trend").find_element(By.TAG_NAME, "canvas")
    assert page.execute_script(HIGHEST, row) < 0.3
    assert page.execute_script(HIGHEST, idle) > 0.7


def test_a_click_on_a_column_orders_the_table_and_another_turns_it_round(page):
    assert names(page) == ["busy", "slow", "idle"]
    head = page.find_element(By.CSS_SELECTOR, "th[data-key=p99]")
    head.find_element(By.TAG_NAME, "button").click()
    assert names(page) == ["slow", "busy", "idle"]
    assert head.get_attribute("aria-sort") == "descending"
    head.find_element(By.TAG_NAME, "button").click()
    assert names(page) == ["busy", "slow", "idle"]
    page.find_element(By.CSS_SELECTOR, "th[data-key=name] button").click()
    assert names(page) == ["busy", "idle", "slow"]


def test_words_leave_only_exports_that_have_them(page):
    page.find_element(By.ID, "words").send_keys("BUSY")
    assert names(page) == ["busy"]
    page.find_element(By.ID, "words").clear()
    page.find_element(By.ID, "words").send_keys("serv")
    assert names(page) == ["busy", "slow", "idle"]


def test_states_change_as_they_happen_and_a_stopped_export_is_red(page, exports):
    assert not red(found(page, "busy", "state").find_element(By.TAG_NAME, "span"))
    exports.doing["busy"] = Doing("stopped")
    waiting(page).until(lambda _: cell(page, "busy", "state") == "stopped")
    assert red(found(page, "busy", "state").find_element(By.TAG_NAME, "span"))
    assert "1 stopped" in page.find_element(By.ID, "states").text
    exports.doing["busy"] = Doing(reads=10)
    waiting(page).until(lambda _: cell(page, "busy", "state") == "serving")


def test_exports_come_and_go(page, exports):
    exports.doing["new"] = Doing(reads=100_000)
    waiting(page).until(lambda _: names(page)[:1] == ["new"])
    del exports.doing["new"]
    waiting(page).until(lambda _: "new" not in names(page))


def test_a_click_on_an_export_shows_it_in_the_cards(page):
    found(page, "slow", "name").click()
    assert card(page, "iops") == "300"
    assert "slow" in page.find_element(By.ID, "whose").text
    found(page, "slow", "name").click()
    assert card(page, "iops") == "25300"


def test_a_pause_keeps_what_is_shown(page, exports):
    page.find_element(By.ID, "pause").click()
    exports.doing["busy"] = Doing(reads=7)
    looks = exports.looks
    waiting(page).until(lambda _: exports.looks > looks + 2)
    assert cell(page, "busy", "iops") == "25000"
    page.find_element(By.ID, "pause").click()
    waiting(page).until(lambda _: cell(page, "busy", "iops") == "7.0")


def test_what_looks_like_markup_is_shown_as_text(page, exports):
    name = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    exports.doing[name] = Doing("failed", reason='"><b id="injected">')
    waiting(page).until(lambda _: name in names(page))
    assert page.find_element(By.CSS_SELECTOR, "tr.broken td.name").text == name
    assert page.find_element(By.CSS_SELECTOR, "tr.broken .reason").text == '"><b id="injected">'
    assert page.find_elements(By.CSS_SELECTOR, "#rows img, #rows script, #injected") == []


def test_the_token_leaves_the_address_and_scripts_see_no_cookie(page):
    assert KEY.token not in page.current_url
    assert page.execute_script("return document.cookie") == ""
    (cookie,) = page.get_cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert KEY.token not in cookie["value"]


def test_light_and_dark_are_drawn_and_kept(page):
    def background():
        return page.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")

    light = background()
    page.find_element(By.ID, "theme").click()
    dark = background()
    assert dark != light
    page.refresh()
    waiting(page).until(lambda _: cell(page, "busy", "iops") == "25000")
    assert background() == dark


def test_numbers_are_those_of_blkd_top(page):
    values = [
        0,
        0.001,
        0.04,
        0.3,
        9.94,
        9.96,
        12.6,
        999.4,
        1023,
        99_999,
        182_400,
        3e6,
        7.7e9,
        2.5e12,
    ]
    times = [0, 3e-8, 9.99e-7, 8.5e-5, 0.0123, 0.9996, 2.1, 75, 3599.7, 40_000]
    script = """
        const done = arguments[arguments.length - 1];
        import("/format.js").then((format) => done({
            count: arguments[0].map(format.count),
            amount: arguments[0].map(format.amount),
            decimal: arguments[0].map(format.decimal),
            duration: arguments[1].map(format.duration),
        }));
    """
    assert page.execute_async_script(script, values, times) == {
        "count": [quantities.count(value) for value in values],
        "amount": [quantities.amount(value) for value in values],
        "decimal": [quantities.decimal(value) for value in values],
        "duration": [quantities.duration(value) for value in times],
    }


def test_without_the_token_there_is_a_form_and_nothing_else(chrome, exports):
    with dashboard_in_thread(exports) as port:
        forget_all(chrome)
        chrome.get(f"http://127.0.0.1:{port}/")
        form = chrome.find_element(By.ID, "login")
        waiting(chrome).until(lambda _: form.is_displayed())
        assert not chrome.find_element(By.ID, "watch").is_displayed()
        field = chrome.find_element(By.ID, "token")
        field.send_keys("wrong")
        form.find_element(By.TAG_NAME, "button").click()
        waiting(chrome).until(lambda _: chrome.find_element(By.ID, "wrong").text)
        assert names(chrome) == []
        field.send_keys(KEY.token)
        form.find_element(By.TAG_NAME, "button").click()
        waiting(chrome).until(lambda _: cell(chrome, "busy", "iops") == "25000")
        assert not form.is_displayed()
        chrome.find_element(By.ID, "leave").click()
        waiting(chrome).until(lambda _: chrome.find_element(By.ID, "login").is_displayed())


def test_a_daemon_that_was_away_is_found_again(chrome, exports):
    forget_all(chrome)
    with dashboard_in_thread(exports) as port:
        chrome.get(f"http://127.0.0.1:{port}/#{KEY.token}")
        waiting(chrome).until(lambda _: cell(chrome, "busy", "iops") == "25000")
    link = chrome.find_element(By.ID, "link")
    waiting(chrome).until(lambda _: "does not answer" in link.text)
    exports.doing["busy"] = replace(exports.doing["busy"], reads=1, writes=0)
    with dashboard_in_thread(exports, port):
        waiting(chrome).until(lambda _: cell(chrome, "busy", "iops") == "1.0")
        assert link.text == "live"
