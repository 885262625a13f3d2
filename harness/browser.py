# SPDX-License-Identifier: Apache-2.0
"""Debian's Chromium without a window, driven as WebDriver has it."""

import contextlib
from collections.abc import Iterator

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.wait import WebDriverWait

BINARY = "/usr/bin/chromium"
DRIVER = "/usr/bin/chromedriver"
LIMIT = 20.0  # seconds until something is to be seen
PERIOD = 0.05


@contextlib.contextmanager
def browser(width: int = 1400, height: int = 900, *, dark: bool = False) -> Iterator[Chrome]:
    """A browser with a profile of its own, on a page of so many pixels; gone afterwards."""
    options = ChromeOptions()
    options.binary_location = BINARY
    for word in (
        "--headless=new",
        "--no-sandbox",  # it refuses to start as root with one
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        f"--window-size={width},{height}",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=ChromeService(DRIVER))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield driver
    finally:
        driver.quit()


def forget_all(driver: Chrome) -> None:
    """Be on no page, with no cookies, and with nothing to complain of."""
    driver.get("about:blank")
    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    complaints(driver)


def waiting(driver: Chrome) -> WebDriverWait[Chrome]:
    """Waits until something is so on the page, with a limit."""
    # What is on a page may be gone between two questions about it.
    return WebDriverWait(driver, LIMIT, PERIOD, [StaleElementReferenceException])


def complaints(driver: Chrome) -> list[str]:
    """What the browser had to complain of: errors of scripts, what a policy forbade."""
    entries = driver.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]
