"""Replicas are independent people: machines of one owner never hold the same column, nor vote twice."""

from __future__ import annotations

from coordinator.engine import dispatch
from coordinator.engine import events as ev
from coordinator.engine.commands import AggregateRound, GrantLease
from coordinator.engine.records import event_from_json, event_to_json
from protocol.ids import WorkerId


def test_machines_of_one_owner_share_no_column(swarm):
    s = swarm(columns=8, min_workers=4)
    s.join("a1", "a2", columns=4, owner="anna")
    s.join("b1", "b2", columns=4, owner="ben")
    for first, second in ("a1", "a2"), ("b1", "b2"):
        assert set(s.lease(first).columns) | set(s.lease(second).columns) == set(range(8))


def test_they_share_none_where_others_make_it_the_least_covered(swarm):
    s = swarm(columns=8, quorum=1)
    for number in range(8):
        s.join(f"a{number}", columns=1, owner="anna")
        s.join(f"b{number}", columns=3)
    assert sorted(s.lease(f"a{number}").columns[0] for number in range(8)) == list(range(8))


def test_machines_of_one_owner_count_as_one_that_a_column_can_be_left_to(swarm):
    s = swarm()
    s.enrol("a1", "a2", "a3", owner="anna")
    s.enrol("b")
    state = s.engine.state
    assert dispatch._leasable(state, ()) == 2
    assert dispatch._leasable(state, {WorkerId("a1"), WorkerId("b")}) == 1
    assert dispatch._leasable(state, {WorkerId("a1"), WorkerId("a2"), WorkerId("a3")}) == 1


def test_machines_of_nobody_do(swarm):
    s = swarm(columns=8, min_workers=2)
    s.join("a", "b", columns=8)
    assert s.lease("a").columns == s.lease("b").columns == tuple(range(8))


def test_one_that_finds_no_column_left_waits_and_is_told_why(swarm, pick):
    s = swarm(columns=4, quorum=2)
    s.join("a1", columns=4, owner="anna")
    s.join("a2", columns=4, owner="anna")
    assert s.leases("a2") == []
    assert "anna's other machines have the columns of round 1" in s.engine.wait_reason(WorkerId("a2"))
    s.join("b", columns=4)
    s.after(1)
    s.submit("a1", "b")
    assert len(s.waiting_for(AggregateRound).contributions) == 2
    s.aggregated()
    assert s.round == 2
    assert s.leases("a2")  # in the next round it is there first
    s.ask("a1")
    assert s.lease("a1").round == 1


def test_a_lost_lease_s_columns_go_to_the_other_machine(swarm):
    s = swarm(columns=4)
    s.join("a1", "a2", columns=4, owner="anna")
    s.give_back("a1")
    s.ask("a2")
    assert s.lease("a2").columns == (0, 1, 2, 3)


def test_who_was_silent_comes_too_late_once_the_other_machine_has_its_column(swarm):
    s = swarm(columns=4)
    s.join("a1", "a2", columns=4, owner="anna")
    s.silent("a1")
    s.ask("a2")
    assert s.lease("a2").columns == (0, 1, 2, 3)
    s.commit("a1")
    (record,) = s.leases("a1")
    assert (record.status, record.verdict.key) == ("rejected", "late")
    assert "another machine of anna was given column 0" in record.verdict.reason


def test_who_was_silent_counts_after_all_while_nobody_of_the_owner_has_it(swarm):
    s = swarm(columns=4)
    s.join("a1", columns=2, owner="anna")
    s.join("b", columns=4)
    s.silent("a1")
    s.commit("a1")
    assert s.leases("a1")[0].status == "committed"


def test_one_owner_has_one_vote_on_the_trunk(swarm, pick):
    s = swarm(columns=4, min_workers=3)
    s.join("a1", "a2", columns=2, owner="anna")
    s.join("b", columns=4)
    s.after(1)
    log = s.submit("a1", "a2", "b")
    (command,) = pick(AggregateRound, log)
    votes = [(s.record(c.lease_id).lease.worker, c.include_trunk) for c in command.contributions]
    assert votes == [("a1", True), ("a2", False), ("b", True)]
    trunk = next(clip for clip in command.clips if clip.block == "trunk")
    assert trunk.max_norm_l2 == 1.0


