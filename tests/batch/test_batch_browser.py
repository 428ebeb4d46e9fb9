"""The page of a batch in a real browser: what is seen, clicked, typed, decoded, logged; how long it takes."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

from scorefusion.batch.report import write_page
from tests.support.batch_rows import HOSTILE, HOSTILE_ROWS, morning
from tests.support.waiting import PATIENCE, until

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver") or shutil.which("chromedriver", path="/usr/lib/chromium")
SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1360,900",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--force-device-scale-factor=1", "--hide-scrollbars",
)  # fmt: skip
HEAD = "#head button"

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="not run: chromium and chromedriver are not here"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    patch = pytest.MonkeyPatch()
    patch.setenv("SE_OFFLINE", "true")
    patch.setenv("SE_AVOID_STATS", "true")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
    driver.set_page_load_timeout(PATIENCE)
    driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    yield driver
    driver.quit()
    patch.undo()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 rows in a folder with its outputs; the first of them is there to be linked to."""
    folder = tmp_path_factory.mktemp("out")
    return write_page(
        folder / "report.html", morning(200, kinds=6), title=f"A night {HOSTILE[1]}",
        facts={"model": "t1-sr4", "hostile": HOSTILE[3]},
    )  # fmt: skip


@pytest.fixture
def page(browser: Any, report: Path) -> Any:
    """The 200 rows, opened anew, all logs emptied."""
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(report.as_uri())
    until(lambda: browser.execute_script("return document.readyState") == "complete")
    return browser


def find(page: Any, selector: str) -> list[Any]:
    return page.find_elements("css selector", selector)


def column(page: Any, selector: str) -> list[str]:
    """The text of one cell of every row that is shown, from top to bottom."""
    script = """return [...document.querySelectorAll('#body > [role=row]:not([hidden])')]
                .map(row => row.querySelector(arguments[0]).textContent)"""
    return page.execute_script(script, selector)


def decoded(page: Any) -> list[int]:
    """Numbers of the rows whose thumbnails were made images."""
    script = """return [...document.querySelectorAll('#body img[src]')]
                .map(image => +image.closest('[role=row]').dataset.number)"""
    return sorted(set(page.execute_script(script)))


def layouts(page: Any) -> float:
    """How often the page was laid out."""
    metrics = page.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
    return {each["name"]: each["value"] for each in metrics}["LayoutCount"]


def press(page: Any, label: str) -> None:
    (button,) = [each for each in find(page, "#states button") if each.text.startswith(label)]
    button.click()


def test_failures_then_outliers_then_the_rest_and_nothing_of_a_name_runs(page: Any) -> None:
    states = column(page, ".chip")
    assert len(states) == 200 and states == sorted(states, key=["Failed", "Outlier", "Done"].index)
    assert states[0] == "Failed" and states.count("Outlier") == 4
    until(lambda: decoded(page))
    assert page.execute_script("return typeof window.harmed") == "undefined"
    assert HOSTILE[1] in page.title and HOSTILE[3] in find(page, ".facts")[0].text
    names = column(page, ".name")
    assert all(f"{number} {text}" in names for number, text in enumerate(HOSTILE) if text.isprintable())
    assert page.execute_script("return document.querySelectorAll('script:not([type])').length") == 1


def test_no_error_and_no_request(page: Any) -> None:
    until(lambda: decoded(page))
    find(page, "#body .shot")[0].click()
    page.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    until(lambda: 199 in decoded(page))
    assert page.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith("file:") for url in sent)
    assert {url.split(":")[0] for url in sent} <= {"file", "data"}
    assert len({url for url in sent if url.startswith("file:")}) == 1


def test_the_policy_stops_what_is_not_the_pages_own(page: Any) -> None:
    page.execute_script(
        """const script = document.createElement('script'); script.textContent = 'window.harmed = 7';
           document.body.append(script);
           const image = document.createElement('img'); image.src = 'file:///x.png';
           document.body.append(image);"""
    )
    assert page.execute_script("return typeof window.harmed") == "undefined"
    until(lambda: len(page.get_log("browser")) >= 1)


def test_thumbnails_are_decoded_only_when_near(page: Any) -> None:
    until(lambda: decoded(page))
    time.sleep(0.3)
    early = decoded(page)
    assert len(early) < 40 and max(early) < 60
    page.execute_script("document.querySelector('#body').lastChild.scrollIntoView()")
    until(lambda: 199 in decoded(page))
    assert len(decoded(page)) < 120
    sizes = page.execute_script(
        """const seen = [...document.querySelectorAll('#body img[src]')];
           return Promise.all(seen.map(i => i.decode()))
             .then(() => seen.map(i => [i.naturalWidth, i.naturalHeight]))"""
    )
    assert sizes and all(size == [288, 96] for size in sizes)


def test_clicking_a_heading_sorts_and_clicking_again_turns_round(page: Any) -> None:
    def values() -> list[float | None]:
        return [None if text == "–" else float(text.rstrip("%")) for text in column(page, ".number")]

    assert find(page, HEAD)[2].text == "Residual"
    for sign, said in ((-1, "descending"), (1, "ascending")):
        find(page, HEAD)[2].click()
        known = [value for value in values() if value is not None]
        assert known == sorted(known, key=lambda value: sign * value)
        assert None not in values()[: len(known)], "what is not known comes last"
        assert [each.get_attribute("aria-sort") for each in find(page, "#head > *")].count(said) == 1
    find(page, HEAD)[0].click()
    names = [name for name in column(page, ".name") if name.startswith("sub-")]
    assert names == sorted(names) and len(column(page, ".name")) == 200
    page.execute_script("window.scrollTo(0, 8000)")
    find(page, HEAD)[1].click()
    assert column(page, ".chip")[0] == "Failed" and column(page, ".chip")[-1] == "Done"
    place = "return document.querySelector('#body .name').getBoundingClientRect().top"
    until(lambda: 0 < page.execute_script(place) < 300)


