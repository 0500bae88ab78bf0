"""Bugs of a worker, planted on purpose: each is a small change to the real code, as long as its context lasts."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from protocol.errors import Unavailable
from protocol.identity import PrivateIdentity
from simulator.deterministic.planting import replaced
from worker import messages as m
from worker import session as session_module
from worker.blocks import PartialBlock
from worker.deadline import Deadline
from worker.home import RunHome
from worker.session import Session


def outbox_emptied_at_commit() -> AbstractContextManager[None]:
    """A worker forgets its submission before it is sent."""

    def careless(session: Any, _: m.Committed) -> list[m.SessionCommand]:
        settled: list[m.SessionCommand] = session._let_go()
        return settled

    allowed, _ = session_module.EVENTS[m.Committed]
    return replaced(session_module, "EVENTS", {**session_module.EVENTS, m.Committed: (allowed, careless)})


def stale_ticket_accepted() -> AbstractContextManager[None]:
    """An answer to a call that was replaced is taken for the present one's."""
    is_old_news = Session._is_old_news

    def credulous(session: Session, event: m.SessionEvent) -> bool:
        return not isinstance(event, m.Reply) and is_old_news(session, event)

    return replaced(Session, "_is_old_news", credulous)


def block_digest_unchecked() -> AbstractContextManager[None]:
    """A block is believed because all of its bytes have come."""

    def finish(partial: PartialBlock) -> None:
        if partial.offset < partial._payload_bytes:
            raise Unavailable("broke off")

    return replaced(PartialBlock, "finish", finish)


def outbox_dropped_on_a_retryable_refusal() -> AbstractContextManager[None]:
    """A submission that was refused, but not for good, is thrown away."""
    refused = Session._refused

    def careless(session: Session, event: m.CallRefused) -> list[m.SessionCommand]:
        return refused(session, replace(event, final=True))

    return replaced(Session, "_refused", careless)


def enrolment_retried_under_a_new_key() -> AbstractContextManager[None]:
    """A worker that died before it was enrolled makes another key."""
    identity = RunHome.identity

    def another(home: RunHome) -> PrivateIdentity:
        if home.enrolment() is None:
            home._files.remove(home.folder / "identity.pem")
        return identity(home)

    return replaced(RunHome, "identity", another)


def old_deadline_not_cancelled() -> AbstractContextManager[None]:
    """The deadline that was told first ends a fetch, though more time was given since."""
    return replaced(Deadline, "cancel", lambda _: None)
