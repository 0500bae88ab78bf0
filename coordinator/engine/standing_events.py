"""What people say about who takes part: bans, pardons and rollbacks by the operator, with what comes of one, and a
worker's question over a refusal. Named from events.py, like all events."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.engine.event import Event
from coordinator.engine.order_events import Ordered
from protocol.ids import LeaseId, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBanned(Ordered):
    """Somebody shut a key out. The engine's own bans follow from audits and need no event."""

    worker: WorkerId
    by: str
    why: str
    """In the words of whoever did it; the worker is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUnbanned(Ordered):
    """A ban was taken back: the worker starts on probation."""

    worker: WorkerId
    by: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPardoned(Ordered):
    """Everything against a worker was taken back, its ban included: it was wronged."""

    worker: WorkerId
    by: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerBanned(Ordered):
    """All machines of an owner were shut out, those to come included."""

    owner: str
    by: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerUnbanned(Ordered):
    """That was taken back, but for keys that are banned themselves."""

    owner: str
    by: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteBanned(Ordered):
    """All keys that came with an invite were shut out, those to come included."""

    invite: str
    """Its short digest."""
    by: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteUnbanned(Ordered):
    """That was taken back, but for keys that are banned themselves."""

    invite: str
    by: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackOrdered(Ordered):
    """The operator wants a version in which nothing of this worker is, as far back as submissions are kept."""

    worker: WorkerId
    by: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditAsked(Event):
    """A worker holds the refusal of this lease's submission to be wrong."""

    worker: WorkerId
    lease_id: LeaseId
