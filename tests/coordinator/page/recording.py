"""A run served for real, on clocks that a test winds, and what `/metrics` says of it each minute; promtool judges that.

The page, its thread, the journal, the engine and gRPC are the product's. Time is not: a minute is six steps of ten
seconds, after each of which the pump has done what time calls for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from coordinator.edge import viewing
from coordinator.edge.server import CoordinatorServer
from coordinator.engine.events import Ticked
from coordinator.page.address import PageAddress
from coordinator.run.clock import Clocks
from coordinator.run.folder import RunFolder
from coordinator.run.opened import OpenedRun
from coordinator.run.pump import Pump
from coordinator.run.pump_limits import PumpLimits
from protocol.errors import Unavailable
from tests.coordinator.page.test_server import read
from tests.served import RawClient, clients_of

ALERTS = Path(__file__).parents[3] / "deploy" / "prometheus" / "alerts.yml"
STEP_S = 10.0
"""Less than what a clock that is not looked at calls a gap."""
TARGET = {"job": "barnraise", "instance": "c"}

Series = tuple[str, tuple[tuple[str, str], ...]]


@dataclass
class Wound:
    """A machine's clock and the calendar, both wound by hand."""

    past_s: float = 0.0
    set_s: float = field(default_factory=time.time)

    @property
    def wall_s(self) -> float:
        return self.set_s + self.past_s

    def clocks(self) -> Clocks:
        return Clocks(machine=lambda: 1000.0 + self.past_s, wall=lambda: self.wall_s)


@dataclass
class Watched:
    """A served run that is scraped each minute."""

    server: CoordinatorServer
    wound: Wound
    join: Any
    here: list[RawClient] = field(default_factory=list)
    """Who gives signs of life."""
    scraped: list[dict[Series, float]] = field(default_factory=list)
    """A minute each; moments as if the first scrape were at nought."""
    began_s: float = 0.0

    @property
    def parts(self) -> OpenedRun:
        assert self.server._parts is not None
        return self.server._parts

    @property
    def pump(self) -> Pump:
        assert self.server._run is not None
        return self.server._run.pump

    async def worker(self, *, columns: int = 0) -> RawClient:
        client: RawClient = await self.join(columns=columns)
        self.here.append(client)
        return client

    async def step(self) -> None:
        self.wound.past_s += STEP_S
        for client in self.here:
            await client.beat()
        with contextlib.suppress(Unavailable):  # a journal that takes nothing
            await self.pump.submit(Ticked(at_s=self.parts.clock.now_s()))

    async def minutes(self, count: int) -> None:
        for _ in range(count):
            await self.scrape()
            for _ in range(6):
                await self.step()

    async def scrape(self) -> None:
        """What the page says of this very moment."""
        self.wound.past_s += 0.001  # a picture of before is of before by its time, too
        while (found := await asyncio.to_thread(self.read))["barnraise_picture_timestamp_seconds", ()] < (
            self.wound.wall_s - self.began_s
        ):
            pass
        self.scraped.append(found)

    def read(self) -> dict[Series, float]:
        """What the page says, of whatever moment."""
        self.began_s = self.began_s or self.wound.wall_s
        text = read(f"{self.server.page_url}metrics").decode()
        found = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        moments = {key: value for key, value in found.items() if key[0].endswith("_timestamp_seconds") and value}
        return found | {key: value - self.began_s for key, value in moments.items()}

    async def settled(self) -> None:
        """Until nothing slow is left to be done."""
        async with asyncio.timeout(60):
            while self.pump.engine.pending:
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def watched(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    """`run`, served and shown; pictures come as fast as the clock is wound."""
    monkeypatch.setattr(viewing, "SOONEST_S", 0.0)
    monkeypatch.setattr(viewing, "SLOWEST_S", 0.002)
    wound = Wound()
    limits = PumpLimits(retry_first_s=0.01, stall_retry_s=0.01)
    page = PageAddress(port=0, chosen=True)
    server = CoordinatorServer(run, clocks=wound.clocks(), pump_limits=limits, page=page)
    await server.start()
    try:
        async with clients_of(run, server) as join:
            yield Watched(server, wound, join)
    finally:
        await server.stop(0.0)


def alerts_fire(scraped: list[dict[Series, float]], expected: set[str], folder: Path) -> None:
    """Judged by promtool: of the rules as they are, at the last minute `expected` fire, and no other ever did."""
    every: dict[Series, list[str]] = {("up", ()): ["1"] * len(scraped)}
    for key in {key for one in scraped for key in one if key[0].startswith("barnraise_")}:
        every[key] = [repr(one[key]) if key in one else "_" for one in scraped]
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)]
    said = 'ALERTS{alertstate="firing"}'
    asked = {f"count by (alertname) ({said})", f"count by (alertname) (count_over_time({said}[1d]))"}
    test = {
        "interval": "1m",
        "input_series": [
            {"series": _written(name, dict(labels) | TARGET), "values": " ".join(values)}
            for (name, labels), values in every.items()
        ],
        "promql_expr_test": [
            {"expr": expr, "eval_time": f"{len(scraped) - 1}m", "exp_samples": samples} for expr in sorted(asked)
        ],
    }
    file = folder / "alerts_test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def _written(name: str, labels: dict[str, str]) -> str:
    return f"{name}{{{', '.join(f'{key}={json.dumps(value)}' for key, value in sorted(labels.items()))}}}"
