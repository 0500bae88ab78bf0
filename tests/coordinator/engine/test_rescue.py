"""A round that cannot be aggregated: the run goes on without whoever is at fault, and says so."""

import dataclasses

import pytest

from coordinator.engine import events as ev
from coordinator.engine.commands import AggregateRound, AnnounceVerdict, DropPayload, TryContributions
from coordinator.engine.phases import Phase
from protocol.errors import IllegalEvent
from protocol.ids import LeaseId, RoundNumber, Version
from simulator.virtual.canned import compared_as

CONTENT, MACHINE = ev.CommandTrouble.CONTENT, ev.CommandTrouble.MACHINE


def aggregating(swarm, **changes):
    s = swarm(**changes)
    s.join("a", "b", "c")
    s.at(10).submit("a", "b", "c")
    assert s.phase is Phase.AGGREGATING
    return s


def fail_aggregation(s, times=3, trouble=CONTENT, error="0 / 0"):
    for _ in range(times):
        s.failed(s.waiting_for(AggregateRound).command_id, error, trouble)


def test_three_failures_of_content_have_each_contribution_tried_alone(swarm, pick):
    s = aggregating(swarm)
    command = s.waiting_for(AggregateRound)
    fail_aggregation(s, times=2)
    assert s.waiting_for(AggregateRound) is command
    tried = pick(TryContributions, s.failed("aggregate:r1", "0 / 0", CONTENT))
    assert [one.attempt for one in tried] == [command]
    assert [one.lease_id for one in tried[0].attempt.contributions] == ["r1.1", "r1.2", "r1.3"]
    assert not any(isinstance(one, AggregateRound) for one in s.engine.pending)
    assert s.reasons()["try:r1"].startswith("trying the 3 submissions of round 1 one by one")
    assert s.phase is Phase.AGGREGATING


def test_disk_and_memory_blame_nobody_however_often_they_fail(swarm):
    s = aggregating(swarm)
    fail_aggregation(s, times=20, trouble=MACHINE)
    fail_aggregation(s, times=2)
    assert s.waiting_for(AggregateRound).command_id == "aggregate:r1"
    assert s.reasons()["aggregate:r1"].endswith("failed 22 times so far (0 / 0), to be tried again")


def test_who_fails_alone_is_refused_and_the_round_made_of_the_rest(swarm, pick):
    s = aggregating(swarm)
    fail_aggregation(s)
    commands = s.tried("r1.2")
    (verdict,) = pick(AnnounceVerdict, commands)
    assert (verdict.worker, verdict.accepted) == ("b", False)
    assert verdict.reason == "left out of round 1: aggregating it fails, even alone (0 / 0)"
    assert s.record("r1.2").verdict.key == "unaggregatable"
    assert pick(DropPayload, commands)
    (again,) = pick(AggregateRound, commands)
    assert [one.lease_id for one in again.contributions] == ["r1.1", "r1.3"]
    assert again.cautious
    assert again.command_id != "aggregate:r1"
    s.aggregated()
    (row,) = s.engine.state.history
    assert (row.version, row.accepted, row.rejected) == (1, 2, 1)
    assert [(one.lease_id, one.worker) for one in row.left_out] == [("r1.2", "b")]
    assert s.phase is not Phase.AGGREGATING
    assert s.replayed().snapshot() == s.engine.snapshot()


def test_the_clips_are_those_of_who_is_left(swarm, pick):
    s = swarm(columns=1)
    s.join("a", "b", "c")
    for name, norm in (("a", 1.0), ("b", 1.2), ("c", 1.4)):
        s.at(10).submit(name, norm=norm)
    before = s.waiting_for(AggregateRound)
    fail_aggregation(s)
    (after,) = pick(AggregateRound, s.tried("r1.1"))
    assert [clip.max_norm_l2 for clip in before.clips] == [1.2, 1.2]
    assert [clip.max_norm_l2 for clip in after.clips] == [pytest.approx(1.3), pytest.approx(1.3)]


def test_it_counts_towards_quarantine_but_lost_bytes_do_not(swarm, pick):
    s = aggregating(swarm, quarantine_after=1)
    fail_aggregation(s)
    s.tried("r1.1")
    assert s.engine.state.workers["a"].quarantine is not None
    s = aggregating(swarm, quarantine_after=1)
    fail_aggregation(s)
    (verdict,) = pick(AnnounceVerdict, s.tried("r1.1", lost=True))
    assert verdict.reason.endswith("no fault of the worker")
    assert s.engine.state.workers["a"].quarantine is None
    assert s.engine.state.workers["a"].rejected == {"unmeasurable": 1}


