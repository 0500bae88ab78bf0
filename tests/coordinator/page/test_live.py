"""A live simulated run, with churn and two liars, in a real browser and a real Prometheus, by `make page`.

The simulation is the command itself, in a process; what the page shows at each moment is what its API says of it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.page.view import RunView
from tests.coordinator.page.browser import Browser
from tests.coordinator.page.panels import panels_of, shown_panels
from tests.coordinator.page.test_in_browser import trouble
from tests.coordinator.page.test_server import free_port

pytestmark = pytest.mark.page

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"


def got(url: str) -> bytes | None:
    """The answer, or None where nobody gives one."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bytes(answer.read())
    except (OSError, urllib.error.HTTPError):
        return None


@pytest.fixture
def simulated(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The page's address, and the simulation's process; the parameter is how many rounds it has."""
    port = free_port()
    words = ["simulate", "--workers", "5", "--byzantine", "2", "--dropout", "0.2", "--rounds", str(request.param),
             "--inner-steps", "4", "--batch", "2", "--sequence-length", "32", "--data",
             str(ROOT / "docs"), "--out", str(tmp_path / "sim"),
             "--http", f"127.0.0.1:{port}"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    url = f"http://127.0.0.1:{port}/"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "barnraise", *words], stdout=log, stderr=subprocess.STDOUT, env=environment
        )
    until_s = time.monotonic() + 300.0
    while got(f"{url}api") is None:
        assert time.monotonic() < until_s, "the simulation never showed its page"
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.2)
    yield url, process
    process.terminate()
    process.wait(60)


@pytest.mark.parametrize("simulated", [4], indirect=True)
def test_a_run_with_churn_and_two_liars(simulated: tuple[str, subprocess.Popen[bytes]]) -> None:
    url, process = simulated
    until_s = time.monotonic() + 300.0
    held, seen, found = 0, set(), None
    with Browser() as browser:
        browser.size(1280, 900)
        while process.poll() is None and time.monotonic() < until_s:
            before = got(f"{url}api")
            if before is None:
                break
            # As the coordinator sent it: with scripts on, the page may be of a later moment by the time it is read.
            browser.ask("Emulation.setScriptExecutionDisabled", value=True)
            browser.ask("Page.navigate", url=url)
            browser.wait_for("document.readyState === 'complete'")
            shown, at_s = shown_panels(browser), browser.run("document.body.dataset.at")
            view = RunView.model_validate_json(before)
            if at_s is not None and float(at_s) == view.at_s:  # of the same moment
                assert shown == panels_of(view)
                held, found = held + 1, view
                seen |= set(view.worker_states)
            browser.ask("Emulation.setScriptExecutionDisabled", value=False)
            if view.rounds_closed == 4:  # it ends soon, and with it the page
                break
            browser.events.clear()
            browser.ask("Page.navigate", url=url)
            try:
                browser.wait_for("!!document.getElementById('link')?.textContent.startsWith('Live')")
            except AssertionError:
                if got(f"{url}api") is None:
                    break  # the run ended meanwhile, and its page with it
                raise
            assert trouble(browser) == []
    assert held >= 3
    assert found is not None
    assert found.judged.refused, "two lie"
    assert {"training", "absent"} <= seen
    assert found.credit
    assert found.losses[-1].loss < found.losses[0].loss


@pytest.mark.parametrize("simulated", [1000], indirect=True)
def test_a_real_prometheus_gets_an_answer_to_every_query_of_the_dashboard(
    simulated: tuple[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """All of them while the run goes on, and the alert that nobody answers once it does not any more."""
    url, coordinator = simulated
    port, target = free_port(), url.removeprefix("http://").rstrip("/")
    configuration = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    quick = re.sub(r"_interval: 15s", "_interval: 1s", configuration).replace("coordinator:7466", target)
    (tmp_path / "prometheus.yml").write_text(quick)
    rules = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(rules.replace("for: 2m", "for: 1s"))
    process = subprocess.Popen(
        ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        board = json.loads((DEPLOY / "grafana" / "dashboards" / "barnraise.json").read_text())
        asked = {one["expr"] for panel in board["panels"] for one in panel["targets"]}
        assert len(asked) > 15
        _answered(port, {*asked, 'up{job="$job", instance="$instance"} == 1'}, target)
        checked = subprocess.run(["promtool", "check", "metrics"], input=got(f"{url}metrics"), check=False)
        assert checked.returncode == 0
        coordinator.terminate()
        coordinator.wait(60)
        expected = {"BarnraiseCoordinatorDown"}
        _answered(port, {f'ALERTS{{alertname="{name}", alertstate="firing"}}' for name in expected}, target)
    finally:
        process.kill()
        process.wait()


def _answered(port: int, asked: set[str], instance: str) -> None:
    until_s = time.monotonic() + 120.0
    while missing := {one for one in asked if not _answer(port, one, instance)}:
        assert time.monotonic() < until_s, missing
        time.sleep(0.5)


def _answer(port: int, expr: str, instance: str) -> list[Any]:
    """What Prometheus has for a query, the dashboard's variables put in."""
    for name, value in (("$job", "barnraise"), ("$instance", instance), ("$__rate_interval", "30s")):
        expr = expr.replace(name, value)
    found = got(f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expr})}")
    return [] if found is None else list(json.loads(found)["data"]["result"])
