"""The report in headless Chromium, without a network. Screenshots are left in outputs/report."""

import json
import os
import shutil
import time

import pytest
from tests.paths import ROOT
from tests.workbench.compare.found import results

from paca.workbench.compare.html import page

SCREENSHOTS = ROOT / "outputs" / "report"
WIDTHS = {
    "light": (1280, "light"),
    "dark": (1280, "dark"),
    "phone-light": (390, "light"),
    "phone-dark": (390, "dark"),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    chromium, driver = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
    if not (chromium and driver):
        if os.environ.get("CI"):
            pytest.fail("there is no chromium or no chromedriver, which .ci/run installs")
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driven = webdriver.Chrome(options=options, service=Service(driver))
    driven.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driven.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield driven
    driven.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(results()), encoding="utf-8")
    return path


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)
    return found


def opened(browser, report, kind="light"):
    width, theme = WIDTHS[kind]
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    )
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("browser")
    browser.get(report.as_uri())
    wait_for(lambda: browser.execute_script("return document.querySelectorAll('.plot .main-svg').length >= 18"))
    return browser


@pytest.mark.parametrize("kind", WIDTHS)
def test_it_renders_without_errors_and_without_a_network(browser, report, kind):
    opened(browser, report, kind)
    drawn = "return [...document.querySelectorAll('.plot')].map((p) => p._fullData.length)"
    assert all(number > 0 for number in browser.execute_script(drawn))
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) == 0, "the page does not scroll sideways"
    height = browser.execute_script("return document.documentElement.scrollHeight")
    width = WIDTHS[kind][0]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(SCREENSHOTS / f"{kind}.png"))
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def test_the_theme_follows_the_system_and_the_button(browser, report):
    colour = "return [document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor,"
    colour += " document.getElementById('time')._fullLayout.font.color]"
    light = opened(browser, report, "light").execute_script(colour)
    dark = opened(browser, report, "dark").execute_script(colour)
    assert (light[0], dark[0]) == ("light", "dark")
    assert light[1] != dark[1]
    assert light[2] != dark[2]
    browser.find_element("id", "theme").click()
    assert browser.execute_script(colour) == light


CUT = """
const outside = (inner, outer) => inner.width && (inner.left < outer.left - 1 || inner.right > outer.right + 1);
const page = {left: 0, right: document.documentElement.clientWidth};
const words = [...document.querySelectorAll('h1, h2, p, li, dt, dd, .card *, summary, button')];
const wide = (e) => e.clientWidth && e.scrollWidth > e.clientWidth + 1;
const labels = [...document.querySelectorAll('.plot text')].filter((e) => e.textContent);
return [
  ...words.filter((e) => outside(e.getBoundingClientRect(), page) || wide(e)),
  ...labels.filter((e) => outside(e.getBoundingClientRect(), e.closest('.plot').getBoundingClientRect())),
].map((e) => e.textContent);
"""


@pytest.mark.parametrize("label", ["lora", "lora(target_modules=[q_proj, v_proj],use_rslora=true)"])
@pytest.mark.parametrize("kind", WIDTHS)
def test_no_text_is_cut(browser, tmp_path, kind, label):
    path = tmp_path / "report.html"
    path.write_text(page(json.loads(json.dumps(results()).replace('"lora"', json.dumps(label)))), encoding="utf-8")
    opened(browser, path, kind)
    assert browser.execute_script(CUT) == []
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(wide) == 0
    flat = "return [...document.querySelectorAll('.plot')].filter((p) => p._fullLayout._size.w < 120).map((p) => p.id)"
    assert browser.execute_script(flat) == [], "labels leave room for what they label"


@pytest.mark.parametrize("kind", ["light", "phone-light", "phone-dark"])
def test_a_wide_table_says_that_it_scrolls_and_keeps_its_first_column(browser, report, kind):
    opened(browser, report, kind)
    table = browser.find_element("css selector", ".scroll")
    name = browser.find_element("css selector", "tbody td")
    value = browser.find_element("css selector", "tbody td:nth-child(5)")
    before = name.rect["x"], value.rect["x"]
    browser.execute_script("arguments[0].scrollLeft = 150", table)
    moved = before[1] - value.rect["x"]
    assert 0 < moved <= 150
    assert before[0] - name.rect["x"] < (2 if kind != "light" else 23), "up to the padding"
    assert browser.find_element("css selector", ".hint").is_displayed() == kind.startswith("phone")


def test_hovering_tells_the_number(browser, report):
    from selenium.webdriver import ActionChains

    opened(browser, report)
    bar = browser.find_element("css selector", "#memory .bars .point path")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", bar)
    ActionChains(browser).move_to_element(bar).perform()
    told = wait_for(lambda: browser.execute_script("return document.querySelector('#memory .hoverlayer').textContent"))
    assert "frozen: weights 500.0 MiB" in told


def test_a_legend_entry_hides_its_method_and_its_band(browser, report):
    opened(browser, report)
    visible = "return document.getElementById('loss-step')._fullData.map((trace) => trace.visible)"
    assert set(browser.execute_script(visible)) == {True}
    entry = browser.find_element("css selector", "#loss-step .legendtoggle")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", entry)
    entry.click()
    wait_for(lambda: browser.execute_script(visible) == ["legendonly", "legendonly", True, True])


def test_the_raw_numbers_can_be_taken_away(browser, report, tmp_path):
    opened(browser, report)
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    for name in ("results.json", "summary.csv", "report.md"):
        button = browser.find_element("css selector", f"[data-download='{name}']")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        wait_for((tmp_path / name).exists)
    assert json.loads((tmp_path / "results.json").read_text()) == results()
