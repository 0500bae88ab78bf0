"""The catalogue: each sentence comes about somewhere, and a worker's whole life is said through it.

The pseudo-locale turns the letters of the catalogue into others, and puts marks around parameters and around what
others said: whatever plain letters are left outside were never in the catalogue.
"""

from __future__ import annotations

import dataclasses
import re
import string
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from protocol.causes import Cause
from tests.worker.conftest import Gate, Swarm
from tests.worker.test_control import Volunteer
from worker import messages as m
from worker import sentences, standing
from worker.catalogue import SENTENCES
from worker.messages import News
from worker.policy import Circumstances, Permission
from worker.ports import Progress
from worker.rules.file import PauseNote
from worker.rules.judging import Felt, Heat, OthersUse, objections, permission_of
from worker.rules.model import VolunteerRules
from worker.rules.policy import RuledPolicy
from worker.rules.tempo import Tempo
from worker.sentences import InHand
from worker.signals import reason_of
from worker.states import State
from worker.suspended import why_too_late
from worker.words import Tongue, say, spoken

_ODD = str.maketrans(string.ascii_letters, "".join(chr(0x1D5D4 + at) for at in (*range(26, 52), *range(26))))
_BRACES = re.compile(r"(\{\w+\})")
PSEUDO = Tongue(
    sentence=lambda _id, text: "".join(
        part if _BRACES.fullmatch(part) else part.translate(_ODD) for part in _BRACES.split(text)
    ),
    parameter=lambda value: f"⟨{value}⟩",
    foreign=lambda text: f"⟪{text}⟫",
)
_MARKED = re.compile(r"⟪[^⟫]*⟫|⟨[^⟨⟩]*⟩")
_PROSE = re.compile(r"[A-Za-z]{2,} [A-Za-z]{2,} [A-Za-z]{2,}")
NOT_IN_IT = {
    "scheduled": "how a lease is trained here, by the planner: worker/train",
    "planned": "what fits, by the planner: moe/planner.py",
    "gpu_not_used": "why a GPU is not used: worker/machine/gpus.py, which `probe` and `doctor` print, too",
    "taken_up": "worker/train, of a lease that an earlier process began",
    "progress_not_kept": "worker/train, of a disk that is short",
    "progress_rarer": "worker/train, of a disk that is short",
    "unpaused": "worker/train, of a disk that is short",
    "senses": "why a sense does not work here, beside `no.unknown`: worker/senses",
    "no_steps": "why a block comes whole: worker/fetch.py, from the other side's words",
}
"""Events whose sentences are written where they are made, and why or where."""


class Heard(set[str]):
    """Which sentences were said."""

    @property
    def tongue(self) -> Tongue:
        def sentence(name: str, text: str) -> str:
            self.add(name)
            return text

        return Tongue(sentence=sentence)


def untranslated(text: str) -> str:
    """What is in no catalogue: letters outside of marks, and whole phrases inside of a parameter."""
    parameters = re.findall(r"⟨([^⟨⟩]*)⟩", text)
    prose = [one for one in parameters if _PROSE.search(one)]
    while _MARKED.search(text):
        text = _MARKED.sub("", text)
    return "; ".join([*re.findall(r"[A-Za-z]+(?: [A-Za-z]+)*", text), *prose])


def test_the_pseudo_locale_finds_what_is_in_no_catalogue() -> None:
    with spoken(PSEUDO):
        assert untranslated(say("paused", why=say("no.battery"))) == ""
        assert untranslated(say("paused", why="the moon is full tonight")) == "the moon is full tonight"
        assert untranslated(f"so {say('no.battery')}") == "so"
    assert say("paused", why="x") == "Paused: x."


@pytest.mark.parametrize("name", SENTENCES)
def test_each_sentence_is_well_formed(name: str) -> None:
    parameters = {part[1:-1] for part in _BRACES.findall(SENTENCES[name])}
    assert say(name, **dict.fromkeys(parameters, "3")).isprintable()
    with spoken(PSEUDO):
        assert untranslated(say(name, **dict.fromkeys(parameters, "3"))) == ""


# ---- how each comes about ------------------------------------------------------------------------------------------


def _rules(**tables: dict[str, Any]) -> VolunteerRules:
    return VolunteerRules.checked(tables, "a test")


