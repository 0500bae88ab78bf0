"""A version that is worse is not published, whoever made it so is looked for, and no honest run stands still."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.engine import events as ev
from coordinator.engine.commands import AggregateRound, AnnounceVerdict, DropPayload, FindHarmful, Remedy, ReplayLease
from coordinator.engine.config import AuditConfig, TrustRegionConfig, check_config
from coordinator.engine.explain import cautions
from coordinator.engine.phases import Phase
from coordinator.engine.reasons import told
from coordinator.engine.rows import AuditResult
from coordinator.engine.trust_region import why_withheld
from protocol.errors import ConfigError, IllegalEvent
from protocol.ids import LeaseId, RoundNumber, Version, WorkerId

CONTENT = ev.CommandTrouble.CONTENT
NAMES = ("a", "b", "c", "d")


def never_by_chance(budget: float) -> AuditConfig:
    """Of trusted workers' leases none is drawn."""
    return AuditConfig(budget=budget, least_probability=0.0)


def aggregating(swarm, names=NAMES, trusted=(), **changes):
    s = swarm(**changes)
    for name in names:
        s.enrol(name, trusted=name in trusted)
    play(s, names)
    return s


def play(s, names=NAMES):
    s.ask(*names)
    s.after(10).submit(*names)
    assert s.phase is Phase.AGGREGATING


def comparison(gain: float, se: float = 0.001, loss: float = 3.0, version: int = 0) -> ev.VersionComparison:
    return ev.VersionComparison(version=Version(version), gain=gain, gain_se=se, loss=loss)


@pytest.mark.parametrize(
    ("gain", "se", "withheld"),
    [(0.1, 0.001, False), (-0.014, 0.001, False), (-0.02, 0.001, True), (-0.02, 0.006, False), (-1e9, 0.0, True)],
)
def test_worse_is_beyond_the_error_of_measuring_and_that_of_training(gain, se, withheld):
    assert (why_withheld(TrustRegionConfig(), [comparison(gain, se)]) is not None) == withheld


def test_the_best_of_late_counts_only_for_what_is_worse_than_its_parent():
    config = TrustRegionConfig()
    drift = [comparison(-0.001, version=8), comparison(-0.05, version=3)]
    why = why_withheld(config, drift)
    assert why is not None
    assert why.figures["version"] == 3
    assert why_withheld(config, [comparison(0.001, version=8), comparison(-0.05, version=3)]) is None, "it climbs back"


def test_a_good_version_is_published_and_compared_with_its_parent_alone(swarm):
    s = aggregating(swarm)
    command = s.waiting_for(AggregateRound)
    assert [one.version for one in command.compared_with] == [0]
    s.aggregated()
    play(s)
    again = s.waiting_for(AggregateRound)
    assert [one.version for one in again.compared_with] == [1]
    assert again.region_seed == command.region_seed, "what was measured as new is known as the parent"


def test_a_slow_drift_is_held_against_the_best_and_that_one_is_kept(swarm):
    s = aggregating(swarm, max_rounds=40)
    s.aggregated()
    for _ in range(4):
        play(s)
        s.aggregated(gain=-0.01, best=-0.012)
        s.do_slow_work()
    play(s)
    command = s.waiting_for(AggregateRound)
    assert [one.version for one in command.compared_with] == [5, 1]
    assert command.oldest_needed == 1
    s.aggregated(gain=-0.01, best=-0.05)
    assert s.engine.state.version == 5
    assert "over version 1" in told(s.engine.state.round.withheld[0])


def test_the_best_is_forgotten_after_the_windows_rounds(swarm):
    s = aggregating(swarm, max_rounds=40, region=TrustRegionConfig(window=2))
    s.aggregated()
    for _ in range(4):
        play(s)
        s.aggregated(gain=-0.001)
    play(s)
    assert [one.version for one in s.waiting_for(AggregateRound).compared_with] == [5, 4]
    assert len(s.engine.state.standings) == 3


