"""The session driven without any I/O: every state, every event in every state, and the stories in between."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from typing import TypeVar

import pytest

from protocol.errors import IllegalEvent
from protocol.ids import LeaseId
from tests.worker.leases import lease_message, read_lease
from worker import messages as m
from worker.lease import ReceivedLease
from worker.messages import EXIT_FAILED, EXIT_OK, EXIT_REFUSED
from worker.moves import MAX_FAILURES
from worker.pauses import Pauses
from worker.sending import ANSWERS, Line
from worker.session import EVENTS, Session
from worker.states import LEGAL_MOVES, State


def make_lease(lease_id: str = "r1.1") -> ReceivedLease:
    return read_lease(lease_message(lease_id=lease_id))


Kind = TypeVar("Kind", bound=m.SessionCommand)


class Driver:
    """Feeds a session and remembers its commands."""

    def __init__(self) -> None:
        self.session = Session()
        self.commands: list[m.SessionCommand] = []

    def feed(self, event: m.SessionEvent) -> list[m.SessionCommand]:
        self.commands = self.session.handle(event)
        return self.commands

    def reply(self, kind: type[m.Reply], **fields: object) -> list[m.SessionCommand]:
        return self.feed(kind(ticket=self.session._live, **fields))

    def line(self, kind: type[m.Reply], **fields: object) -> list[m.SessionCommand]:
        assert self.session.line.ticket > 0
        return self.feed(kind(ticket=self.session.line.ticket, **fields))

    def the(self, kind: type[Kind]) -> Kind:
        found = [command for command in self.commands if isinstance(command, kind)]
        assert len(found) == 1, self.commands
        return found[0]


def disconnected() -> Driver:
    return Driver()


def enrolling() -> Driver:
    driver = Driver()
    driver.feed(m.Started(enrolled=False))
    return driver


def opening() -> Driver:
    driver = enrolling()
    driver.reply(m.Enrolled)
    return driver


def idle() -> Driver:
    driver = opening()
    driver.reply(m.Opened)
    return driver


def paused() -> Driver:
    driver = idle()
    driver.feed(m.Paused(reason="on battery"))
    return driver


def fetching() -> Driver:
    driver = idle()
    driver.reply(m.LeaseGranted, lease=make_lease())
    return driver


def training() -> Driver:
    driver = fetching()
    driver.reply(m.Fetched)
    return driver


def resuming() -> Driver:
    driver = training()
    driver.feed(m.SessionLost(session=1, reason="restart"))
    driver.reply(m.Opened)
    return driver


def committing() -> Driver:
    driver = training()
    driver.feed(m.Trained(training=1))
    return driver


def uploading() -> Driver:
    """Sends what was trained, and asks for the next lease beside it."""
    driver = committing()
    driver.reply(m.Committed, offset=0, settled=False)
    return driver


def training_beside(lease_id: str = "r2.1") -> Driver:
    """Sends r1.1, and trains another."""
    driver = uploading()
    driver.reply(m.LeaseGranted, lease=make_lease(lease_id))
    driver.reply(m.Fetched)
    return driver


def held_up() -> Driver:
    """Sends r1.1, and has trained and committed to r2.1."""
    driver = training_beside()
    driver.feed(m.Trained(training=2))
    driver.reply(m.Committed, offset=5, settled=False)
    return driver


def returning() -> Driver:
    driver = training()
    driver.feed(m.TrainingFailed(training=1, reason="out of memory"))
    return driver


def leaving() -> Driver:
    driver = training()
    driver.feed(m.LeaveRequested(reason="SIGTERM"))
    return driver


def over() -> Driver:
    driver = idle()
    driver.reply(m.RunEnded, reason="done")
    return driver


AT: dict[State, Callable[[], Driver]] = {
    State.DISCONNECTED: disconnected,
    State.ENROLLING: enrolling,
    State.OPENING: opening,
    State.IDLE: idle,
    State.PAUSED: paused,
    State.FETCHING: fetching,
    State.TRAINING: training,
    State.RESUMING: resuming,
    State.COMMITTING: committing,
    State.HELD_UP: held_up,
    State.RETURNING: returning,
    State.LEAVING: leaving,
    State.OVER: over,
}


def live_events(driver: Driver) -> list[m.SessionEvent]:
    """One of each event, as live as it can be in the driver's state."""
    session = driver.session
    ticket, number = session._live, session._training
    return [
        m.Started(enrolled=True),
        m.Enrolled(ticket=ticket),
        m.Opened(ticket=ticket),
        m.LeaseGranted(ticket=ticket, lease=make_lease("r1.9")),
        m.ToldToWait(ticket=ticket, reason="none", retry_after_s=1.0),
        m.RunEnded(ticket=ticket, reason="done"),
        m.Fetched(ticket=ticket),
        m.FetchFailed(ticket=ticket, reason="digest"),
        m.Committed(ticket=ticket, offset=0, settled=False),
        m.Returned(ticket=ticket),
        m.CallRefused(ticket=ticket, reason="no"),
        m.SessionLost(session=session.session, reason="restart"),
        m.Trained(training=number),
        m.TrainingFailed(training=number, reason="nan"),
        m.LeaseCancelled(lease_id=session.lease_id or LeaseId("none"), reason="expired"),
        m.LeaveRequested(reason="SIGTERM"),
        m.LeaveTimedOut(),
        m.Paused(reason="on battery", stops_training=True),
        m.Resumed(),
        m.OutOfTime(reason="too late"),
    ]