def _judged() -> Iterator[str]:
    everything = _rules(
        when={
            "schedule": ["mon 00:00-00:01"], "idle_minutes": 5, "battery": "pause", "programs": ["steam"],
        },
        gpu={"off": [0], "others_percent": 10, "most_celsius": 70},
        cpu={"most_celsius": 70},
        lease={"licences": ["CC0-1.0"]},
        network={"metered": "pause", "daily": "1MB", "monthly": "1MB"},
    )  # fmt: skip
    now = Circumstances(
        wall_s=1.7e9, idle_s=1.0, on_battery=True, programs=frozenset({"steam"}), gpu=0, gpu_celsius=80.0,
        cpu_celsius=80.0, is_metered=True, today_bytes=2_000_000, month_bytes=2_000_000, data_licence="GPL-3.0",
        lacking={"gpu_others_percent": "3"},
    )  # fmt: skip
    felt = Felt(gpu=Heat(True), cpu=Heat(True), others=OthersUse(True))
    yield permission_of(objections(everything, now, felt, PauseNote()), now.wall_s).reason
    low = _rules(when={"battery": "work", "battery_least_percent": 50}, lease={"licences": ["CC0-1.0"]})
    drained = dataclasses.replace(now, battery_percent=20.0, data_licence="unknown")
    yield permission_of(objections(low, drained, Felt(), None), now.wall_s).reason
    policy = RuledPolicy(_rules())
    policy.is_finishing = True
    yield policy.may_work(Circumstances(wall_s=1.7e9)).reason
    capped = _rules(gpu={"most_celsius": 70, "most_watts": 100}, cpu={"most_celsius": 70})
    slow = Tempo(rung=2, causes=("gpu.most_celsius", "cpu.most_celsius", "gpu.most_watts"), pauses_until_s=1.8e9)
    yield slow.why(capped, now)
    yield permission_of(objections(capped, now, Felt(tempo=slow), None), now.wall_s).reason


def _standings() -> Iterator[str]:
    yes, no = Permission(allowed=True), Permission(allowed=False, reason="x", stops_training=True)
    gentle, slow = Permission(allowed=False, reason="x"), Permission(allowed=True, share=0.5, slowed="x")
    for state in State:
        for permission in (yes, no, gentle, slow):
            for flags in ({}, {"sends": True}, {"holds": True}):
                remembered = standing.WorkerStanding(SimpleNamespace(say=lambda *_, **__: None))
                yield standing.sentence(state, permission, remembered, address="h:1", **flags)
    remembered.is_measuring = True
    yield standing.sentence(State.OPENING, yes, remembered, address="h:1")
    remembered.waiting = "round 3 closes soon"
    yield standing.sentence(State.IDLE, yes, remembered, address="h:1")
    remembered.present = standing.Present(step=3, steps=10, begun_step=3)
    yield standing.sentence(State.TRAINING, yes, remembered, address="h:1")
    remembered.present.begun_s, remembered.present.begun_step = 5.0, 1
    yield standing.sentence(State.TRAINING, yes, remembered, address="h:1", now_s=10.0)


def _troubles() -> Iterator[str]:
    for cause in (None, *Cause):
        for work in InHand:
            yield sentences.unreached(cause, "h:1", work, 100.0)
        yield sentences.refusal(cause, "no", "h:1")
        yield sentences.broken_upload(cause, "h:1")
        for news in News:
            yield sentences.told(m.Tell(news=news, reason="r", cause=cause))
    for news in (News.PAUSED, News.SESSION_LOST):
        yield sentences.told(m.Tell(news=news, reason="r", trains_on=True))
        yield sentences.told(m.Tell(news=news, reason="r", suspends=True))
    yield sentences.finished(m.Finish(exit_code=m.EXIT_DEVICE_LOST, reason=""), "h:1")
    yield sentences.finished(m.Finish(exit_code=0, reason="r", keeps=True), "h:1")
    yield from (reason_of(number) for number in (1, 2, 15))


def _leases() -> Iterator[str]:
    yield sentences.waiting("soon")
    yield sentences.waiting("soon", 600.0)
    yield sentences.spent(10.0, 5.0, 1.0, 1.0)
    yield sentences.step(1, 2, None, 1.0)
    yield sentences.step(1, 2, 3.0, 1.0)
    yield sentences.trained(1, 1.0, 2.0, 1.0)
    yield sentences.reached_again("h:1", 5.0)
    yield from (sentences.verdict(outcome, "r1.1", "r") for outcome in ("accepted", "rejected", "pending"))
    lease = SimpleNamespace(ttl_s=100.0, batch_sequences=1, inner_steps=10)
    for left_s, pause_s in ((1e3, 1e6), (1.0, None)):
        yield why_too_late(lease, Progress(), 16, left_s=left_s, pause_s=pause_s)  # type: ignore[arg-type]