def test_where_all_fail_only_together_each_block_is_made_by_what_works(swarm, pick):
    s = aggregating(swarm)
    fail_aggregation(s)
    (again,) = pick(AggregateRound, s.tried())
    assert again == dataclasses.replace(
        s.waiting_for(AggregateRound), command_id="aggregate:r1:cautious", cautious=True
    )
    assert len(again.contributions) == 3
    assert s.reasons()[again.command_id].endswith("each block by what works for it")


def test_a_round_that_even_so_cannot_be_made_publishes_nothing_and_blames_nobody(swarm, pick):
    s = aggregating(swarm)
    fail_aggregation(s)
    s.tried()
    fail_aggregation(s, times=2)
    commands = s.failed(s.waiting_for(AggregateRound).command_id, "no space for a number", CONTENT)
    assert {(one.worker, one.accepted) for one in pick(AnnounceVerdict, commands)} == {
        ("a", False), ("b", False), ("c", False),
    }  # fmt: skip
    assert {key for record in s.engine.state.workers.values() for key in record.rejected} == {"unusable"}
    assert all(record.refused_lately == 0 for record in s.engine.state.workers.values())
    (row,) = s.engine.state.history
    assert (row.version, len(row.left_out)) == (None, 3)
    assert row.close_reason.startswith("round 1 could not be aggregated and publishes nothing (no space for a number)")
    assert (s.round, s.engine.state.version) == (2, 0)


def test_nobody_left_publishes_nothing_and_the_next_round_opens(swarm):
    s = aggregating(swarm)
    fail_aggregation(s)
    s.tried("r1.1", "r1.2", "r1.3")
    (row,) = s.engine.state.history
    assert row.version is None
    assert row.close_reason.startswith("no accepted submission could be aggregated; every lease is resolved")
    assert (s.round, s.engine.state.version) == (2, 0)
    s.ask("a", "b", "c")
    s.after(10).submit("a", "b", "c")
    s.aggregated()
    assert s.engine.state.version == 1


def test_the_last_round_of_nothing_ends_the_run(swarm):
    s = aggregating(swarm, max_rounds=1)
    fail_aggregation(s)
    s.tried("r1.1", "r1.2", "r1.3")
    assert s.phase is Phase.FINISHING


def test_trying_is_repeated_while_the_base_itself_is_at_fault(swarm):
    s = aggregating(swarm)
    fail_aggregation(s)
    for trouble in (CONTENT, MACHINE) * 5:
        s.failed("try:r1", "artifact 12 is not here", trouble)
    assert s.reasons()["try:r1"].endswith("failed 10 times so far (artifact 12 is not here), to be tried again")
    assert len(s.engine.state.workers["a"].rejected) == 0


@pytest.mark.parametrize("tried", [False, True])
def test_a_stopped_run_that_cannot_aggregate_ends(swarm, tried):
    s = aggregating(swarm)
    if tried:
        fail_aggregation(s)
    s.stop()
    for _ in range(3):
        command_id = "try:r1" if tried else "aggregate:r1"
        s.failed(command_id, "0 / 0", CONTENT)
    assert s.phase is Phase.FINISHING


def test_results_that_do_not_answer_the_question_are_illegal(swarm):
    s = aggregating(swarm)
    with pytest.raises(IllegalEvent, match="not a pending"):
        s.handle(ev.ContributionsTried(at_s=s.now_s, command_id="try:r1", round=RoundNumber(1), failed=()))
    fail_aggregation(s)
    other, once = (ev.FailedAlone(lease_id=LeaseId(lease), error="") for lease in ("r9.9", "r1.1"))
    for failed, number in (((other,), 1), ((once, once), 1), ((once,), 2)):
        with pytest.raises(IllegalEvent, match="tries"):
            s.handle(ev.ContributionsTried(at_s=s.now_s, command_id="try:r1", round=RoundNumber(number), failed=failed))


def test_what_other_rules_made_is_kept_of_the_latest_version(swarm):
    s = aggregating(swarm)
    span = ev.ColumnSpan(first=0, last=3)
    made = ev.Substitute(rule="krum", in_force="mean", fewest=1, most=2, trunk=True, columns=(span,))
    command = s.waiting_for(AggregateRound)
    s.handle(
        ev.RoundAggregated(
            at_s=s.now_s, command_id=command.command_id,
            round=RoundNumber(1), version=Version(1), parent_version=Version(0),
            manifest=s.digest("v1"), update_norm_l2=1.0, substitutes=(made,),
            compared=compared_as(command, gain=0.01),
        )
    )  # fmt: skip
    assert s.engine.state.substitutes == (made,)
    assert s.replayed().state.substitutes == (made,)
