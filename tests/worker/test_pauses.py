"""A policy that wants no work now: nothing new is begun, what is in training is finished, work goes on afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.worker.test_session import (
    AT,
    Driver,
    committing,
    fetching,
    held_up,
    idle,
    make_lease,
    opening,
    paused,
    resuming,
    training,
    uploading,
)
from worker import messages as m
from worker.policy import Always, Circumstances, Permission
from worker.sending import Line
from worker.states import State

PAUSE = m.Paused(reason="on battery")
STOP = m.Paused(reason="on battery", stops_training=True)


def kinds(driver: Driver) -> list[type[m.SessionCommand]]:
    return [type(command) for command in driver.commands]


def test_a_pause_gives_up_the_long_poll_and_its_answer_is_old_news() -> None:
    driver = idle()
    ticket = driver.session._ticket
    driver.feed(PAUSE)
    assert kinds(driver) == [m.Tell, m.CancelCall]
    assert driver.session.state is State.PAUSED
    assert driver.feed(m.LeaseGranted(ticket=ticket, lease=make_lease())) == []
    assert driver.session.lease_id is None


def test_work_is_asked_for_again_afterwards() -> None:
    driver = paused()
    driver.feed(m.Resumed())
    assert driver.the(m.AcquireLease).may_wait
    assert driver.session.state is State.IDLE
    assert driver.feed(m.Resumed()) == []


def test_a_lease_that_is_being_fetched_goes_back() -> None:
    driver = fetching()
    driver.feed(PAUSE)
    assert driver.the(m.ReturnLease).lease_id == "r1.1"
    assert driver.the(m.ReturnLease).reason == "the volunteer's machine is to pause", "why is nobody else's business"
    driver.reply(m.Returned)
    assert (driver.session.state, kinds(driver)) == (State.PAUSED, [m.CancelCall])


def test_a_lease_in_training_is_finished_and_sent_and_nothing_follows() -> None:
    driver = training()
    driver.feed(PAUSE)
    assert kinds(driver) == [m.Tell]
    driver.feed(m.Trained(training=1))
    driver.reply(m.Committed, offset=0, settled=False)
    assert kinds(driver) == [m.UploadSubmission, m.CancelCall]
    assert driver.session.state is State.PAUSED
    driver.line(m.Uploaded)
    assert kinds(driver) == [m.DropSubmission]


def suspended() -> Driver:
    driver = training()
    driver.feed(STOP)
    return driver


@pytest.mark.parametrize("make", [training, resuming])
def test_a_policy_may_stop_what_is_in_training_and_the_lease_waits(make: Callable[[], Driver]) -> None:
    driver = make()
    driver.feed(STOP)
    assert kinds(driver) == [m.Tell, m.StopTraining, m.CancelCall]
    assert driver.the(m.Tell).suspends
    assert (driver.session.state, driver.session.is_training) == (State.PAUSED, False)
    assert driver.session.lease_id == "r1.1", "heartbeats speak for it"
    driver.feed(m.Resumed())
    assert driver.the(m.FetchShard).lease.lease_id == "r1.1"
    driver.reply(m.Fetched)
    assert driver.the(m.StartTraining).training == 2


def test_a_lease_that_cannot_be_done_in_time_any_more_goes_back() -> None:
    driver = suspended()
    driver.feed(m.OutOfTime(reason="the pause is too long"))
    assert kinds(driver) == [m.Tell, m.ReturnLease]
    assert driver.the(m.ReturnLease).reason == "the pause is too long"
    driver.reply(m.Returned)
    assert (driver.session.state, driver.session.lease_id) == (State.PAUSED, None)
    assert driver.feed(m.OutOfTime(reason="again")) == []
    driver.feed(m.Resumed())
    driver.the(m.AcquireLease)


def test_a_lease_that_the_coordinator_ends_meanwhile_is_gone() -> None:
    driver = suspended()
    driver.feed(m.LeaseCancelled(lease_id=make_lease().lease_id, reason="expired"))
    assert (driver.session.state, driver.session.lease_id) == (State.PAUSED, None)
    driver.feed(m.Resumed())
    driver.the(m.AcquireLease)


def test_a_lease_that_waits_survives_a_lost_session_and_goes_back_when_the_volunteer_leaves() -> None:
    driver = suspended()
    driver.feed(m.SessionLost(session=1, reason="restart"))
    driver.reply(m.Opened)
    assert (driver.session.state, driver.session.lease_id) == (State.PAUSED, "r1.1")
    driver.feed(m.LeaveRequested(reason="SIGTERM"))
    assert driver.the(m.ReturnLease).lease_id == "r1.1"
    driver.reply(m.Returned)
    assert driver.the(m.Finish).exit_code == 0


def test_a_gentle_pause_that_becomes_a_strict_one_stops_what_is_in_training() -> None:
    driver = training()
    driver.feed(PAUSE)
    driver.feed(STOP)
    assert kinds(driver) == [m.Tell, m.StopTraining, m.CancelCall]


def test_a_lease_that_the_rules_do_not_accept_goes_back_and_the_next_is_not_asked_for_at_once() -> None:
    driver = idle()
    driver.reply(m.LeaseGranted, lease=make_lease(), unwanted="it lasts 30 h")
    assert driver.the(m.Tell).reason == driver.the(m.ReturnLease).reason == "it lasts 30 h"
    driver.reply(m.Returned)
    assert driver.the(m.AcquireLease).after_s == 120.0
    driver.reply(m.ToldToWait, reason="no", retry_after_s=1.0)
    assert driver.the(m.AcquireLease).after_s == 1.0


def test_a_resumed_session_that_is_given_another_lease_gives_it_back() -> None:
    driver = resuming()
    driver.feed(PAUSE)
    driver.reply(m.LeaseGranted, lease=make_lease("r2.1"))
    assert kinds(driver) == [m.StopTraining, m.ReturnLease]
    assert driver.the(m.ReturnLease).lease_id == "r2.1"


@pytest.mark.parametrize("make", [committing, held_up])
def test_finished_work_is_sent_all_the_same(make: Callable[[], Driver]) -> None:
    driver = make()
    state = driver.session.state
    driver.feed(STOP)
    assert kinds(driver) == [m.Tell]
    assert driver.session.state is state
    assert driver.session.has_unsent


def test_what_is_being_sent_goes_on_while_nothing_new_is_asked_for() -> None:
    driver = uploading()
    driver.feed(PAUSE)
    assert kinds(driver) == [m.Tell, m.CancelCall]
    assert driver.the(m.CancelCall).lane is m.Lane.WORK
    assert driver.session.line.state is Line.SENDING


def test_a_session_is_opened_and_opened_again_while_paused() -> None:
    driver = opening()
    driver.feed(PAUSE)
    driver.reply(m.Opened)
    assert driver.session.state is State.PAUSED
    driver.feed(m.SessionLost(session=1, reason="restart"))
    driver.reply(m.Opened)
    assert driver.session.state is State.PAUSED
    driver.feed(m.Resumed())
    assert driver.session.state is State.IDLE


@pytest.mark.parametrize("state", [state for state in State if state is not State.OVER], ids=lambda state: state.value)
def test_a_pause_is_told_once_and_its_end_too(state: State) -> None:
    driver = AT[state]()
    was_paused = state is State.PAUSED
    told = [command for event in (PAUSE, PAUSE) for command in driver.feed(event) if isinstance(command, m.Tell)]
    assert len(told) == (0 if was_paused else 1)
    told = [command for event in (m.Resumed(),) * 2 for command in driver.feed(event) if isinstance(command, m.Tell)]
    assert len(told) == 1


def test_the_answer_to_a_call_that_a_pause_overtook_is_old_news() -> None:
    """The simulation found it: a cancelled lease made the worker rest while its return was still on its way."""
    driver = fetching()
    driver.feed(PAUSE)
    ticket = driver.session._ticket
    driver.feed(m.LeaseCancelled(lease_id=make_lease().lease_id, reason="expired"))
    assert driver.session.state is State.PAUSED
    assert driver.feed(m.Returned(ticket=ticket)) == []


def test_leaving_while_paused_holds_nobody_up() -> None:
    driver = paused()
    driver.feed(m.LeaveRequested(reason="SIGTERM"))
    assert driver.the(m.Finish).exit_code == 0


def test_todays_policy_always_says_yes() -> None:
    assert Always().may_work(Circumstances(wall_s=0.0, idle_s=0.0, on_battery=True)) == Permission(allowed=True)
    assert Always().look_again_s is None


async def test_an_agent_asks_its_policy_and_pauses(swarm: Any) -> None:
    class Moody:
        look_again_s = 0.01
        allowed = False

        def may_work(self, now: Circumstances) -> Permission:
            assert now.wall_s > 0.0
            return Permission(allowed=self.allowed, reason="it is the evening")

    moody = Moody()
    agent, recorder, task = swarm.agent(policy=moody)
    await recorder.saw("session_opened")
    assert "it is the evening" in await recorder.saw("note")
    assert recorder.texts("lease_granted") == []
    moody.allowed = True
    assert (await task).exit_code == 0
    assert len(recorder.texts("submission_accepted")) == 1
    assert agent.state is State.OVER