def test_every_state_can_be_reached_and_is_what_it_says() -> None:
    assert set(AT) == set(State)
    for state, make in AT.items():
        assert make().session.state is state


def test_every_event_is_in_the_table_and_driven() -> None:
    assert {type(event) for event in live_events(idle())} == set(EVENTS)


@pytest.mark.parametrize(("state", "index"), list(itertools.product(State, range(len(EVENTS)))), ids=str)
def test_an_event_moves_along_the_table_or_is_refused_and_changes_nothing(state: State, index: int) -> None:
    driver = AT[state]()
    event = live_events(driver)[index]
    before = copy.deepcopy(vars(driver.session))
    old_news = driver.session._is_old_news(event)
    if old_news:
        assert driver.feed(event) == []
        assert vars(driver.session) == before
    elif state in EVENTS[type(event)][0]:
        driver.feed(event)
        after = driver.session.state
        assert after is state or after in LEGAL_MOVES[state]
    else:
        with pytest.raises(IllegalEvent):
            driver.feed(event)
        assert vars(driver.session) == before


def test_answers_to_calls_never_made_are_illegal() -> None:
    for state, make in AT.items():
        driver = make()
        for event in live_events(driver):
            if isinstance(event, m.Reply):
                with pytest.raises(IllegalEvent):
                    driver.feed(dataclasses.replace(event, ticket=driver.session._ticket + 1))
        with pytest.raises(IllegalEvent):
            driver.feed(m.Trained(training=99))
        with pytest.raises(IllegalEvent):
            driver.feed(m.SessionLost(session=99, reason=""))
        assert driver.session.state is state


def test_answers_to_replaced_calls_are_ignored() -> None:
    driver = uploading()
    assert driver.feed(m.RunEnded(ticket=1, reason="late")) == []
    assert driver.session.state is State.IDLE
    line = driver.session.line.ticket
    driver.line(m.UploadBroken)
    assert driver.feed(m.Uploaded(ticket=line)) == []
    assert driver.session.line.lease_id == "r1.1"


def test_the_whole_way_of_one_lease() -> None:
    driver = Driver()
    driver.feed(m.Started(enrolled=False))
    driver.the(m.Enrol)
    driver.reply(m.Enrolled)
    assert driver.the(m.OpenSession).session == 1
    driver.reply(m.Opened)
    assert driver.the(m.AcquireLease).may_wait
    driver.reply(m.ToldToWait, reason="no round open", retry_after_s=2.5)
    assert driver.the(m.AcquireLease).after_s == 2.5
    driver.reply(m.LeaseGranted, lease=make_lease())
    assert driver.the(m.FetchShard).lease.lease_id == "r1.1"
    driver.reply(m.Fetched)
    assert driver.the(m.StartTraining).lease == make_lease()
    driver.feed(m.Trained(training=1))
    assert driver.the(m.CommitSubmission).lease_id == "r1.1"
    driver.reply(m.Committed, offset=100, settled=False)
    assert driver.the(m.UploadSubmission).offset == 100
    assert driver.the(m.AcquireLease)
    driver.line(m.Uploaded)
    assert driver.the(m.DropSubmission).lease_id == "r1.1"
    driver.reply(m.RunEnded, reason="20 rounds")
    assert driver.the(m.Finish).exit_code == EXIT_OK


