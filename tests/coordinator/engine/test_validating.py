"""Versions that trusted workers validate: which, and what becomes of their word."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coordinator.engine import events as ev
from coordinator.engine.answers import GainAnswer
from coordinator.engine.commands import AggregateRound, Command, ValidateVersion
from coordinator.engine.config import ScreeningConfig
from coordinator.engine.delegation_config import DelegationConfig
from coordinator.engine.phases import Phase
from protocol.errors import IllegalEvent
from protocol.ids import Version, WorkerId

NAMES = ("kim", "lee", "mia")


def said(name: str, loss: float = 3.0) -> GainAnswer:
    return GainAnswer(worker=WorkerId(name), before=(loss,) * 4, after=())


@pytest.fixture
def crew(swarm: Any) -> Any:
    """Three who train, and two founders, of different owners, who offer to measure."""
    s = swarm(
        replicas=8, quorum=3, min_workers=3, max_rounds=4,
        delegation=DelegationConfig(checked_share=1.0), screening=ScreeningConfig(own_data_share=0.0),
    )  # fmt: skip
    for name in ("anna", "ben"):
        s.handle(
            ev.WorkerEnrolled(
                at_s=s.now_s, worker=WorkerId(name), name=name, trusted=True, max_columns=0, tokens_per_s=0.0,
                measures=True,
            )
        )  # fmt: skip
    validated(s, 0)
    s.join(*NAMES)
    return s


def play(s: Any) -> None:
    """A round, to its version."""
    s.ask(*(name for name in NAMES if s.engine.state.round.round > 1))
    s.after(10).beat("anna", "ben")
    s.submit(*NAMES)
    s.aggregated()


def asked(s: Any, version: int) -> ValidateVersion:
    command = s.engine.state.pending[f"validate:v{version}"]
    assert isinstance(command, ValidateVersion)
    return command


def validated(
    s: Any, version: int, *, loss: float = 3.0, by: str | None = None, answers: tuple[GainAnswer, ...] = (),
    false: tuple[str, ...] = (),
) -> list[Command]:  # fmt: skip
    found: list[Command] = s.handle(
        ev.VersionValidated(
            at_s=s.now_s, command_id=f"validate:v{version}", version=Version(version), val_loss=loss, val_loss_se=0.01,
            measured_by=WorkerId(by) if by else None, answers=answers, false=tuple(map(WorkerId, false)),
        )
    )  # fmt: skip
    return found


def losses(s: Any) -> dict[int, float]:
    return {one.version: one.val_loss for one in s.engine.state.validations}


def test_a_published_version_is_for_trusted_workers_to_validate(crew: Any) -> None:
    play(crew)
    command = asked(crew, 1)
    assert (command.delegate, command.check, command.answers) == (True, True, ())
    assert command.tolerance == crew.config.delegation.tolerance
    validated(crew, 1, loss=2.5, by="anna", answers=(said("anna", 2.5), said("ben", 2.5)))
    assert losses(crew) == {0: 3.0, 1: 2.5}
    assert crew.engine.state.validations[-1].measured_by == "anna"
    assert crew.engine.state.history[-1].val_loss == 2.5
    assert crew.replayed().snapshot() == crew.engine.snapshot()


@pytest.mark.parametrize("why", ["nobody offers", "switched off", "the last round", "stopped"])
def test_otherwise_it_is_validated_here(crew: Any, why: str) -> None:
    state = crew.engine.state
    if why == "nobody offers":
        for name in ("anna", "ben"):
            state.update_worker(WorkerId(name), measures=False)
    if why == "switched off":
        state.config = replace(state.config, delegation=replace(state.config.delegation, enabled=False))
    if why == "the last round":
        state.config = replace(state.config, max_rounds=1)
    crew.after(10).submit(*NAMES)
    if why == "stopped":
        assert crew.waiting_for(AggregateRound)
        crew.stop()
    crew.aggregated()
    assert not asked(crew, 1).delegate


def test_versions_are_told_in_their_order_whichever_was_validated_first(crew: Any) -> None:
    play(crew)
    play(crew)
    validated(crew, 2)
    validated(crew, 1)
    assert list(losses(crew)) == [0, 1, 2]


def test_a_liars_figures_are_struck_out_and_the_present_versions_is_measured_here(crew: Any) -> None:
    for version in (1, 2):
        play(crew)
        validated(crew, version, loss=1.0, by="anna", answers=(said("anna", 1.0),))
    crew.ask(*NAMES)
    crew.after(10).beat("anna", "ben")
    crew.commit("kim")
    crew.upload("kim")
    crew.handle(
        ev.SubmissionMeasured(
            at_s=crew.now_s, command_id=f"measure:{crew.lease('kim').lease_id}", lease_id=crew.lease("kim").lease_id,
            malformed="", norms=tuple(ev.BlockNorm(block=b, norm_l2=1.0) for b in crew.lease("kim").blocks),
            heldout_gain=0.05, answers=(said("anna"),), false=(WorkerId("anna"),),
        )
    )  # fmt: skip
    assert losses(crew) == {0: 3.0}
    assert [row.val_loss for row in crew.engine.state.history] == [None, None]
    assert set(crew.engine.state.pending) & {"validate:v1", "validate:v2"} == {"validate:v2"}
    assert not asked(crew, 2).delegate
    validated(crew, 2, loss=2.0)
    assert losses(crew) == {0: 3.0, 2: 2.0}


def test_who_lies_of_a_version_is_trusted_no_more_and_what_is_measured_here_counts(crew: Any) -> None:
    play(crew)
    crew.engine.state.put_pending(replace(asked(crew, 1), delegate=False, answers=(said("anna", 1.0), said("ben"))))
    validated(crew, 1, loss=3.0, answers=(said("anna", 1.0), said("ben")), false=("anna",))
    assert losses(crew)[1] == 3.0
    assert not crew.engine.state.workers[WorkerId("anna")].trusted
    assert crew.engine.state.workers[WorkerId("ben")].trusted
    assert "validate:v1" not in crew.engine.state.pending


def test_the_word_of_whoever_lost_its_trust_meanwhile_is_held_against_the_coordinators(crew: Any) -> None:
    play(crew)
    crew.engine.state.update_worker(WorkerId("anna"), trusted=False)
    validated(crew, 1, loss=1.0, by="anna", answers=(said("anna", 1.0),))
    assert 1 not in losses(crew)
    assert (asked(crew, 1).delegate, asked(crew, 1).answers) == (False, (said("anna", 1.0),))


def test_figures_that_nobody_asked_a_worker_for_are_illegal(crew: Any) -> None:
    play(crew)
    with pytest.raises(IllegalEvent, match="was not for"):
        validated(crew, 1, by="anna", answers=(said("ben"),))
    crew.engine.state.put_pending(replace(asked(crew, 1), delegate=False))
    with pytest.raises(IllegalEvent, match="was not for"):
        validated(crew, 1, by="anna", answers=(said("anna"),))


def test_at_the_end_nobody_is_waited_for(crew: Any) -> None:
    play(crew)
    assert asked(crew, 1).delegate
    crew.stop()
    assert crew.phase is Phase.FINISHING
    assert not asked(crew, 1).delegate
