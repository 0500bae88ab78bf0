"""Rollback in the engine: which steps are taken again, what is kept for that, and how often it may be."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from coordinator.engine import bans, rollback
from coordinator.engine import events as ev
from coordinator.engine.commands import AggregateRound, DropPayload, RebuildVersion
from coordinator.engine.contributions import oldest_version_needed
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.reasons import Case, reason
from coordinator.engine.records import command_from_json, command_to_json
from coordinator.engine.rows import Ban
from coordinator.engine.turn import Turn
from protocol.errors import IllegalEvent
from protocol.ids import WorkerId

KEPT = {"max_rounds": 30, "rollback_rounds": 4}


def rounds(s: Any, *crews: str) -> None:
    """One whole round for each crew, of those who submit in it."""
    for crew in crews:
        s.after(5)
        for name in crew:
            if s.lease(name).round == s.round:
                s.submit(name)
        for name in sorted({record.lease.worker for record in s.engine.state.leases.values()} - set(crew)):
            if s.engine.state.open_lease_of(name) is not None:
                s.give_back(name)
        s.aggregated()
        s.ask(*sorted(s.engine.state.workers))


def play(s: Any, crew: str) -> None:
    """All of a round but its outer step."""
    s.ask(*crew)
    s.after(5)
    for name in crew:
        s.submit(name)
    for name in sorted(set("abx") - set(crew)):
        if s.engine.state.open_lease_of(name) is not None:
            s.give_back(name)


def order(s: Any, name: str) -> Any:
    return s.handle(ev.RollbackOrdered(at_s=s.now_s, worker=WorkerId(name), by="operator", why=""))


def ban_by_engine(s: Any, name: str) -> None:
    """What two failed audits come to (test_bans.py)."""
    state = s.engine.state
    state.begin()
    turn = Turn(state=state, draws=s.engine._draws)
    rollback.after_ban(turn, WorkerId(name), bans.BY_ENGINE)
    why = reason(Case.AUDITS_FAILED, "r1.1", auditors=2)
    bans.shut_out(turn, state.workers[WorkerId(name)], Ban(at_s=state.now_s, by=bans.BY_ENGINE, why=why))
    state.end()


def workers_in(step: AggregateRound) -> str:
    return "".join(sorted(str(one.worker) for one in step.contributions))


def test_nothing_is_kept_where_rollback_is_off(swarm, pick):
    s = swarm(max_rounds=9)
    s.join("a", "b", "x")
    rounds(s, "abx", "abx")
    assert s.engine.state.past_steps == ()
    assert len(pick(DropPayload, s.log)) == 6
    with pytest.raises(IllegalEvent, match="in the 0 rounds"):
        order(s, "x")


def test_what_the_window_needs_is_kept_and_no_more(swarm, pick):
    s = swarm(max_rounds=12, rollback_rounds=5)
    s.join("a", "b", "x")
    rounds(s, *["abx"] * 8)
    state = s.engine.state
    assert [step.attempt.round for step in state.past_steps] == [4, 5, 6, 7, 8]
    kept = {one.digest for step in state.past_steps for one in step.attempt.contributions}
    dropped = {command.digest for command in pick(DropPayload, s.log)}
    assert (len(kept), len(dropped)) == (15, 9)
    assert kept.isdisjoint(dropped)
    s.do_slow_work()  # validations of earlier versions
    assert oldest_version_needed(state) == 3


def test_the_steps_since_the_liar_are_taken_again_without_it(swarm):
    s = swarm(**KEPT)
    s.join("a", "b", "x")
    rounds(s, "abx", "ab", "abx")
    order(s, "x")
    assert order(s, "x") == []  # said twice
    assert s.phase is Phase.TRAINING
    s.submit("a", "b")
    s.give_back("x")
    s.aggregated()
    command = s.waiting_for(RebuildVersion)
    assert (command.version, command.parent_version, command.from_version) == (5, 4, 0)
    assert [workers_in(step) for step in command.steps] == ["ab"] * 4
    assert command_from_json(command_to_json(command)) == command
    assert "taking 4 outer steps again from version 0 on" in s.reasons()[command.command_id]
    s.rebuilt(change_l2=1.0)
    state = s.engine.state
    assert (state.version, s.round, state.round.base_version) == (5, 5, 5)
    assert [row.version for row in state.history] == [1, 2, 3, 4]
    assert (state.rollbacks[-1].version, state.rollbacks[-1].from_version) == (5, 0)
    with pytest.raises(IllegalEvent, match="nothing of x"):
        order(s, "x")


def test_the_next_version_is_compared_with_the_rebuilt_one_alone(swarm):
    s = swarm(**KEPT)
    s.join("a", "b", "x")
    play(s, "abx")
    s.aggregated(gain=1.0)  # with the liar's help the best of all
    play(s, "abx")
    s.aggregated(gain=-0.001)
    assert len(s.engine.state.standings) == 2
    order(s, "x")
    play(s, "abx")
    s.aggregated(gain=-0.001)
    s.rebuilt()
    assert s.engine.state.standings == ()
    play(s, "ab")
    assert [one.version for one in s.waiting_for(AggregateRound).compared_with] == [4]
    s.aggregated(gain=-0.001)
    assert [one.version for one in s.engine.state.standings] == [4, 5]


def test_leases_on_abandoned_versions_expire(swarm):
    s = swarm(**KEPT)
    s.join("a", "b", "x", "slow")
    rounds(s, "abx")
    s.after(5)
    s.submit("a", "b", "x")
    s.commit("slow")
    order(s, "x")
    s.after(60)
    s.aggregated()
    lease = s.leases("slow")[-1]
    assert lease.status is LeaseStatus.COMMITTED
    s.rebuilt()
    lease = s.record(lease.lease.lease_id)
    assert (lease.status, lease.end_reason) == (
        LeaseStatus.EXPIRED,
        "version 1, which it builds on, was taken back",
    )


def test_a_change_that_cannot_be_measured_makes_no_version(swarm):
    s = swarm(**KEPT, rollback_least_change=0.1)
    s.join("a", "b", "x")
    rounds(s, "abx")
    order(s, "x")
    s.after(5)
    s.submit("a", "b", "x")
    s.aggregated()
    s.rebuilt(change_l2=0.14)  # a usual round's update is 1.5
    assert (s.engine.state.version, s.round) == (2, 3)
    row = s.engine.state.rollbacks[-1]
    assert (row.version, row.change_l2, row.update_norm_l2) == (None, 0.14, 1.5)


def test_a_second_rollback_starts_from_a_version_that_is_there(swarm):
    s = swarm(**KEPT)
    s.join("a", "b", "x", "y")
    rounds(s, "ab", "abx", "aby")
    order(s, "x")
    rounds(s, "ab")
    s.rebuilt()
    s.ask("a", "b", "x", "y")
    assert [step.has_start for step in s.engine.state.past_steps] == [True, True, False, False]
    order(s, "y")
    s.after(5)
    s.submit("a", "b")
    s.give_back("x")
    s.give_back("y")
    s.aggregated()
    command = s.waiting_for(RebuildVersion)
    assert command.from_version == 1  # where the first one began: what lay between is on no disk
    assert [workers_in(step) for step in command.steps] == ["ab"] * 4
    s.rebuilt()
    assert s.engine.state.version == 7


def test_what_cannot_be_made_is_given_up_and_the_run_goes_on(swarm):
    s = swarm(**KEPT)
    s.join("a", "b", "x")
    rounds(s, "abx")
    order(s, "x")
    s.after(5)
    s.submit("a", "b", "x")
    s.aggregated()
    command_id = s.waiting_for(RebuildVersion).command_id
    for _ in range(5):
        s.failed(command_id)  # the disk: waited out
    assert s.phase is Phase.AGGREGATING
    for _ in range(3):
        s.failed(command_id, "a bug", ev.CommandTrouble.CONTENT)
    assert (s.round, s.engine.state.version) == (3, 2)
    assert s.engine.state.rollbacks[-1].given_up is not None


def test_one_that_is_being_made_takes_no_further_order(swarm):
    s = swarm(**KEPT)
    s.join("a", "b", "x")
    rounds(s, "abx")
    order(s, "x")
    s.after(5)
    s.submit("a", "b", "x")
    s.aggregated()
    with pytest.raises(IllegalEvent, match="order this one again"):
        order(s, "a")  # what is being made has its steps: it would be told to be without them, and is not
    s.rebuilt()
    assert s.engine.state.rollbacks[-1].without == ("x",)


def test_a_run_that_is_stopped_meanwhile_still_gets_it(swarm):
    s = swarm(**KEPT)
    s.join("a", "b", "x")
    rounds(s, "abx")
    order(s, "x")
    s.after(5)
    s.submit("a", "b", "x")
    s.aggregated()
    s.stop()
    s.rebuilt()
    assert (s.engine.state.version, s.phase) == (3, Phase.FINISHING)


def test_a_round_of_nothing_is_followed_by_it_too(swarm):
    s = swarm(**KEPT)
    s.join("a", "b", "x")
    rounds(s, "abx")
    order(s, "x")
    s.after(5)
    for name in "abx":
        s.submit(name, gain=-1.0)
    assert [workers_in(step) for step in s.waiting_for(RebuildVersion).steps] == ["ab"]
    s.rebuilt()
    assert (s.engine.state.version, s.round) == (2, 3)


def test_one_banned_sybil_a_round_takes_back_one_round_in_a_window(swarm):
    """Thirty rounds, and in each a newcomer that lies and is banned: seven rollbacks, of four steps each at most."""
    s = swarm(max_rounds=40, rollback_rounds=4)
    s.join("a", "b")
    for number in range(30):
        sybil = f"x{number}"
        s.join(sybil)
        s.after(5)
        s.submit("a", "b", sybil)
        s.aggregated()
        while s.phase is Phase.AGGREGATING:
            s.rebuilt()
        s.ask("a", "b")
        ban_by_engine(s, sybil)
    state = s.engine.state
    made = [row for row in state.rollbacks if row.version is not None]
    assert 6 <= len(made) <= 8
    assert state.version == 30 + len(made)
    assert state.round.round == 31
    assert max(len(row.without) for row in made) >= 3  # all who were banned since the last, at once
    assert all(b.round - a.round >= 4 for a, b in pairwise(made))


def test_a_snapshot_keeps_it(swarm):
    s = swarm(**KEPT)
    s.join("a", "b", "x")
    rounds(s, "abx", "abx")
    order(s, "x")
    assert s.replayed().snapshot() == s.engine.snapshot()
    rounds(s, "ab")
    s.rebuilt()
    assert s.replayed().snapshot() == s.engine.snapshot()