def test_unsent_work_of_an_earlier_process_goes_first() -> None:
    driver = Driver()
    driver.feed(m.Started(enrolled=True, unsent=(LeaseId("r7.2"),)))
    driver.the(m.OpenSession)
    driver.reply(m.Opened)
    assert driver.the(m.CommitSubmission).lease_id == "r7.2"
    assert driver.session.lease_id == "r7.2"
    driver.reply(m.Committed, offset=10, settled=True)
    assert driver.the(m.DropSubmission).lease_id == "r7.2"
    assert driver.session.state is State.IDLE


def test_training_goes_on_across_a_coordinator_restart() -> None:
    driver = training()
    driver.feed(m.SessionLost(session=1, reason="unknown session"))
    assert driver.the(m.OpenSession).session == 2
    driver.reply(m.Opened)
    assert driver.session.state is State.RESUMING
    assert not driver.the(m.AcquireLease).may_wait
    assert driver.reply(m.LeaseGranted, lease=make_lease()) == []
    assert driver.session.state is State.TRAINING
    driver.feed(m.Trained(training=1))
    assert driver.the(m.CommitSubmission).lease_id == "r1.1"


def test_training_that_ends_while_the_coordinator_is_away_is_committed_first() -> None:
    driver = training()
    driver.feed(m.SessionLost(session=1, reason="gone"))
    assert driver.feed(m.Trained(training=1)) == []
    driver.reply(m.Opened)
    assert driver.the(m.CommitSubmission).lease_id == "r1.1"


@pytest.mark.parametrize("other", ["another lease", "wait"])
def test_a_lease_that_did_not_outlive_the_restart_is_stopped(other: str) -> None:
    driver = resuming()
    if other == "wait":
        driver.reply(m.ToldToWait, reason="round closed", retry_after_s=0.0)
        assert driver.session.state is State.IDLE
    else:
        driver.reply(m.LeaseGranted, lease=make_lease("r2.1"))
        assert driver.session.state is State.FETCHING
    driver.the(m.StopTraining)
    assert driver.feed(m.Trained(training=1)) == []


@pytest.mark.parametrize("make", [committing, uploading, training_beside])
def test_a_trained_submission_survives_a_lost_session(make: Callable[[], Driver]) -> None:
    driver = make()
    driver.feed(m.SessionLost(session=1, reason="gone"))
    driver.reply(m.Opened)
    assert driver.the(m.CommitSubmission).lease_id == "r1.1"


def test_a_broken_upload_asks_again_where_to_go_on() -> None:
    driver = uploading()
    driver.line(m.UploadBroken)
    driver.the(m.CommitSubmission)
    driver.line(m.Committed, offset=4096, settled=False)
    assert driver.the(m.UploadSubmission).offset == 4096


@pytest.mark.parametrize("make", [committing, uploading])
def test_a_trained_submission_is_not_dropped_for_a_cancellation_that_crossed_its_commit(
    make: Callable[[], Driver],
) -> None:
    driver = make()
    driver.feed(m.LeaseCancelled(lease_id=LeaseId("r1.1"), reason="silent for 31 s"))
    assert driver.session.has_unsent  # the answer to a commit decides
    if make is uploading:
        assert driver.the(m.CommitSubmission).lane is m.Lane.LINE
        driver.line(m.Committed, offset=7, settled=False)
    else:
        driver.reply(m.Committed, offset=7, settled=False)
    assert driver.the(m.UploadSubmission).offset == 7


def test_a_cancellation_of_what_waits_for_the_line_is_settled_by_a_commit() -> None:
    driver = held_up()
    driver.feed(m.LeaseCancelled(lease_id=LeaseId("r2.1"), reason="silent for 31 s"))
    assert driver.the(m.CommitSubmission).lease_id == "r2.1"
    driver.reply(m.CallRefused, reason="the round went on", final=True)
    assert driver.the(m.DropSubmission).lease_id == "r2.1"
    assert driver.the(m.AcquireLease)
    assert driver.session.line.lease_id == "r1.1"


def test_a_lease_is_trained_while_the_one_before_is_sent() -> None:
    driver = training_beside()
    assert driver.session.lease_id == "r2.1"
    assert driver.session.line.lease_id == "r1.1"
    driver.line(m.Uploaded)
    assert driver.the(m.DropSubmission).lease_id == "r1.1"
    assert len(driver.commands) == 1, "training goes on"
    driver.feed(m.Trained(training=2))
    driver.reply(m.Committed, offset=0, settled=False)
    assert driver.the(m.UploadSubmission).lease_id == "r2.1"
    assert driver.the(m.AcquireLease)