COMES_ABOUT: tuple[Callable[[], Iterator[str]], ...] = (_judged, _standings, _troubles, _leases)
ELSEWHERE = {
    "enrolled": "a_worker", "enrolled.trusted": "tests/worker/test_join.py", "connected": "a_worker",
    "granted": "a_worker", "fetched": "a_worker", "uploaded": "a_worker", "credit": "a_worker",
    "credit.none": "tests/worker/test_kept_receipts.py",
    "leaving": "a_worker", "leave.asked": "a_worker", "leave.finished": "tests/worker/test_control.py",
    "left": "a_worker", "run_over": "a_worker", "rules.changed": "tests/worker/rules/test_house.py",
    "rules.senseless": "tests/worker/rules/test_house.py", "lease_unwanted.long": "tests/worker/rules/test_house.py",
    "doing.leaving.holding": "tests/worker/test_control.py", "no_room": "tests/worker/test_short_of_room.py",
    "left.handed_back": "tests/worker/test_join.py", "left.session_over": "tests/worker/test_session.py",
    "left.unanswered": "tests/worker/test_session.py", "failed.too_often": "tests/worker/test_session.py",
    "started_too_often": "tests/worker/test_again.py", "opened": "tests/worker/test_residuals_served.py",
    "fetched.shared": "tests/worker/test_peers_served.py", "sharing": "tests/worker/test_peers_served.py",
    "measured.submission": "tests/worker/test_measuring.py", "measured.version": "tests/worker/test_measuring.py",
    "unmeasured.submission": "tests/worker/test_measuring.py", "measured.unheard": "tests/worker/test_measuring.py",
    "machine": "tests/worker/test_join.py", "slowed": "tests/worker/test_rhythm.py",
    "slowed.over": "tests/worker/test_rhythm.py", "trainer_gone": "tests/worker/test_apart.py",
    "trainer_killed": "tests/worker/test_apart.py", "moved": "tests/worker/test_moved_served.py",
    **dict.fromkeys((
        "turns", "no_commands", "disk_planned", "speed", "admission", "admission.short", "admission.progress",
        "sharing.untold", "unmeasured.version", "left.not_taken", "p2p.ended", "crew.ended",
        "not_sharing", "not_measuring",
    ), "tests/worker/test_said.py"),
    "crew": "tests/worker/test_siblings.py",
    "sharing.relayed": "tests/worker/test_detour.py", "relaying": "tests/worker/test_detour.py",
    **dict.fromkeys(
        ("archive.begun", "archived", "archive.none", "archive.not_given", "archive.no_room", "archive.later"),
        "tests/worker/test_archivist.py",
    ),
}  # fmt: skip
"""Said in a test of its own, or in the life below (`a_worker`)."""


def test_each_sentence_comes_about() -> None:
    heard = Heard()
    with spoken(heard.tongue):
        for make in COMES_ABOUT:
            list(make())
    assert set(SENTENCES) - heard == ELSEWHERE.keys()


@pytest.mark.parametrize("make", COMES_ABOUT, ids=lambda make: make.__name__.strip("_"))
def test_none_of_them_has_an_untranslated_word(make: Callable[[], Iterator[str]]) -> None:
    with spoken(PSEUDO):
        for text in make():
            assert untranslated(text) in {"", "r", "x", "no"}, text


async def test_the_life_of_a_worker_is_said_through_the_catalogue(swarm: Swarm, gate: Gate) -> None:
    """It enrols, is paused in training, goes on, is accepted and credited, and leaves when the run is over."""
    heard = Heard()

    def sentence(name: str, text: str) -> str:
        heard.add(name)
        return PSEUDO.sentence(name, text)

    with spoken(dataclasses.replace(PSEUDO, sentence=sentence)):
        volunteer = Volunteer(swarm, batch_hook=gate)
        await volunteer.recorder.saw("fetched")
        await volunteer.until(State.TRAINING)
        said = [(await volunteer.control.handle({"verb": "pause", "until_s": time.time() + 60}))["says"]]
        await volunteer.until(State.PAUSED)
        gate.opened.set()
        said.append((await volunteer.control.handle({"verb": "resume"}))["says"])
        finish = await volunteer.task
        said.append(volunteer.control.sentence())
    texts = [*said, finish.reason, *(text for event, text in volunteer.recorder.events if event not in NOT_IN_IT)]
    assert [found for text in texts if (found := untranslated(text))] == []
    assert len(texts) > 12
    expected = {"enrolled", "connected", "granted", "fetched", "uploaded", "run_over", "paused.waits", "resumed"}
    assert expected <= heard
