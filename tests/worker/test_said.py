"""Sentences that come about where no other test goes: each by the code that says it, with stand-ins for the rest."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.errors import ConfigError, Unavailable
from protocol.joinlink import JoinLink
from protocol.v1 import barnraise_pb2 as pb
from tests.worker.conftest import MACHINE, Recorder
from tests.worker.test_session import idle
from worker import admission, agents, runs
from worker import messages as m
from worker.background import Threads
from worker.crew import _Crew
from worker.finding import Finder
from worker.handiwork import ShardOffer
from worker.home import RunHome, open_home
from worker.joining import Joining
from worker.measuring import Measuring
from worker.neighbours import Neighbours
from worker.options import WorkerOptions
from worker.policy import Permission
from worker.rules.house import House
from worker.sharing import Sharing
from worker.states import State
from worker.timing import Timing

LINK = JoinLink(host="127.0.0.1", port=1, fingerprint="ab" * 32)
OTHER = JoinLink(host="127.0.0.1", port=2, fingerprint="cd" * 32)


@pytest.fixture
def home(tmp_path: Path) -> RunHome:
    return open_home(tmp_path, LINK.fingerprint)


async def test_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def served(_: object, link: JoinLink) -> tuple[int, bool]:
        return link.port, True

    monkeypatch.setattr(runs._WorkerProcess, "serve_or_tell", served)
    recorder = Recorder()
    assert await runs.work_for(WorkerOptions(home=tmp_path), [LINK, OTHER], recorder) == (2, True)
    assert recorder.texts("turns") == ["working for 2 runs in turns, by their shares"]


async def test_no_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def served(*_: object) -> object:
        raise ConfigError("the folder of the socket belongs to somebody else")

    async def ended() -> m.Finish:
        await asyncio.sleep(0)
        return m.Finish(exit_code=0, reason="left")

    agent = SimpleNamespace(
        run=ended, wait_for_thread=lambda _: True, leave=print, held_lease=None, state=State.IDLE,
        permission=Permission(allowed=True),
    )  # fmt: skip
    monkeypatch.setattr(runs, "serve", served)
    monkeypatch.setattr(runs, "make_agent", lambda *_, **__: (agent, SimpleNamespace(background=Threads())))
    recorder = Recorder()
    assert await runs.work_for(WorkerOptions(home=tmp_path), [LINK], recorder) == (0, True)
    assert recorder.texts("no_commands") == [
        "the commands pause, status and so on do not reach this worker: the folder of the socket belongs to somebody"
        " else"
    ]


async def test_disk_planned_and_speed(home: RunHome) -> None:
    recorder = Recorder()
    hands: Any = SimpleNamespace(
        plan=lambda *_: ShardOffer(columns=2, by_memory=8, reason="8 columns fit", measures=True),
        measure_speed=lambda *_: 1234.5,
    )
    joining = Joining(WorkerOptions(), LINK, home, recorder, dial=lambda *_: SimpleNamespace(), handiwork=hands)
    joining._run = SimpleNamespace(description="run")  # type: ignore[assignment]
    for _ in range(2):
        offer = await joining._worked_out(MACHINE)
        assert (offer.columns, offer.tokens_per_s) == (2, 1234.5)
    assert recorder.texts("disk_planned") == ["--disk leaves room for 2 columns"] * 2
    assert recorder.texts("measured") == ["speed: 1,234 tokens/s"], "it is measured once"


async def test_not_measuring(home: RunHome) -> None:
    recorder = Recorder()
    found = ShardOffer(columns=2, by_memory=2, reason="2 columns fit", measures=False)
    hands: Any = SimpleNamespace(plan=lambda *_: found, measure_speed=lambda *_: 1.0)
    options = WorkerOptions(measures=True)
    joining = Joining(options, LINK, home, recorder, dial=lambda *_: SimpleNamespace(), handiwork=hands)
    joining._run = SimpleNamespace(description="run")  # type: ignore[assignment]
    assert not (await joining._worked_out(MACHINE)).measures
    (told,) = recorder.texts("not_measuring")
    assert "the whole model does not fit" in told


async def test_admission(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(_run: str, _key: bytes, bits: int, on_tried: Callable[[int], None]) -> bytes:
        for number in range(0, 2**bits, 1 << 14):
            on_tried(number + 1)
        return b"done"

    monkeypatch.setattr(admission, "work_for", work)
    recorder = Recorder()
    assert admission.work_for_admission("run", b"key", 22, recorder) == b"done"
    first, *progress = recorder.texts("admission_work")
    assert first.endswith("(22 bits) before it takes a new machine: a few seconds of one core")
    assert progress[1:] == [f"proof of work: {share}% of what it takes on average" for share in (25, 50, 75)]
    monkeypatch.setattr(admission, "work_for", lambda *_: b"done")
    admission.work_for_admission("run", b"key", 28, recorder)
    assert recorder.texts("admission_work")[-1].endswith("about 4 min of one core")


async def test_sharing_untold() -> None:
    async def unreached() -> str:
        raise Unavailable("nobody is there")

    async def started(_: object) -> bool:
        return False

    recorder = Recorder()
    neighbours = Neighbours(SimpleNamespace(enrolment=None), recorder, SimpleNamespace(start=started))  # type: ignore[arg-type]
    neighbours._swarm = SimpleNamespace(announce=unreached)  # type: ignore[assignment]
    for _ in range(2):
        await neighbours.on_session()
    untold = "what is shared could not be announced just now; it is told again with the next session"
    assert recorder.texts("share_unreached") == [untold], "said once"


async def test_not_sharing(home: RunHome) -> None:
    """Another program has the port: the session goes on, and nobody is told of a share that is not there."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        recorder = Recorder()
        sharing = Sharing(home.disk.blocks, 10**6, host="127.0.0.1", port=port)
        enrolment = SimpleNamespace(run_id="run", ca_pem="")
        neighbours = Neighbours(SimpleNamespace(enrolment=enrolment), recorder, sharing)  # type: ignore[arg-type]
        for _ in range(2):
            await neighbours.on_session()
    (text,) = recorder.texts("not_sharing")
    assert text.startswith(f"nothing is shared with other workers: cannot listen on port {port}")
    assert recorder.texts("sharing") == []