def test_a_worse_version_is_withheld_and_whoever_made_it_so_is_looked_for(swarm, pick):
    s = aggregating(swarm)
    first = s.waiting_for(AggregateRound)
    (search,) = pick(FindHarmful, s.aggregated(gain=-1.0))
    assert search.attempt == first
    assert set(search.suspects) == {one.lease_id for one in first.contributions}
    assert search.passes == 16
    assert (s.phase, s.engine.state.version) == (Phase.AGGREGATING, 0)
    assert s.reasons()["harm:r1"] == "looking which of 4 submissions made version 1 worse"
    commands = s.harm_found("r1.2", suspected=("r1.3",))
    verdicts = {one.worker: one for one in pick(AnnounceVerdict, commands)}
    assert {name: one.verdict.key for name, one in verdicts.items()} == {"b": "heldout_loss_rose", "c": "unusable"}
    (again,) = pick(AggregateRound, commands)
    assert (again.command_id, again.remedy) == ("aggregate:r1:without", Remedy.WITHOUT_HARMFUL)
    assert [one.lease_id for one in again.contributions] == ["r1.1", "r1.4"]
    assert again.compared_with == first.compared_with
    s.aggregated()
    (row,) = s.engine.state.history
    assert (row.version, len(row.withheld), len(row.left_out)) == (1, 1, 2)
    assert row.close_reason.startswith("withheld a version that raises held-out loss over version 0 by 1 ")
    assert s.engine.state.withheld_in_row == 0
    assert s.replayed().snapshot() == s.engine.snapshot()


def test_doubted_first_are_those_with_the_least_gain_and_last_the_vouched_for(swarm, pick):
    s = swarm()
    for name in NAMES:
        s.enrol(name, trusted=name == "a")
    s.ask(*NAMES)
    s.after(10)
    for name, gain in (("a", 0.01), ("b", 0.05), ("c", 0.02), ("d", 0.03)):
        s.submit(name, gain=gain)
    (search,) = pick(FindHarmful, s.aggregated(gain=-1.0))
    assert [s.record(one).lease.worker for one in search.suspects] == ["c", "d", "b", "a"]


def test_where_most_harm_nobody_is_blamed_and_the_step_is_shortened(swarm, pick):
    s = aggregating(swarm, outer_learning_rate=0.8)
    s.aggregated(gain=-1.0)
    commands = s.harm_found("r1.1", "r1.2", "r1.3", "r1.4")
    assert not pick(AnnounceVerdict, commands)
    (short,) = pick(AggregateRound, commands)
    assert (short.remedy, len(short.contributions)) == (Remedy.SHORT, 4)
    assert (short.step_share, short.outer_learning_rate) == (0.25, 0.8)
    s.aggregated()
    assert (s.engine.state.version, s.engine.state.withheld_in_row) == (1, 1)
    assert all(not worker.rejected for worker in s.engine.state.workers.values())


def test_one_that_is_trusted_stands_against_two_who_harm(swarm, pick):
    s = aggregating(swarm, names=("a", "b", "c"), trusted=("a",))
    s.aggregated(gain=-1.0)
    (again,) = pick(AggregateRound, s.harm_found("r1.2", "r1.3"))
    assert (again.remedy, [one.lease_id for one in again.contributions]) == (Remedy.WITHOUT_HARMFUL, ["r1.1"])


def test_what_leaving_out_does_not_mend_is_made_of_the_vouched_for(swarm, pick):
    s = aggregating(swarm, trusted=("a",))
    record = s.engine.state.leases[LeaseId("r1.2")]
    audit = AuditResult(auditor="", trunk=0.0, columns=0.0, passed=True)
    s.engine.state.update_lease(record.lease.lease_id, audits=(audit,))
    s.aggregated(gain=-1.0)
    s.harm_found("r1.4")
    commands = s.aggregated(gain=-1.0)
    (vouched,) = pick(AggregateRound, commands)
    assert (vouched.remedy, [one.lease_id for one in vouched.contributions]) == (Remedy.VOUCHED, ["r1.1", "r1.2"])
    assert [one.verdict.key for one in pick(AnnounceVerdict, commands)] == ["unusable"]
    (short,) = pick(AggregateRound, s.aggregated(gain=-1.0))
    assert (short.remedy, len(short.contributions)) == (Remedy.SHORT, 2)
    s.aggregated(gain=-1.0)
    (row,) = s.engine.state.history
    assert (row.version, len(row.withheld), len(row.left_out)) == (None, 4, 4)
    assert row.close_reason.startswith("round 1 publishes nothing")
    assert (s.round, s.engine.state.version) == (2, 0)


