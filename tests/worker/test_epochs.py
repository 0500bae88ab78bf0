"""Each session of a worker is one of the machine that leads, also the second one, for which its offer is worked out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.errors import Unavailable
from protocol.joinlink import JoinLink
from protocol.v1 import barnraise_pb2 as pb
from tests.worker.conftest import MACHINE, Recorder
from worker import joining
from worker.handiwork import ShardOffer
from worker.home import open_home
from worker.options import WorkerOptions

LINK = JoinLink(host="127.0.0.1", port=1, fingerprint="ab" * 32)


class Line:
    """To a name behind which now this machine answers and now that."""

    def __init__(self, epochs: list[int]) -> None:
        self.epochs, self.asked, self.closed = epochs, list[int](), 0

    def connect(self, ca_pem: bytes) -> None: ...

    async def close(self) -> None:
        self.closed += 1

    async def open_session(self, capability: pb.Capability, team: str | None) -> pb.OpenSessionReply:
        self.asked.append(capability.max_columns)
        return pb.OpenSessionReply(epoch=self.epochs.pop(0), heartbeat_interval_s=1.0 + len(self.asked))

    async def patiently(self, step: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await step()
            except Unavailable:
                continue


async def test_a_machine_that_led_before_does_not_get_the_second_session_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line([5, 4, 4, 5])
    hands: Any = SimpleNamespace(
        understand=lambda description: SimpleNamespace(description=description),
        plan=lambda *_: ShardOffer(columns=2, by_memory=2, reason="2 columns fit", measures=True),
    )
    monkeypatch.setattr(joining, "description_from_message", lambda _: SimpleNamespace(run_id="run", name="run"))
    home, options = open_home(tmp_path, LINK.fingerprint), WorkerOptions(measure_speed=False)
    joins = joining.Joining(options, LINK, home, Recorder(), dial=lambda *_: line, handiwork=hands)  # type: ignore[arg-type]
    joins._enrolment = SimpleNamespace(run_id="run", ca_pem="pem")  # type: ignore[assignment]
    assert await joins.open(MACHINE) == 5.0
    assert line.asked == [0, 2, 2, 2], "the second until it is one of the machine that leads"
    assert line.closed == 2, "by its name, another machine may be reached the next time"