def test_typing_and_the_states_filter(page: Any) -> None:
    box = find(page, "#filter")[0]
    box.send_keys("NaN 57")
    assert [name[:8] for name in column(page, ".name")] == ["sub-0057"]
    assert find(page, "#count")[0].text == "1 of 200 scans"
    box.clear()
    press(page, "Failed")
    assert set(column(page, ".chip")) == {"Failed"}
    box.send_keys("sub-")
    assert len(column(page, ".chip")) == 6
    find(page, HEAD)[0].click()
    assert len(column(page, ".chip")) == 6, "sorting keeps the filter"
    press(page, "With warnings")
    assert len(set(column(page, ".warning"))) == 1
    box.send_keys("no such scan")
    assert find(page, "#none")[0].is_displayed() and not find(page, "#table")[0].is_displayed()
    press(page, "All")
    box.clear()
    box.send_keys(" ")
    assert len(column(page, ".chip")) == 200


def test_all_of_it_by_keyboard(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    body = find(page, "body")[0]
    body.send_keys("/")
    page.switch_to.active_element.send_keys("sub-")
    assert len(column(page, ".name")) == 200 - len(HOSTILE)
    focused = []
    for _ in range(30):
        page.switch_to.active_element.send_keys(Keys.TAB)
        focused.append(page.switch_to.active_element.get_attribute("class"))
        if focused[-1] == "shot":
            break
    assert focused[-1] == "shot"
    page.switch_to.active_element.send_keys(Keys.ENTER)
    dialog, name = find(page, "#large")[0], find(page, "#large-name")[0]
    first = name.text
    assert dialog.is_displayed() and first.startswith("sub-")
    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert name.text != first and name.text.startswith("sub-")
    page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert name.text == first
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()
    assert page.switch_to.active_element.get_attribute("class") == "shot", "the focus comes back"


def test_enlarged_pictures_are_those_of_the_row(page: Any) -> None:
    press(page, "Outlier")
    shot = find(page, "#body > [role=row]:not([hidden]) .shot")[0]
    until(lambda: len(shot.find_elements("css selector", "img[src]")) == 2)
    small = [image.get_attribute("src") for image in shot.find_elements("css selector", "img")]
    shot.click()
    assert [each.get_attribute("src") for each in find(page, "#large img")] == small
    assert find(page, "#large img")[0].size["width"] > 600
    assert "times the median" in find(page, "#large-note")[0].text


def test_links_lead_to_the_files_they_name(page: Any, report: Path) -> None:
    (report.parent / "hostile").mkdir()
    made = [row.output for row in HOSTILE_ROWS if row.output]
    for output in made:
        (report.parent / output).write_bytes(b"")
    addresses = page.execute_script("return [...document.querySelectorAll('#body a')].map(link => link.href)")
    assert all(address.startswith(report.parent.as_uri() + "/") for address in addresses)
    named = {
        unquote_to_bytes(address.removeprefix("file://")) for address in addresses if "/hostile/" in address
    }
    assert len(made) > 4 and named == {os.fsencode(report.parent / output) for output in made}
    assert all(os.path.exists(name) for name in named)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_in_light_and_dark(page: Any, scheme: str, tmp_path: Path) -> None:
    """WCAG's contrast of 4.5 of every text against what lies behind it."""
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    until(lambda: decoded(page))
    contrasts = page.execute_script(
        """const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
           const light = (colour) => parts(colour).slice(0, 3).map(v => v / 255)
             .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
             .reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
           const behind = (e) => {
             const back = getComputedStyle(e).backgroundColor;
             return (parts(back)[3] ?? 1) > 0 ? back : behind(e.parentElement);
           };
           return [...document.querySelectorAll('header *, button, #count, [role=row] *')]
             .filter(e => e.checkVisibility() && e.textContent && !e.closest('dialog'))
             .map(e => [light(getComputedStyle(e).color), light(behind(e))])
             .map(([a, b]) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05));"""
    )
    page.save_screenshot(str(tmp_path / f"{scheme}.png"))
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(contrasts) > 500 and min(contrasts) > 4.5


@pytest.mark.parametrize("width", [480, 1000, 1200, 2200])
def test_no_width_makes_it_overflow(page: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    beyond = page.execute_script(
        """const edge = document.querySelector('#table').getBoundingClientRect().right;
           const cells = [...document.querySelectorAll('#table [role=row] *')].slice(0, 2000);
           return [document.documentElement.scrollWidth - innerWidth,
                   ...cells.map(cell => cell.getBoundingClientRect().right - edge)]"""
    )
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert max(beyond) <= 0


@pytest.mark.slow
def test_five_thousand_rows_open_and_sort(browser: Any, tmp_path: Path) -> None:
    """The page is laid out a few times in all, not once for each row, and few pictures are decoded."""
    path = write_page(tmp_path / "report.html", morning(5000, kinds=6), title="A long night", facts={})
    assert path.stat().st_size < 5000 * 14_000
    browser.get(path.as_uri())
    until(lambda: decoded(browser))
    loaded = layouts(browser)
    find(browser, HEAD)[3].click()
    assert column(browser, ".chip")[0] == "Outlier"
    assert len(decoded(browser)) < 80
    assert loaded < 100 and layouts(browser) - loaded < 50