def test_after_three_such_rounds_nobody_is_looked_for_and_it_is_told(swarm, pick):
    s = aggregating(swarm, max_rounds=9)
    for number in (1, 2, 3):
        s.aggregated(gain=-1.0)
        s.harm_found()
        s.aggregated(gain=-1.0)
        assert s.engine.state.withheld_in_row == number
        play(s)
    (short,) = pick(AggregateRound, s.aggregated(gain=-1.0))
    assert short.remedy is Remedy.SHORT
    assert short.step_share == pytest.approx(1 / 64)
    s.aggregated()
    play(s)
    s.aggregated()
    assert s.engine.state.withheld_in_row == 0, "a round that is published whole ends it"


def test_who_is_left_out_is_audited_on_the_bytes_that_it_sent(swarm, pick):
    s = aggregating(swarm, names=("a", "b", "c", "d"), trusted=NAMES, audits=never_by_chance(1.0))
    s.aggregated(gain=-1.0)
    s.harm_found("r1.2")
    assert [record.audit_due for record in map(s.record, ("r1.1", "r1.2"))] == [False, True]
    s.aggregated()
    replay = s.waiting_for(ReplayLease)
    assert replay.lease.lease_id == "r1.2"
    assert replay.digest not in {one.digest for one in pick(DropPayload, s.log)}
    s.answer(replay, 0.5)
    s.ask(*NAMES)
    assert [one.lease_id for one in s.engine.state.accusations] == ["r1.2"]


def test_who_is_left_out_is_audited_once_and_only_where_the_budget_reaches(swarm):
    s = aggregating(swarm, names=("a", "b", "c", "d"), trusted=NAMES, audits=never_by_chance(0.5))
    answered = AuditResult(auditor="", trunk=0.0, columns=0.0, passed=True)
    s.engine.state.update_lease(LeaseId("r1.1"), audits=(answered,))
    s.aggregated(gain=-1.0)
    s.harm_found("r1.1", "r1.2")
    due = {number: s.record(f"r1.{number}") for number in range(1, 5)}
    assert [number for number, record in due.items() if record.audit_due] == [2]
    assert not due[2].audit_unpaid


def test_a_search_that_fails_as_often_finds_nobody(swarm):
    s = aggregating(swarm)
    s.aggregated(gain=-1.0)
    for _ in range(3):
        s.failed("harm:r1", "0 / 0", CONTENT)
    assert s.waiting_for(AggregateRound).remedy is Remedy.SHORT


def test_a_stopped_run_whose_last_version_is_withheld_ends(swarm):
    s = aggregating(swarm)
    s.stop()
    s.aggregated(gain=-1.0)
    s.harm_found()
    s.aggregated(gain=-1.0)
    assert s.phase is Phase.FINISHING
    assert s.engine.state.version == 0


def test_results_that_do_not_answer_the_question_are_illegal(swarm):
    s = aggregating(swarm)
    command = s.waiting_for(AggregateRound)
    unasked = ev.RoundAggregated(
        at_s=s.now_s, command_id=command.command_id, round=command.round, version=command.version,
        parent_version=command.parent_version, manifest=s.digest("v1"), update_norm_l2=1.0,
    )  # fmt: skip
    with pytest.raises(IllegalEvent, match="compares with"):
        s.handle(unasked)
    s.aggregated(gain=-1.0)
    found = ev.HarmfulFound(
        at_s=s.now_s, command_id="harm:r1", round=RoundNumber(1), harmful=(), suspected=(), passes=1
    )
    for changes in ({"harmful": (LeaseId("r9.9"),)}, {"round": RoundNumber(2)}, {"suspected": (LeaseId("r1.1"),) * 2}):
        with pytest.raises(IllegalEvent, match="is about"):
            s.handle(replace(found, **changes))


