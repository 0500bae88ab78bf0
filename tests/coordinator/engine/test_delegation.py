"""Gains that trusted workers measure: on what, for whom, and what becomes of their word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coordinator.engine import events as ev
from coordinator.engine import measuring
from coordinator.engine.answers import GainAnswer
from coordinator.engine.commands import Command, MeasureSubmission
from coordinator.engine.config import ScreeningConfig, check_config
from coordinator.engine.delegation_config import DelegationConfig
from coordinator.engine.phases import LeaseStatus, Phase
from coordinator.engine.reasons import HELDOUT_LOSS_ROSE, NORM_TOO_LARGE
from protocol.errors import ConfigError, IllegalEvent
from protocol.ids import WorkerId

ROWS = 8


def said(name: str) -> GainAnswer:
    return GainAnswer(worker=WorkerId(name), before=(5.0,) * ROWS, after=(4.9,) * 2 * ROWS)


@pytest.fixture
def crew(swarm: Any) -> Any:
    """Four who train, and two founders, of different owners, who offer to measure."""
    s = swarm(
        replicas=8, quorum=4, min_workers=4, max_rounds=4,
        delegation=DelegationConfig(sequences=ROWS, checked_share=1.0),
        screening=ScreeningConfig(own_data_share=0.0),
    )  # fmt: skip
    for name in ("anna", "ben"):
        s.handle(
            ev.WorkerEnrolled(
                at_s=s.now_s, worker=WorkerId(name), name=name, trusted=True, max_columns=0, tokens_per_s=0.0,
                measures=True,
            )
        )  # fmt: skip
    s.join("kim", "lee", "mia", "noa")
    return s


def asked(s: Any, name: str) -> MeasureSubmission:
    command = s.engine.state.pending[f"measure:{s.lease(name).lease_id}"]
    assert isinstance(command, MeasureSubmission)
    return command


def measured(
    s: Any, name: str, *, gain: float = 0.05, by: str | None = None, answers: tuple[str, ...] = (),
    false: tuple[str, ...] = (), again: bool = False, norm: float = 1.0,
) -> list[Command]:  # fmt: skip
    lease = s.lease(name)
    return s.handle(
        ev.SubmissionMeasured(
            at_s=s.now_s, command_id=f"{'again' if again else 'measure'}:{lease.lease_id}", lease_id=lease.lease_id,
            malformed="", norms=tuple(ev.BlockNorm(block=b, norm_l2=norm, base_l2=10.0) for b in lease.blocks),
            heldout_gain=gain, measured_by=WorkerId(by) if by else None, answers=tuple(map(said, answers)),
            false=tuple(map(WorkerId, false)),
        )
    )  # fmt: skip


def status(s: Any, name: str) -> LeaseStatus:
    return s.leases(name)[-1].status


def test_without_anybody_who_offers_everything_is_measured_here_by_the_secret_draw(swarm: Any) -> None:
    s = swarm()
    s.join("kim")
    s.send("kim")
    command = asked(s, "kim")
    assert command.rows is None
    assert not command.delegate


def test_what_others_measure_on_is_named_by_no_lease(crew: Any) -> None:
    crew.send("kim")
    rows = asked(crew, "kim").rows
    assert rows is not None
    assert asked(crew, "kim").delegate
    assert asked(crew, "kim").check
    ends = [record.lease.data.start + record.lease.data.count for record in crew.engine.state.leases.values()]
    assert rows.start == max(ends)
    assert crew.engine.state.next_sequence == rows.start + rows.count == rows.start + ROWS


def test_who_commits_after_others_were_given_sequences_is_measured_on_different_ones(crew: Any) -> None:
    crew.commit("kim")
    crew.commit("lee")
    crew.after(1.0)
    crew.upload("kim")
    crew.after(1.0)
    crew.upload("lee")
    crew.commit("mia")
    crew.upload("mia")
    first, second, third = (asked(crew, name).rows for name in ("kim", "lee", "mia"))
    assert first == second, "committed before anybody had them: their gains can be compared"
    assert third is not None
    assert first is not None
    assert third.start >= first.start + first.count


def test_in_a_later_epoch_nothing_is_delegated(crew: Any) -> None:
    crew.engine.state.data_epoch = 1
    crew.send("kim")
    assert asked(crew, "kim").rows is None


def test_nobody_of_the_submissions_own_person_measures_it(swarm: Any) -> None:
    s = swarm(delegation=DelegationConfig(sequences=ROWS))
    s.handle(
        ev.WorkerEnrolled(
            at_s=0.0, worker=WorkerId("anna"), name="anna", trusted=True, max_columns=0, tokens_per_s=0.0,
            owner="one", measures=True,
        )
    )  # fmt: skip
    s.join("kim", owner="one")
    s.send("kim")
    assert asked(s, "kim").rows is None
    state = s.engine.state
    assert measuring.measurers(state, "owner one") == []
    assert [record.worker for record in measuring.measurers(state, "kim")] == ["anna"]


def test_a_workers_word_accepts_and_never_refuses(crew: Any) -> None:
    crew.send("kim", "lee")
    measured(crew, "kim", by="anna", answers=("anna", "ben"))
    assert status(crew, "kim") is LeaseStatus.ACCEPTED
    assert crew.leases("kim")[-1].measured_by == "anna"

    measured(crew, "lee", gain=-3.0, by="anna", answers=("anna", "ben"))
    assert status(crew, "lee") is LeaseStatus.UPLOADED
    again = asked(crew, "lee")
    assert not again.delegate
    assert again.rows == asked(crew, "lee").rows
    assert [answer.worker for answer in again.answers] == ["anna", "ben"]
    measured(crew, "lee", gain=0.04, answers=("anna", "ben"), false=("anna", "ben"))
    assert status(crew, "lee") is LeaseStatus.ACCEPTED
    state = crew.engine.state
    assert not state.workers[WorkerId("anna")].trusted
    assert state.workers[WorkerId("ben")].false_accusations == 1
    assert (state.totals.gains_delegated, state.totals.gains_checked, state.totals.gains_false) == (1, 3, 2)


def test_what_is_refused_for_its_norms_needs_nobodys_word(crew: Any) -> None:
    crew.send("kim")
    measured(crew, "kim", norm=1000.0, by="anna", answers=("anna",))
    assert status(crew, "kim") is LeaseStatus.REJECTED
    assert crew.leases("kim")[-1].verdict.key == NORM_TOO_LARGE


def test_a_liars_results_are_measured_again_before_the_round_closes(crew: Any) -> None:
    crew.send("kim", "lee", "mia", "noa")
    for name in ("kim", "lee"):
        measured(crew, name, by="anna", answers=("anna", "ben"))
    measured(crew, "mia", by="ben", answers=("ben", "anna"))
    measured(crew, "noa", answers=("anna",), false=("anna",))
    pending = set(crew.engine.state.pending)
    told = [wait.reason for wait in crew.engine.explain()]
    assert any(f"measuring lease {crew.lease('kim').lease_id} again" in reason for reason in told), "and says so"
    expected = {f"again:{crew.lease(name).lease_id}" for name in ("kim", "lee")}
    assert expected == {command_id for command_id in pending if command_id.startswith("again:")}, "and not ben's"
    assert crew.phase is not Phase.AGGREGATING
    measured(crew, "kim", gain=-3.0, again=True)
    assert crew.phase is not Phase.AGGREGATING
    measured(crew, "lee", gain=0.05, again=True)
    assert status(crew, "kim") is LeaseStatus.REJECTED
    assert crew.leases("kim")[-1].verdict.key == HELDOUT_LOSS_ROSE
    assert crew.leases("lee")[-1].measured_by is None
    crew.after(5.0)
    counted = {one.worker for one in crew.contributions()}
    assert counted == {"lee", "mia", "noa"}


def test_what_the_second_look_would_refuse_on_a_workers_word_is_measured_here_first(crew: Any) -> None:
    crew.send("kim", "lee", "mia", "noa")
    for name, gain in (("kim", 0.001), ("lee", 0.3), ("mia", 0.3)):
        measured(crew, name, gain=gain, by="anna", answers=("anna", "ben"))
    measured(crew, "noa", gain=0.3, by="ben", answers=("ben", "anna"))
    crew.after(5.0)
    assert status(crew, "kim") is LeaseStatus.ACCEPTED
    assert crew.phase is not Phase.AGGREGATING
    measured(crew, "kim", gain=0.31, again=True)
    crew.after(5.0)
    assert crew.phase is Phase.AGGREGATING
    assert "kim" in {one.worker for one in crew.contributions()}


def test_the_word_of_whoever_lost_its_trust_meanwhile_is_worth_nothing(crew: Any) -> None:
    crew.send("kim", "lee")
    measured(crew, "kim", answers=("anna",), false=("anna",))
    measured(crew, "lee", by="anna", answers=("anna",))
    assert status(crew, "lee") is LeaseStatus.UPLOADED
    assert not asked(crew, "lee").delegate


def test_figures_that_nobody_asked_a_worker_for_are_illegal(crew: Any) -> None:
    crew.send("kim")
    with pytest.raises(IllegalEvent, match="was not for"):
        measured(crew, "kim", by="anna", answers=("ben",))
    with pytest.raises(IllegalEvent, match="was not for"):
        measured(crew, "kim", false=("anna",))
    measured(crew, "kim", gain=-3.0, by="anna", answers=("anna",))
    with pytest.raises(IllegalEvent, match="was not for"):
        measured(crew, "kim", by="anna", answers=("anna",))  # by now it is the coordinator's to measure


def test_what_cannot_be_measured_again_counts_nowhere(crew: Any) -> None:
    crew.send("kim", "lee", "mia", "noa")
    measured(crew, "kim", by="anna", answers=("anna", "ben"))
    measured(crew, "lee", answers=("anna",), false=("anna",))
    for _ in range(3):
        crew.failed(f"again:{crew.lease('kim').lease_id}")
    assert status(crew, "kim") is LeaseStatus.REJECTED


def test_a_journal_with_workers_answers_gives_the_same_state(crew: Any) -> None:
    crew.send("kim", "lee")
    measured(crew, "kim", by="anna", answers=("anna", "ben"))
    measured(crew, "lee", gain=-3.0, by="ben", answers=("ben",))
    assert crew.replayed().snapshot() == crew.engine.snapshot()


@pytest.mark.parametrize(
    ("name", "value"), [("sequences", 4), ("checked_share", 0.0), ("wait_s", 0.0), ("tolerance", 0.0)]
)
def test_settings_that_make_no_sense_are_refused(swarm: Any, name: str, value: Any) -> None:
    config = replace(swarm().config, delegation=replace(DelegationConfig(), **{name: value}))
    with pytest.raises(ConfigError, match=f"delegation.{name}"):
        check_config(config)