def test_nothing_is_asked_for_before_the_line_is_free_of_the_one_before() -> None:
    driver = held_up()
    assert driver.session.state is State.HELD_UP
    assert driver.the(m.Tell).news is m.News.HELD_UP
    driver.line(m.UploadBroken)
    driver.line(m.Committed, offset=10, settled=False)
    assert not any(isinstance(command, m.AcquireLease) for command in driver.commands)
    driver.line(m.Uploaded)
    assert driver.the(m.DropSubmission).lease_id == "r1.1"
    upload = driver.the(m.UploadSubmission)
    assert (upload.lease_id, upload.offset, upload.lane) == ("r2.1", 5, m.Lane.LINE)
    assert driver.the(m.AcquireLease)


def test_two_submissions_of_an_earlier_process_are_both_sent() -> None:
    driver = Driver()
    driver.feed(m.Started(enrolled=True, unsent=(LeaseId("r7.2"), LeaseId("r8.1"))))
    driver.reply(m.Opened)
    commits = [command for command in driver.commands if isinstance(command, m.CommitSubmission)]
    assert [(one.lease_id, one.lane) for one in commits] == [("r7.2", m.Lane.LINE), ("r8.1", m.Lane.WORK)]
    driver.reply(m.Committed, offset=0, settled=False)
    assert driver.session.state is State.HELD_UP
    driver.line(m.CallRefused, reason="too late", final=True)
    assert driver.the(m.DropSubmission).lease_id == "r7.2"
    assert driver.the(m.UploadSubmission).lease_id == "r8.1"


def test_a_lost_session_cuts_the_line_and_both_go_on_in_the_next() -> None:
    driver = training_beside()
    before = driver.session.line.ticket
    driver.feed(m.SessionLost(session=1, reason="gone"))
    assert driver.the(m.CancelCall).lane is m.Lane.LINE
    assert driver.feed(m.Uploaded(ticket=before)) == []
    assert driver.session.line.state is Line.CUT
    driver.reply(m.Opened)
    assert driver.the(m.CommitSubmission).lease_id == "r1.1"
    assert not driver.the(m.AcquireLease).may_wait
    assert driver.session.state is State.RESUMING


def test_what_is_sent_when_the_run_ends_counts_nowhere() -> None:
    driver = uploading()
    driver.reply(m.RunEnded, reason="done")
    assert not driver.the(m.Finish).keeps
    assert driver.the(m.CancelCall).lane is m.Lane.LINE


def test_an_answer_that_the_line_has_not_asked_for_is_illegal() -> None:
    driver = uploading()
    assert set(ANSWERS) == {m.Committed, m.Uploaded, m.UploadBroken, m.CallRefused}
    for event in (m.Committed, m.Returned, m.Fetched):
        fields = {"offset": 0, "settled": False} if event is m.Committed else {}
        with pytest.raises(IllegalEvent):
            driver.line(event, **fields)
    assert driver.session.line.state is Line.SENDING


@pytest.mark.parametrize("state", [State.FETCHING, State.TRAINING, State.RESUMING])
def test_a_cancelled_lease_is_left_at_once(state: State) -> None:
    driver = AT[state]()
    driver.feed(m.LeaseCancelled(lease_id=LeaseId("r1.1"), reason="the round closed"))
    driver.the(m.AcquireLease)
    told = driver.the(m.Tell)
    assert (told.news, told.reason) == (m.News.LEASE_ENDED, "the round closed")
    assert driver.session.lease_id is None
    stops = [command for command in driver.commands if isinstance(command, m.StopTraining)]
    assert len(stops) == (state in (State.TRAINING, State.RESUMING))


def test_a_cancellation_of_another_lease_is_old_news() -> None:
    driver = training()
    assert driver.feed(m.LeaseCancelled(lease_id=LeaseId("r0.1"), reason="")) == []


@pytest.mark.parametrize("state", [State.FETCHING, State.TRAINING, State.RESUMING])
def test_leaving_hands_the_lease_back(state: State) -> None:
    driver = AT[state]()
    driver.feed(m.LeaveRequested(reason="SIGTERM"))
    assert driver.the(m.ReturnLease).lease_id == "r1.1"
    driver.reply(m.Returned)
    assert driver.the(m.Finish).exit_code == EXIT_OK