@pytest.mark.parametrize("off", [{"region": TrustRegionConfig(enabled=False)}, {"screening": False}])
def test_switched_off_nothing_is_compared(swarm, off):
    if "screening" in off:
        off = {"screening": replace(swarm().config.screening, enabled=False)}
    s = aggregating(swarm, **off)
    assert s.waiting_for(AggregateRound).compared_with == ()


@pytest.mark.parametrize("wrong", [{"window": 0}, {"passes": 0}, {"margin": -1.0}, {"tolerance": -0.1}])
def test_settings_that_make_no_sense_are_refused(swarm, wrong):
    config = replace(swarm().config, region=replace(TrustRegionConfig(), **wrong))
    with pytest.raises(ConfigError, match="region"):
        check_config(config)


# ---- fewer than three people on a block


def test_two_alone_count_where_nobody_could_vouch_and_it_is_told(swarm):
    s = aggregating(swarm, names=("a", "b"))
    assert all(not one.unheard for one in s.waiting_for(AggregateRound).contributions)
    s.aggregated()
    assert s.engine.state.history[0].thin == 5


def test_machines_of_one_owner_are_one_person(swarm):
    s = swarm()
    for name in ("a", "b", "c"):
        s.enrol(name, owner="ann", columns=1)
    s.enrol("t", trusted=True)
    play(s, ("a", "b", "c", "t"))
    heard = s.waiting_for(AggregateRound).contributions
    assert [s.record(one.lease_id).lease.worker for one in heard] == ["t"]


def test_beside_somebody_trusted_two_people_are_too_few_for_a_strangers_word(swarm, pick):
    s = aggregating(swarm, names=("a", "b"), trusted=("a",))
    (one,) = s.waiting_for(AggregateRound).contributions
    assert s.record(one.lease_id).lease.worker == "a"
    assert told(s.record("r1.2").ended).startswith("fewer than three independent people")
    assert s.record("r1.2").counted_in == 1
    three = aggregating(swarm, names=("a", "b", "c"), trusted=("a",))
    assert len(three.waiting_for(AggregateRound).contributions) == 3


@pytest.mark.parametrize(
    ("audits", "told"),
    [
        (AuditConfig(), True),
        (AuditConfig(budget=1.0), False),
        (AuditConfig(budget=1.0, by_coordinator=False), True),
    ],
)
def test_an_open_run_that_nobody_vouches_in_says_so_until_a_founder_is_there(swarm, audits, told):
    s = swarm(open_run=True, audits=audits)
    s.enrol("a")
    assert any("nobody vouches" in one for one in cautions(s.engine.state)) is told
    s.enrol("f", trusted=True)
    assert cautions(s.engine.state) == ()


@pytest.mark.parametrize("changes", [{"open_run": True}, {"audits": AuditConfig(budget=1.0)}])
def test_whose_word_nobody_vouches_for_moves_nothing(swarm, changes):
    s = swarm(**changes)
    s.join("a", "b")
    s.at(10).submit("a", "b")
    s.answer_audits(error="no machine for it")
    (row,) = s.engine.state.history
    assert row.version is None
    assert row.close_reason.startswith("fewer than three independent people")
    assert s.round == 2


def test_an_audited_submission_counts_on_thin_blocks(swarm):
    s = swarm(audits=AuditConfig(budget=9.0))
    s.join("a", "b")
    s.at(10).submit("a", "b")
    s.audited("r1.1")
    s.answer_audits(error="no machine for it")
    (one,) = s.waiting_for(AggregateRound).contributions
    assert one.lease_id == "r1.1"
    assert s.engine.state.workers[WorkerId("b")].rejected == {}
