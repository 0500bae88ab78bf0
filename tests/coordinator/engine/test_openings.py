"""An audit of work whose encodings kept something: asked for, waited for, read, dropped."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.engine import events as ev
from coordinator.engine.commands import AggregateRound, CompareSubmissions, DropPayload, OpenResiduals, ReplayLease
from coordinator.engine.config import AuditConfig
from coordinator.engine.openings import asked_of
from coordinator.engine.phases import Phase
from coordinator.run.needed import needed_by
from protocol.errors import IllegalEvent
from protocol.ids import Digest, LeaseId, WorkerId
from tests.coordinator.engine.conftest import Swarm, small_config
from tests.coordinator.engine.test_residuals import feeding_back, left


def audited(*names: str, columns: int = 1, **changes: Any) -> Swarm:
    made = Swarm(
        small_config(
            columns=columns, max_rounds=9, replicas=9, min_workers=len(names),
            audits=AuditConfig(**{"budget": 9.0, **changes}),
        )
    )  # fmt: skip
    made.join(*names)
    made.after(1)
    return made


def deliver(s: Swarm, *names: str) -> None:
    leases = {name: s.lease(name) for name in names}
    for name, lease in leases.items():
        s.commit(name, lease, **feeding_back(lease))
        s.upload(name, lease)
    for lease in leases.values():
        s.measured(lease.lease_id)


def open_all(s: Swarm, name: str) -> None:
    for record, digest in asked_of(s.engine.state, WorkerId(name)):
        opened(s, name, record.lease.lease_id, digest)


def opened(s: Swarm, name: str, lease_id: LeaseId, digest: Digest) -> None:
    s.handle(ev.ResidualOpened(at_s=s.now_s, worker=WorkerId(name), lease_id=lease_id, digest=digest))


def replays(s: Swarm) -> list[ReplayLease]:
    return [command for command in s.engine.pending if isinstance(command, ReplayLease)]


def dropped(s: Swarm) -> list[Digest]:
    return [command.digest for command in s.log if isinstance(command, DropPayload)]


def test_nobody_computes_it_again_before_what_it_kept_is_here_and_the_round_waits_for_both() -> None:
    s = audited("a", "b")
    first, other = s.lease("a"), s.lease("b")
    deliver(s, "a", "b")
    assert [one.lease_id for one in s.log if isinstance(one, OpenResiduals)] == [first.lease_id, other.lease_id]
    assert replays(s) == []
    assert [digest for _, digest in asked_of(s.engine.state, WorkerId("a"))] == list(left(first))
    open_all(s, "b")
    opened(s, "a", first.lease_id, left(first)[0])
    assert [one.lease for one in replays(s)] == [other], "half of it tells nothing"
    assert (first.lease_id, left(first)[0]) in needed_by(s.engine.state).residuals
    open_all(s, "a")
    mine = next(one for one in replays(s) if one.lease == first)
    assert (mine.residuals_in, mine.residuals_out) == (("",) * len(first.blocks), left(first))
    assert s.phase is not Phase.AGGREGATING
    assert s.replayed().snapshot() == s.engine.snapshot()
    s.audited(first.lease_id)
    s.audited(other.lease_id)
    assert len(s.waiting_for(AggregateRound).contributions) == 2
    assert set(dropped(s)) >= {*left(first), *left(other)}
    assert needed_by(s.engine.state).residuals == ()


def test_what_never_comes_is_no_answer() -> None:
    """As an audit that was called for and has not come: half of its weight, in a closed run, once nobody waits."""
    s = audited("a", "b", "c", wait_s=40.0)
    deliver(s, "a", "b", "c")
    open_all(s, "a")
    open_all(s, "b")
    for name in ("a", "b"):
        s.audited(s.lease(name).lease_id)
    assert s.phase is not Phase.AGGREGATING
    s.after(60.0)
    weights = {str(one.worker): one.weight for one in s.waiting_for(AggregateRound).contributions}
    assert weights["c"] < 0.6 * weights["a"]
    lease = s.lease("c").lease_id
    for _ in range(5):
        s.do_slow_work()
        s.ask("a", "b")
        deliver(s, "a", "b")
        open_all(s, "a")
        open_all(s, "b")
        s.after(100.0)
    assert asked_of(s.engine.state, WorkerId("c")) == [], "the audit is over, and nothing is asked any more"
    assert LeaseId(lease) not in s.engine.state.index.open_audits


def test_what_nobody_pays_for_is_not_asked_for() -> None:
    s = audited("a", "b", budget=0.001)
    deliver(s, "a", "b")
    assert all(one.audit_unpaid for one in s.engine.state.leases.values())
    assert not any(isinstance(one, OpenResiduals) for one in s.log)
    assert asked_of(s.engine.state, WorkerId("a")) == []


@pytest.mark.parametrize("what", ["of another worker", "of no lease", "not named"])
def test_what_was_not_asked_for_is_not_taken(what: str) -> None:
    s = audited("a", "b")
    lease = s.lease("a")
    deliver(s, "a", "b")
    name, lease_id, digest = "a", lease.lease_id, left(lease)[0]
    if what == "of another worker":
        name = "b"
    elif what == "of no lease":
        lease_id = LeaseId("r9.9")
    else:
        digest = left(lease, "back")[0]
    with pytest.raises(IllegalEvent):
        opened(s, name, lease_id, digest)


def test_what_comes_after_the_audit_is_dropped() -> None:
    s = audited("a", "b")
    lease = s.lease("a")
    deliver(s, "a", "b")
    open_all(s, "a")
    s.audited(lease.lease_id)
    opened(s, "a", lease.lease_id, left(lease)[0])
    assert dropped(s).count(left(lease)[0]) == 2
    assert needed_by(s.engine.state).residuals == ()


def test_what_came_out_of_one_lease_and_went_into_the_next_stays_for_it() -> None:
    """Three people, so that they are heard before audits have said anything."""
    s = audited("a", "b", "c")
    first = s.lease("a")
    deliver(s, "a", "b", "c")
    open_all(s, "a")
    s.after(700.0)  # its round is over; nobody has computed it again yet
    s.aggregated()
    s.ask("a", "b", "c")
    second = s.lease("a")
    assert second.residuals == left(first)
    deliver(s, "a")
    open_all(s, "a")
    s.audited(first.lease_id)
    assert not set(dropped(s)) & set(left(first))
    s.audited(second.lease_id)
    assert set(dropped(s)) >= {*left(first), *left(second)}


def test_an_auditor_sends_what_it_computed_and_nothing_of_the_audited_ones_past() -> None:
    s = audited("a", by_coordinator=False)
    s.join("t", trusted=True, owner="founder")
    deliver(s, "a", "t")
    s.ask("t")
    assert all(record.lease.audits is None for record in s.leases("t"))
    open_all(s, "a")
    s.ask("t")
    shadow = s.lease("t")
    assert shadow.audits == s.lease("a").lease_id
    assert (shadow.codec, shadow.residuals) == ("bf16", ())
    s.after(5.0).commit("t", shadow, codec="bf16")
    s.upload("t", shadow)
    compare = s.waiting_for(CompareSubmissions)
    assert (compare.residuals_in, compare.residuals_out) == (("", ""), left(s.lease("a")))