@pytest.mark.parametrize("make", [committing, uploading, held_up])
def test_leaving_keeps_finished_work(make: Callable[[], Driver]) -> None:
    driver = make()
    driver.feed(m.LeaveRequested(reason="SIGTERM"))
    assert driver.the(m.Finish).keeps
    assert not any(isinstance(command, m.DropSubmission) for command in driver.commands)


def test_leaving_does_not_wait_for_a_coordinator_that_is_away() -> None:
    driver = leaving()
    driver.feed(m.LeaveTimedOut())
    driver.the(m.Finish)
    assert driver.feed(m.LeaveRequested(reason="again")) == []


def test_failures_are_paused_between_and_end_in_leaving() -> None:
    driver = fetching()
    for failure in range(1, MAX_FAILURES + 1):
        driver.reply(m.FetchFailed, reason="digest")
        assert "digest" in driver.the(m.ReturnLease).reason
        driver.reply(m.Returned)
        if failure < MAX_FAILURES:
            assert driver.the(m.AcquireLease).after_s > 0
            driver.reply(m.LeaseGranted, lease=make_lease(f"r1.{failure + 1}"))
    assert driver.the(m.Finish).exit_code == EXIT_FAILED


@pytest.mark.parametrize("state", [State.ENROLLING, State.OPENING, State.IDLE])
def test_a_refusal_on_the_way_in_ends_the_worker(state: State) -> None:
    driver = AT[state]()
    driver.reply(m.CallRefused, reason="the invite was used by another key")
    finish = driver.the(m.Finish)
    assert finish.exit_code == EXIT_REFUSED
    assert "invite" in finish.reason


@pytest.mark.parametrize("make", [committing, uploading])
def test_a_submission_that_is_refused_for_good_is_dropped_and_the_reason_shown(make: Callable[[], Driver]) -> None:
    driver = make()
    answer = driver.line if make is uploading else driver.reply
    answer(m.CallRefused, reason="committed 3 s after the deadline", final=True)
    assert driver.the(m.DropSubmission).lease_id == "r1.1"
    told = driver.the(m.Tell)
    assert (told.news, told.reason) == (m.News.SUBMISSION_REFUSED, "committed 3 s after the deadline")
    assert driver.session.state is State.IDLE


@pytest.mark.parametrize("make", [committing, uploading])
def test_a_submission_that_is_refused_for_now_is_kept_and_offered_again(make: Callable[[], Driver]) -> None:
    driver = make()
    answer = driver.line if make is uploading else driver.reply
    answer(m.CallRefused, reason="Upload needs a deadline of at most 3600 s")
    assert driver.session.has_unsent
    assert not any(isinstance(command, m.DropSubmission) for command in driver.commands)
    told = driver.the(m.Tell)
    assert (told.news, told.pause_s) == (m.News.SUBMISSION_KEPT, driver.the(m.CommitSubmission).after_s)
    assert "3600 s" in told.reason
    assert driver.the(m.CommitSubmission).lease_id == "r1.1"
    answer = driver.line if make is uploading else driver.reply
    answer(m.Committed, offset=7, settled=False)
    assert driver.the(m.UploadSubmission).offset == 7


def test_refusals_in_a_row_are_further_and_further_apart() -> None:
    driver, pauses_s = uploading(), []
    for _ in range(12):
        driver.line(m.CallRefused, reason="no")
        pauses_s.append(driver.the(m.CommitSubmission).after_s)
        driver.line(m.Committed, offset=0, settled=False)  # what is taken here may be refused in the upload
        driver.line(m.CallRefused, reason="no")
        pauses_s.append(driver.the(m.CommitSubmission).after_s)
    assert pauses_s == sorted(pauses_s)
    assert pauses_s[0] >= 1.0
    assert pauses_s[-1] == Pauses().most_refused_s
    driver.line(m.Committed, offset=0, settled=True)
    assert driver.session.line.offers.refusals == 0


def test_leaving_between_two_offers_keeps_the_work() -> None:
    driver = committing()
    driver.reply(m.CallRefused, reason="no")
    driver.feed(m.LeaveRequested(reason="SIGTERM"))
    assert driver.the(m.Finish).keeps
