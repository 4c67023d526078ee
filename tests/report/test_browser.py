"""The report in a real browser: Debian's Chromium, see `make chromium`."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loki.report.page import write_report
from loki.report.run_directory import read_run
from tests.report.test_page import run_directory

__all__ = ["run_directory"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromedriver") is None, reason="needs Chromium: make chromium"),
]
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture
def browser() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in _FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page(browser: Any, run_directory: Path, width: int, scheme: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    browser.get(write_report(read_run(run_directory)).resolve().as_uri())
    assert browser.get_log("browser") == []
    page_width, window = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert page_width <= window
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(23, 25, 28)") is (scheme == "dark")
    rect = browser.find_element(By.CSS_SELECTOR, ".map rect")
    fill = "return getComputedStyle(arguments[0]).fill"
    before = browser.execute_script(fill, rect)
    ActionChains(browser).move_to_element(rect).perform()
    assert browser.execute_script(fill, rect) != before
    title = browser.execute_script("return arguments[0].querySelector('title').textContent", rect)
    assert title.startswith("layer 0, row 0, rank ")
    assert browser.execute_script("return document.scripts.length") == 0