def test_a_late_submission_gives_way_to_a_newer_one_of_the_other_machine_where_both_hold_a_column(swarm):
    s = swarm(columns=4, quorum=1, replicas=1, min_workers=3, max_rounds=4)
    s.join("a1", columns=4, owner="anna")
    s.join("b", "c", columns=4)
    s.join("a2", columns=4, owner="anna")
    late = s.lease("a1")
    s.after(1)
    s.submit("b", "c")
    s.commit("a1", late)
    s.after(5)  # its bytes are on their way when the grace is over
    s.aggregated()
    new = s.lease("a2")
    assert new.round == 2
    s.upload("a1", late)
    s.measured(late.lease_id)
    s.after(1)
    s.submit("a2")
    s.after(60)
    command = s.waiting_for(AggregateRound)
    assert [c.lease_id for c in command.contributions] == [new.lease_id]
    assert s.record(late.lease_id).end_reason == "a newer one of its worker, or of its owner, counts"


def test_a_grace_is_not_spent_on_columns_that_are_not_short(swarm, pick):
    """A machine that could serve no column at risk is not a spare."""
    s = swarm(columns=4, quorum=2, replicas=2, min_workers=1)
    s.join("a1", columns=4, owner="anna")
    s.enrol("a2", columns=4, owner="anna")
    s.after(1)
    s.submit("a1")
    assert s.waiting_for(AggregateRound), "it was waited for a machine that may take nothing"
    assert pick(GrantLease, s.ask("a2")) == []


def test_an_enrolment_from_before_there_were_owners_is_read(swarm):
    s = swarm()
    text = event_to_json(
        ev.WorkerEnrolled(
            at_s=0.0, worker=WorkerId("w"), name="w", trusted=False, max_columns=0, tokens_per_s=0.0, owner=""
        )
    )
    old = text.replace(',"owner":""', "")
    assert old != text
    s.handle(event_from_json(old))
    assert s.engine.state.workers[WorkerId("w")].owner == ""
    assert s.engine.state.workers[WorkerId("w")].person == "w"


def test_the_workers_of_one_machine_are_one_person_whose_first_one_had_none_beside_it(swarm):
    """The second GPU comes while the first holds a lease: from then on both are counted as one."""
    s = swarm(columns=4, quorum=1, min_workers=1)
    s.join("a", columns=2)
    held = set(s.lease("a").columns)
    s.join("a1", columns=4, sibling_of="a")
    assert set(s.lease("a1").columns) == set(range(4)) - held
    state = s.engine.state
    assert state.workers[WorkerId("a")].person == state.workers[WorkerId("a1")].person == "a"
    s.enrol("a2", sibling_of="a")
    s.enrol("b")
    assert state.index.machines == {"a": {WorkerId("a"), WorkerId("a1"), WorkerId("a2")}}
    assert state.index.person_place(WorkerId("a2")) == state.index.person_place(WorkerId("a")) == 0
    assert state.index.person_place(WorkerId("b")) == 3
    s.ask("a2")
    assert s.leases("a2") == []
    assert "its owner's other machines have the columns" in s.engine.wait_reason(WorkerId("a2"))
    assert s.replayed().snapshot() == s.engine.snapshot()


def test_siblings_of_a_named_owners_machine_are_that_owners(swarm):
    s = swarm(columns=4, quorum=1, min_workers=1)
    s.join("a", columns=2, owner="anna")
    s.join("a1", columns=4, owner="anna", sibling_of="a")
    s.join("a2", columns=4, owner="anna")
    taken = [column for name in ("a", "a1", "a2") for record in s.leases(name) for column in record.lease.columns]
    assert sorted(taken) == [0, 1, 2, 3]
    assert s.engine.state.workers[WorkerId("a1")].person == "owner anna"


def test_an_event_of_a_sibling_is_written_and_read():
    event = ev.WorkerEnrolled(
        at_s=1.0, worker=WorkerId("a1"), trusted=False, max_columns=0, tokens_per_s=0.0, sibling_of=WorkerId("a")
    )
    assert event_from_json(event_to_json(event)) == event
