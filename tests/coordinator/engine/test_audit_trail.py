"""What the log of judgements says of audits and bans: by whom, of whom, once each, and again from the state."""

from __future__ import annotations

import pytest

from coordinator.engine import events as ev
from coordinator.engine.commands import ReplayLease
from coordinator.engine.config import AuditConfig
from coordinator.run.audit_trail import AuditTrail
from protocol.ids import LeaseId, WorkerId

A = WorkerId("a")


class Kept:
    """Lines in memory, each key once."""

    def __init__(self):
        self.lines = {}

    def add(self, lines):
        for line in lines:
            self.lines.setdefault(line.key, line)

    def said(self):
        return [(one.worker, one.stage, one.verdict, one.judge, one.why) for one in self.lines.values()]


@pytest.fixture
def written(swarm):
    """A swarm in which `a` and `b` are anna's, and the log of what happens in it."""
    s = swarm(max_rounds=9, audits=AuditConfig(budget=9.0), quorum=1)
    s.join("a", "b", owner="anna")
    s.join("c")
    s.at(10)
    log = Kept()
    trail = AuditTrail(log, lambda: s.engine.state, lambda at_s: None)

    def tell(event):
        s.handle(event)
        trail.event(event)

    return s, log, tell


def test_what_the_operator_did_to_one_worker(written):
    s, log, tell = written
    for kind in (ev.WorkerBanned, ev.WorkerUnbanned, ev.WorkerPardoned):
        tell(kind(at_s=s.now_s, worker=A, by="otto", why="lied"))
    assert log.said() == [
        ("a", "trust", "banned", "otto", "the operator banned it: lied"),
        ("a", "trust", "unbanned", "otto", "lied"),
        ("a", "trust", "pardoned", "otto", "lied"),
    ]


def test_an_owners_ban_is_there_and_under_each_machine(written):
    s, log, tell = written
    ban = ev.OwnerBanned(at_s=s.now_s, owner="anna", by="otto", why="lied")
    tell(ban)
    tell(ev.OwnerUnbanned(at_s=s.now_s, owner="anna", by="otto", why="sorry"))
    assert log.said() == [
        ("", "trust", "owner banned", "otto", "anna: the operator banned it: lied"),
        ("a", "trust", "banned", "otto", "the operator banned it: lied"),
        ("b", "trust", "banned", "otto", "the operator banned it: lied"),
        ("", "trust", "owner unbanned", "otto", "anna: sorry"),
    ]


def test_an_audit_has_its_figures_and_whoever_starts_anew_writes_the_same(written):
    s, log, tell = written
    s.submit("a")
    command = next(one for one in s.engine.pending if isinstance(one, ReplayLease))
    lease_id = LeaseId("r1.1")
    tell(
        ev.LeaseReplayed(
            at_s=s.now_s,
            command_id=command.command_id,
            lease_id=lease_id,
            auditor=None,
            trunk=0.5,
            columns=0.1,
            arithmetic=command.arithmetic,
        )
    )
    line = log.lines["audit:r1.1:0"]
    assert (line.verdict, line.judge, line.figure, line.threshold) == ("failed", "coordinator", 0.5, 0.02)
    assert line.why == f"both in {command.arithmetic}"
    outcome = log.lines["outcome:r1.1:undecided"]
    assert (outcome.worker, outcome.why) == ("a", "not reproduced by coordinator; reproduced by nobody")
    again = Kept()
    AuditTrail(again, lambda: s.engine.state, lambda at_s: None).catch_up()
    assert {"audit:r1.1:0", "outcome:r1.1:undecided"} <= again.lines.keys()
