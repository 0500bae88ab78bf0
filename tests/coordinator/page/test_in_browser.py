"""The page in a real browser, by `make page`: values, news, keyboard, no script, accessibility, and 1,000 workers.

Fails, and never skips, where Chromium or axe-core is not there. What the simulation shows is in `test_live.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.page.address import PageAddress
from coordinator.page.server import PageServer
from coordinator.page.view import Headline, RunView, Tone
from tests.coordinator.page.browser import Browser
from tests.coordinator.page.panels import panels_of, shown_panels
from tests.coordinator.page.pictures import picture
from tests.coordinator.page.test_server import free_port, read

pytestmark = pytest.mark.page

KINDS = ("light", "dark", "phone")
AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
LONG_TASK = """
new Promise((done) => {
  const found = [];
  const watching = new PerformanceObserver((list) => found.push(...list.getEntries().map((one) => one.duration)));
  watching.observe({entryTypes: ["longtask"]});
  setTimeout(() => { watching.disconnect(); done(found); }, WAIT);
})
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as one:
        yield one


@pytest.fixture
def page() -> Iterator[PageServer]:
    server = PageServer(PageAddress(port=free_port(), chosen=True))
    server.start()
    yield server
    server.stop()


def shown(browser: Browser, page: PageServer, view: RunView, kind: str = "light", path: str = "") -> None:
    page.publish(view)
    read(page.url)
    width, height = (390, 844) if kind == "phone" else (1280, 900)
    browser.size(width, height, phone=kind == "phone", dark=kind == "dark")
    browser.open(page.url + path)


def trouble(browser: Browser) -> list[Any]:
    """What a console would show, and requests that left the page's own origin."""
    found: list[Any] = []
    for event in browser.events:
        told = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            found.append(told)
        elif event.get("method") == "Log.entryAdded" and told["entry"]["level"] == "error":
            found.append(told["entry"])
        elif event.get("method") == "Network.requestWillBeSent":
            url = told["request"]["url"]
            if not url.startswith(("http://127.0.0.1:", "data:", "about:")):
                found.append(url)
    return found


def serious(browser: Browser) -> list[Any]:
    """What axe-core finds on this page that somebody would stumble over."""
    script = os.environ.get("AXE", "")
    assert script, "AXE names axe-core's axe.min.js: `make page` fetches it"
    browser.run(Path(script).read_text() + "; undefined")
    options = {"runOnly": {"type": "tag", "values": AXE_TAGS}}
    found = browser.run(
        f"axe.run(document, {json.dumps(options)}).then((found) => found.violations.map("
        "(one) => [one.id, one.impact, one.nodes.slice(0, 3).map((node) => node.html)]))"
    )
    return [one for one in found if one[1] in ("serious", "critical")]


def test_every_panel_has_the_apis_values(browser: Browser, page: PageServer) -> None:
    for view in (picture(), picture(people=0, versions=0, leases=0), picture(versions=1)):
        shown(browser, page, view)
        assert shown_panels(browser) == panels_of(RunView.model_validate_json(read(f"{page.url}api")))
        assert trouble(browser) == []


def test_news_arrive_by_themselves_and_what_is_open_stays_open(browser: Browser, page: PageServer) -> None:
    shown(browser, page, picture())
    browser.wait_for("document.getElementById('link').textContent.startsWith('Live')")
    browser.run("document.querySelector('#loss details').open = true")
    other = picture(headline=Headline(tone=Tone.TROUBLE, text="The disk is full"), versions=43)
    page.publish(other)
    browser.wait_for("document.getElementById('headline').textContent.includes('The disk is full')")
    browser.wait_for("document.querySelectorAll('#loss tbody tr').length === 43")
    assert browser.run("document.querySelector('#loss details').open") is True
    assert shown_panels(browser) == panels_of(other)
    assert trouble(browser) == []


