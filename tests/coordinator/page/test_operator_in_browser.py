"""The operators' door in a real browser: by mouse, by keyboard, without scripts, on a phone; axe-core on its forms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.page.address import PageAddress
from coordinator.page.server import PageServer
from tests.coordinator.page.browser import Browser
from tests.coordinator.page.doors import MARIA, Behind
from tests.coordinator.page.pictures import picture
from tests.coordinator.page.test_in_browser import KINDS, serious, shown, trouble
from tests.coordinator.page.test_server import free_port, read

pytestmark = pytest.mark.page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as one:
        yield one


@pytest.fixture
def behind() -> Behind:
    return Behind()


@pytest.fixture
def page(behind: Behind) -> Iterator[PageServer]:
    server = PageServer(PageAddress(port=free_port(), chosen=True), behind.door())
    server.start()
    server.publish(picture())
    read(server.url)
    yield server
    server.stop()


def gone_to(browser: Browser, path: str, words: str) -> None:
    browser.wait_for(
        f"location.pathname === '{path}' && document.readyState === 'complete'"
        f" && document.body?.textContent.includes('{words}')"
    )


def log_in(browser: Browser, page: PageServer, behind: Behind) -> None:
    browser.size(1280, 900)
    browser.open(f"{page.url}login?ticket={behind.access.ticket(MARIA)}")
    browser.run("document.querySelector('button.main').click()")
    gone_to(browser, "/operator", "You are maria")


@pytest.mark.parametrize("scripts", [True, False])
def test_log_in_pause_and_log_out(browser: Browser, page: PageServer, behind: Behind, scripts: bool) -> None:
    browser.ask("Emulation.setScriptExecutionDisabled", value=not scripts)
    try:
        log_in(browser, page, behind)
        assert browser.run("document.cookie") == "", "no script reads it"
        browser.run("document.getElementById('hold-why').value = 'moving house'")
        browser.run("document.querySelector('button[value=pause]').click()")
        gone_to(browser, "/operator", "The run is paused.")
        assert behind.ordered == [("HoldRun", {"kind": "PAUSE", "why": "moving house"})]
        browser.run("document.querySelector('.who button').click()")
        gone_to(browser, "/", "Open round")
        browser.ask("Page.navigate", url=f"{page.url}operator")
        gone_to(browser, "/login", "Log in as operator")
        assert trouble(browser) == []
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)


def test_a_form_on_another_site_does_nothing(browser: Browser, page: PageServer, behind: Behind) -> None:
    log_in(browser, page, behind)
    token = browser.run("document.querySelector('input[name=token]').value")
    # another port is the same site to a browser: the cookie goes along, and the origin tells
    form = f"<form id=f method=post action={page.url}operator><input name=act value=pause>"
    form += f"<input name=token value={token}></form>"
    browser.ask("Page.navigate", url=f"data:text/html,{form}")
    browser.wait_for("!!document.getElementById('f')")
    browser.run("document.getElementById('f').submit()")
    browser.wait_for("document.body?.textContent.includes('not sent from this page')")
    assert behind.ordered == []


def test_an_order_by_keyboard_alone(browser: Browser, page: PageServer, behind: Behind) -> None:
    log_in(browser, page, behind)
    for _ in range(12):
        browser.press("Tab", code="Tab", windowsVirtualKeyCode=9)
        outline = browser.run("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", browser.run("document.activeElement.outerHTML")
        if browser.run("document.activeElement.value") == "drain":
            break
    browser.press("Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    browser.wait_for("document.querySelectorAll('.told').length === 1")
    assert behind.ordered == [("HoldRun", {"kind": "DRAIN", "why": ""})]


@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing_serious_on_the_forms(
    browser: Browser, page: PageServer, behind: Behind, kind: str, tmp_path: Path
) -> None:
    folder = Path(os.environ.get("PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    shown(browser, page, picture(), kind, "login")
    pages = {"login": None, "login-link": f"login?ticket={behind.access.ticket(MARIA)}"}
    for name, path in pages.items():
        if path is not None:
            browser.open(page.url + path)
        assert serious(browser) == []
        browser.picture(folder / f"{name}-{kind}.png")
    browser.run("document.querySelector('button.main').click()")
    gone_to(browser, "/operator", "You are maria")
    browser.run("document.getElementById('invite-count').form.querySelector('button').click()")
    gone_to(browser, "/operator", "New join links")
    assert serious(browser) == []
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth") is True
    browser.picture(folder / f"operator-{kind}.png")
    browser.run("document.getElementById('standing-name').value = 'a liar'")
    browser.run("document.querySelector('button[value=rollback]').click()")
    browser.wait_for("document.body?.textContent.includes('never taken part')")
    assert serious(browser) == []
    browser.picture(folder / f"confirm-{kind}.png")