async def test_of_several_runs_the_first_has_the_ports_that_were_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports: dict[JoinLink, tuple[int, int]] = {}
    ledgers: list[object] = []

    def made(options: WorkerOptions, _machine: object, link: JoinLink, *others: Any, **_: object) -> Any:
        ports[link] = options.share_port, options.p2p_port
        ledgers.append(others[-1].ledger)
        raise ConfigError("this is as far as it has to come")

    monkeypatch.setattr(runs, "make_agent", made)
    monkeypatch.setattr(House, "_step_back", lambda _: None)  # the tests' own process keeps its priority
    options = WorkerOptions(home=tmp_path, share_bytes_per_s=10**6, share_port=7500, p2p=True, p2p_port=7501)
    await runs.work_for(options, [LINK, OTHER], Recorder())
    assert ports == {LINK: (7500, 7501), OTHER: (0, 0)}
    assert ledgers[0] is ledgers[1], "and the line is one: tests/worker/rules/test_house.py"


async def test_of_several_gpus_the_first_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crew = _Crew(WorkerOptions(home=tmp_path, share_port=7500, p2p_port=7501), Recorder())
    started: list[WorkerOptions] = []
    monkeypatch.setattr(crew, "_start", lambda options, _link: started.append(options))
    crew._start_others(["cuda:1", "cuda:2"])
    assert [(each.share_port, each.p2p_port) for each in started] == [(0, 0)] * 2


async def test_unmeasured_version(home: RunHome) -> None:
    answers: list[pb.AnswerMeasureRequest] = []

    async def answered(request: pb.AnswerMeasureRequest) -> pb.AnswerMeasureReply:
        answers.append(request)
        return pb.AnswerMeasureReply(taken=True)

    recorder = Recorder()
    measuring = Measuring(SimpleNamespace(measure=print), Threads(), recorder)
    none: Any = SimpleNamespace(sequences=SimpleNamespace(tokens=16), answer_measure=answered)
    await measuring.answer(pb.MeasureItem(item_id="i", base_version=7, sequences=0), none, none, none)
    (text,) = recorder.texts("measured")
    assert text == "version 7, for the coordinator: could not be measured here, so it is done elsewhere"
    assert "sequences = 0" in answers[0].error


def test_left_not_taken() -> None:
    driver = idle()
    driver.session.lease = SimpleNamespace(lease_id="r1.1")  # type: ignore[assignment]
    driver.session.state = State.LEAVING
    (finish,) = driver.session._on_returned(m.CallRefused(ticket=0, reason="no such lease"))
    assert isinstance(finish, m.Finish)
    assert finish.reason == "left; the coordinator knows of no lease to hand back any more"


async def test_p2p_ended(home: RunHome) -> None:
    recorder = Recorder()
    finder = Finder(LINK, home, Timing())
    network = agents._network_of(WorkerOptions(p2p=True), LINK, home, recorder, finder, None)
    companion: Any = network._companion  # type: ignore[union-attr]
    companion._tell("exit code 1")
    assert recorder.texts("p2p") == ["the peer-to-peer network's process ended (exit code 1); it is started again"]


async def test_a_worker_of_a_crew_that_ends_leaves_the_others_at_work(tmp_path: Path) -> None:
    recorder = Recorder()
    crew = _Crew(WorkerOptions(home=tmp_path), recorder)
    crew._workers = [SimpleNamespace(returncode=1, pid=1), SimpleNamespace(returncode=None, pid=2)]  # type: ignore[list-item]
    told: set[int] = set()
    for _ in range(2):
        crew._tell_ended(told, others=1)
    assert recorder.texts("crew_ended") == ["a worker of this machine has ended; the others go on"]