def test_a_panel_that_holds_the_keyboards_focus_is_not_taken_away(browser: Browser, page: PageServer) -> None:
    shown(browser, page, picture())
    browser.wait_for("document.getElementById('link').textContent.startsWith('Live')")
    browser.run("document.querySelector('#loss summary').focus()")
    page.publish(picture(versions=44, headline=Headline(tone=Tone.WAITING, text="Later")))
    browser.wait_for("document.getElementById('headline').textContent.includes('Later')")
    assert browser.run("document.activeElement.matches('#loss summary')") is True
    browser.run("document.activeElement.blur()")
    browser.wait_for("document.querySelectorAll('#loss tbody tr').length === 44")


def test_by_keyboard_alone(browser: Browser, page: PageServer) -> None:
    shown(browser, page, picture())
    reached = []
    for _ in range(14):
        browser.press("Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.append(
            browser.run("document.activeElement.textContent.trim().slice(0, 12) || document.activeElement.id")
        )
        outline = browser.run("getComputedStyle(document.activeElement.matches('input') ? document.activeElement"
                              ".nextElementSibling : document.activeElement).outlineStyle")  # fmt: skip
        assert outline == "solid", f"nobody sees that {reached[-1]!r} has the focus"
    assert reached[0] == "Skip to the "
    assert {"Overview", "Workers", "JSON", "The leases a", "by-round"} <= set(reached)
    browser.run("document.getElementById('by-round').focus()")
    browser.press("ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
    assert browser.run("getComputedStyle(document.querySelector('.by-tokens')).display") == "block"
    assert browser.run("getComputedStyle(document.querySelector('.by-round')).display") == "none"


def test_without_scripts_it_reads_the_same(browser: Browser, page: PageServer) -> None:
    view = picture()
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        shown(browser, page, view)
        assert shown_panels(browser) == panels_of(view)
        assert browser.run("document.body.textContent").count("scripts are off") == 1
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["", "workers"])
def test_axe_finds_nothing_serious(browser: Browser, page: PageServer, kind: str, path: str) -> None:
    empty = picture(people=0, versions=0, leases=0, headline=Headline(tone=Tone.WAITING, text="Waits"))
    for view in (picture(), empty) if kind == "light" else (picture(),):
        shown(browser, page, view, kind, path)
        browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert serious(browser) == []


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_sticks_out(browser: Browser, page: PageServer, kind: str) -> None:
    shown(browser, page, picture(), kind)
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth") is True


def test_first_paint_within_a_second(browser: Browser, page: PageServer) -> None:
    shown(browser, page, picture())
    shown(browser, page, picture())
    browser.wait_for("performance.getEntriesByName('first-contentful-paint').length === 1")
    assert browser.run("performance.getEntriesByName('first-contentful-paint')[0].startTime") < 1000


def test_a_thousand_workers_change_without_a_long_task(browser: Browser, page: PageServer) -> None:
    view = picture(people=1000)
    shown(browser, page, view, path="workers")
    browser.wait_for("document.getElementById('link').textContent.startsWith('Live')")
    assert browser.run("document.querySelectorAll('table.workers tbody tr').length") == 1000
    browser.run(f"window.longTasks = {LONG_TASK.replace('WAIT', '4000')}; undefined")
    for number in range(3):
        rows = tuple(row.model_copy(update={"why": f"change {number}"}) for row in view.workers)
        page.publish(view.model_copy(update={"workers": rows}))
        browser.wait_for(
            f"document.querySelector('#rows-19 tbody tr:last-child').textContent.includes('change {number}')"
        )
    assert [one for one in browser.run("window.longTasks") if one > 50] == []


def test_pictures_for_people_to_look_at(browser: Browser, page: PageServer, tmp_path: Path) -> None:
    folder = Path(os.environ.get("PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        shown(browser, page, picture(), kind)
        browser.picture(folder / f"{kind}.png")
        assert (folder / f"{kind}.png").stat().st_size > 20_000
