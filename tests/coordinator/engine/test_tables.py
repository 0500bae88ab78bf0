"""Tables of moves, the diagrams in docs/engine.md that are drawn from them, draws, and records."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine import commands as cmd
from coordinator.engine import events as ev
from coordinator.engine import records
from coordinator.engine.commands import SlowCommand
from coordinator.engine.draws import Draws
from coordinator.engine.event_table import ROWS
from coordinator.engine.phases import (
    LEASE_MOVES,
    PHASE_MOVES,
    LeaseStatus,
    Phase,
    mermaid,
    move_lease,
    move_phase,
)
from protocol.errors import LocalError
from protocol.ids import TRUNK, LeaseId, WorkerId

DOCS = Path(__file__).parents[3] / "docs" / "engine.md"
SECRET = b"0123456789abcdef"


def legal_events_table() -> str:
    lines = ["| event | " + " | ".join(Phase) + " |", "|---|" + "---|" * len(Phase)]
    for row in ROWS:
        cells = " | ".join("yes" if phase in row.phases else "–" for phase in Phase)
        if row.phases:
            lines.append(f"| `{row.event.__name__}` | {cells} |")
    return "\n".join(lines)


GENERATED = {
    "phases": f"```mermaid\n{mermaid(PHASE_MOVES)}\n```",
    "leases": f"```mermaid\n{mermaid(LEASE_MOVES)}\n```",
    "events": legal_events_table(),
}


@pytest.mark.parametrize("name", list(GENERATED))
def test_the_docs_show_the_tables_as_they_are(name):
    pattern = re.compile(rf"(<!-- {name}: generated -->\n).*?(\n<!-- end -->)", re.DOTALL)
    text = DOCS.read_text()
    if os.environ.get("UPDATE_GOLDEN"):
        DOCS.write_text(pattern.sub(lambda match: match[1] + GENERATED[name] + match[2], text))
        return
    match = pattern.search(text)
    assert match
    assert match[0] == f"<!-- {name}: generated -->\n{GENERATED[name]}\n<!-- end -->"


@pytest.mark.parametrize(("old", "new"), [(old, new) for old in Phase for new in Phase])
def test_phase_moves(old, new):
    if (old, new) in PHASE_MOVES:
        assert move_phase(old, new) is new
    else:
        with pytest.raises(LocalError, match=f"phase {old} may not be followed by {new}"):
            move_phase(old, new)


@pytest.mark.parametrize(("old", "new"), [(old, new) for old in LeaseStatus for new in LeaseStatus])
def test_lease_moves(old, new):
    if (old, new) in LEASE_MOVES:
        assert move_lease("r1.1", old, new) is new
    else:
        with pytest.raises(LocalError, match=f"is {old} and may not become {new}"):
            move_lease("r1.1", old, new)


def test_every_phase_is_reached_and_only_over_is_final():
    assert {new for _, new in PHASE_MOVES} | {Phase.GATHERING} == set(Phase)
    assert set(Phase) - {old for old, _ in PHASE_MOVES} == {Phase.OVER}


# ---- draws


def test_draws_repeat_and_differ_by_every_part():
    streams: list[tuple[Any, ...]] = [(1, "a"), (2, "a"), (1, "b"), (1, "a", "b"), (1, "ab"), (1, "a", 1), (1, "a1")]
    first = [Draws(SECRET).stream(n, *purpose).u64() for n, *purpose in streams]
    assert first == [Draws(SECRET).stream(n, *purpose).u64() for n, *purpose in streams]
    assert len(set(first)) == len(first)
    assert Draws(b"another secret!!").stream(1, "a").u64() != first[0]


def test_draws_are_the_same_everywhere():
    stream = Draws(SECRET).stream(3, "placement", "w")
    assert (stream.u64(), stream.below(10), stream.sample("abcdef", 6), stream.sample("abcdef", 2)) == (
        11887848458656957898,
        4,
        ["f", "b", "e", "a", "c", "d"],
        ["f", "d"],
    )
    one, other = (Draws(SECRET).stream(3, "placement", "w") for _ in range(2))
    assert one.u64s(40) == [other.u64() for _ in range(40)]


def test_draws_are_even():
    stream = Draws(SECRET).stream(1, "even")
    counts = [0] * 7
    for _ in range(7000):
        counts[stream.below(7)] += 1
    assert all(abs(count - 1000) < 150 for count in counts), counts
    assert sorted(stream.sample(range(50), 50)) == list(range(50))
    firsts = Counter(tuple(stream.sample("abc", 2)) for _ in range(6000))
    assert len(firsts) == 6
    assert all(abs(count - 1000) < 150 for count in firsts.values()), firsts
    assert sorted(stream.sample("ab", 9)) == ["a", "b"]


def test_seeds_fit_a_signed_64_bit_integer():
    assert all(0 <= Draws(SECRET).seed(n, "x") < 2**63 for n in range(200))


def test_a_short_secret_is_refused():
    with pytest.raises(ValueError, match="16 bytes or more"):
        Draws(b"short")


# ---- records

EVENTS = tuple(row.event for row in ROWS)


@settings(deadline=None)
@given(data=st.data())
def test_events_survive_the_journal(data):
    event = data.draw(st.one_of(*(st.builds(cast(Any, kind)) for kind in EVENTS)))
    again = records.event_from_json(records.event_to_json(event))
    assert type(again) is type(event)
    assert repr(again) == repr(event)  # equal but for NaN, which is equal to nothing


def test_infinities_and_nan_survive():
    event = ev.SubmissionMeasured(
        at_s=0.1 + 0.2,
        command_id="m",
        lease_id=LeaseId("r1.1"),
        malformed="",
        norms=(ev.BlockNorm(block=TRUNK, norm_l2=math.inf),),
        heldout_gain=math.nan,
    )
    again = records.event_from_json(records.event_to_json(event))
    assert isinstance(again, ev.SubmissionMeasured)
    assert again.norms == event.norms
    assert math.isnan(again.heldout_gain)
    assert again.at_s == 0.1 + 0.2


def test_commands_survive(swarm):
    s = swarm()
    s.join("a", "b")
    s.after(5)
    s.submit("a", "b")
    for _ in range(3):
        s.failed("aggregate:r1", trouble=ev.CommandTrouble.CONTENT)
    s.tried("r1.1")
    s.stop()
    s.aggregated(gain=-1.0)
    s.harm_found()
    s.aggregated()
    s.do_slow_work()
    s.handle(ev.WorkerBanned(at_s=s.now_s, worker=WorkerId("b"), by="operator", why=""))
    lease, digest = s.record("r1.1").lease, s.digest("r1.1")
    sent: dict[str, Any] = {"lease": lease, "digest": digest, "codec": "fp32"}
    again = dataclasses.replace(lease, lease_id=LeaseId("r1.9"), audits=lease.lease_id)
    s.log.append(cmd.ReplayLease(command_id="replay:r1.1", micro_batch=4, **sent))
    s.log.append(
        cmd.CompareSubmissions(command_id="compare:r1.9", again=again, again_digest=digest, again_codec="fp32", **sent)
    )
    s.log.append(cmd.OpenResiduals(worker=WorkerId("a"), lease_id=lease.lease_id))
    kinds = {type(command) for command in s.log}
    every = {k for k in vars(cmd).values() if isinstance(k, type) and issubclass(k, cmd.Command)}
    assert every - kinds <= {cmd.Command, SlowCommand, cmd.CancelLease, cmd.RebuildVersion}
    for command in s.log:
        assert records.command_from_json(records.command_to_json(command)) == command


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"Nothing","at_s":0}',
        '{"at_s":0}',
        '{"type":"Ticked"}',
        '{"type":"Ticked","at_s":"now"}',
        '{"type":"Ticked","at_s":true}',
        '{"type":"Ticked","at_s":0,"more":1}',
        '{"type":"GrantLease","lease":{}}',
        "[]",
        "null",
    ],
)
def test_what_is_no_event_is_refused(text):
    with pytest.raises(LocalError):
        records.event_from_json(text)


def test_a_field_that_an_older_journal_does_not_have_takes_its_default():
    plain = json.loads(records.event_to_json(ev.LeaseRequested(at_s=1.0, worker=WorkerId("a"), wait_s=3.0)))
    del plain["wait_s"]
    assert records.event_from_json(json.dumps(plain)) == ev.LeaseRequested(at_s=1.0, worker=WorkerId("a"))


def test_all_data_is_frozen():
    for module in (ev, cmd):
        for kind in vars(module).values():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                assert cast(Any, kind).__dataclass_params__.frozen, kind
