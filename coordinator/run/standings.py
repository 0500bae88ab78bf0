"""How a worker, an owner or an invite is banned, unbanned or pardoned by the operator, and its work taken back.

Decides who is meant (a worker by name, id or the start of its id), and that an order which is carried out already
changes nothing. Used by a running coordinator, and for a run that nobody serves. Touches the journal of a stopped run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from coordinator.engine import events as ev
from coordinator.engine.order_events import Ordered
from coordinator.engine.past import involves
from coordinator.engine.phases import Phase
from coordinator.engine.reasons import told
from coordinator.engine.rows import BanOf, WorkerRecord
from coordinator.engine.state import EngineState
from coordinator.run.stopped_run import stopped_run
from coordinator.store.people import said_in
from coordinator.store.registry import INVITE_ID_CHARACTERS, clean_name, invite_id
from protocol.errors import ConfigError, MalformedMessage
from protocol.joinlink import SCHEME, JoinLink
from protocol.local_place import own_name

if TYPE_CHECKING:
    from coordinator.run.folder import RunFolder

OPERATOR = "the operator"
MAX_WHY_CHARACTERS = 200
_INVITE_ID = re.compile(f"[0-9a-f]{{{INVITE_ID_CHARACTERS}}}")


class Act(StrEnum):
    """What is done to somebody's standing."""

    BAN = "ban"
    UNBAN = "unban"
    PARDON = "pardon"
    ROLLBACK = "rollback"
    """A version without anything of the worker's, as far back as submissions are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingOrder:
    """What the operator asks for."""

    act: Act
    worker: str = ""
    owner: str = ""
    invite: str = ""
    """Its short digest."""
    why: str = ""

    @classmethod
    def checked(cls, *, act: Act, worker: str, owner: str, invite: str, why: str) -> StandingOrder:
        """An order that makes sense; MalformedMessage says what does not."""
        if sum(map(bool, (worker, owner, invite))) != 1:
            raise MalformedMessage(f"whom to {act}: a worker, --owner or --invite, and only one of them")
        if act in {Act.PARDON, Act.ROLLBACK} and not worker:
            raise MalformedMessage(f"a {act} is about one worker: name it")
        if len(why) > MAX_WHY_CHARACTERS or not why.isprintable():
            raise MalformedMessage(f"the reason has at most {MAX_WHY_CHARACTERS} printable characters")
        digest = digest_of_invite(invite) if invite else ""
        return cls(act=act, worker=worker, owner=clean_name(owner) if owner else "", invite=digest, why=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingChange:
    """What an order did."""

    act: str
    of: str
    """`key`, `owner` or `invite`."""
    name: str
    changed: bool
    """False: it was so already."""
    workers: tuple[str, ...]
    """Names of the workers that it is about, those that have enrolled."""
    note: str = ""
    """What else there is to know."""


def digest_of_invite(text: str) -> str:
    """The short digest of an invite: given as such, as the invite, or as the whole join link."""
    text = text.strip()
    if text.startswith(SCHEME):
        invite = JoinLink.parse(text).invite
        if invite is None:
            raise MalformedMessage("this join link has no invite in it")
        return invite_id(invite)
    return text if _INVITE_ID.fullmatch(text) else invite_id(text)


def planned_standing(
    state: EngineState, order: StandingOrder, at_s: float, actor: str
) -> tuple[ev.Event | None, StandingChange]:
    """The event that carries the order out, None where there is nothing to do, and what comes of it."""
    event, change = _planned(state, order, at_s)
    return None if event is None else replace(event, actor=actor), change


def _planned(state: EngineState, order: StandingOrder, at_s: float) -> tuple[Ordered | None, StandingChange]:
    if order.worker:
        return _of_worker(state, order, at_s)
    kept, of, name = (
        (state.banned_owners, BanOf.OWNER, order.owner)
        if order.owner
        else (state.banned_invites, BanOf.INVITE, order.invite)
    )
    is_ban, by = order.act is Act.BAN, OPERATOR
    event: Ordered | None = None
    if is_ban != (name in kept):
        if of is BanOf.OWNER:
            kind = ev.OwnerBanned if is_ban else ev.OwnerUnbanned
            event = kind(at_s=at_s, owner=name, by=by, why=order.why)
        else:
            invite_kind = ev.InviteBanned if is_ban else ev.InviteUnbanned
            event = invite_kind(at_s=at_s, invite=name, by=by, why=order.why)
    about = [one for one in state.workers.values() if name == (one.owner if of is BanOf.OWNER else one.invite)]
    return event, _change(state, order, of, name, event, about)


def change_standing_while_stopped(folder: RunFolder, order: StandingOrder) -> StandingChange:
    """The same for a run that nobody serves at present; ConfigError when somebody does."""
    with stopped_run(folder) as run:
        run.state.names = said_in(folder.registry_path).names
        event, change = planned_standing(run.state, order, run.now_s, own_name())
        if event is not None:
            run.record(event)
        return change


def worker_named(state: EngineState, text: str) -> WorkerRecord:
    """The worker of this name, id, or start of an id; ConfigError where there is none, or more than one."""
    found = [one for one in state.workers.values() if text in (one.worker, state.called(one.worker))]
    found = found or [one for one in state.workers.values() if one.worker.startswith(text)]
    if not found:
        raise ConfigError(f"no worker is called {text!r}: `barnraise status RUN --workers` lists them")
    if len(found) > 1:
        which = ", ".join(f"{state.called(one.worker)} ({one.worker[:12]})" for one in found[:5])
        raise ConfigError(f"{len(found)} workers are called {text!r}: {which}; give the start of an id")
    return found[0]


def _of_worker(state: EngineState, order: StandingOrder, at_s: float) -> tuple[Ordered | None, StandingChange]:
    record = worker_named(state, order.worker)
    if order.act is Act.ROLLBACK:
        return _rollback(state, record, order, at_s)
    kinds = {Act.BAN: ev.WorkerBanned, Act.UNBAN: ev.WorkerUnbanned, Act.PARDON: ev.WorkerPardoned}
    wanted = {Act.BAN: record.ban is None, Act.UNBAN: record.ban is not None, Act.PARDON: _has_marks(record)}
    event: Ordered | None = None
    if wanted[order.act]:
        event = kinds[order.act](at_s=at_s, worker=record.worker, by=OPERATOR, why=order.why)
    note = ""
    if order.act is Act.BAN and record.ban is not None:
        note = f"banned by {record.ban.by} before: {told(record.ban.why)}"
    elif order.act is not Act.BAN and record.owner in state.banned_owners:
        note = f"all machines of {record.owner} are banned: `unban --owner` lifts that"
    elif order.act is not Act.BAN and record.invite in state.banned_invites:
        note = f"all keys of invite {record.invite} are banned: `unban --invite` lifts that"
    return event, _change(state, order, BanOf.KEY, record.worker, event, [record], note)


def _rollback(
    state: EngineState, record: WorkerRecord, order: StandingOrder, at_s: float
) -> tuple[Ordered | None, StandingChange]:
    name = state.called(record.worker)
    if state.phase in {Phase.FINISHING, Phase.OVER}:
        raise ConfigError("the run has taken its last step: export an earlier version with `export --version`")
    if not state.past_steps:
        raise ConfigError(
            "nothing can be taken back: with `barnraise coordinator set RUN rollback_rounds 3` what a later rollback "
            "needs is kept from the next round on"
        )
    if not any(involves(step, (record.worker,)) for step in state.past_steps):
        first = state.past_steps[0].attempt.round
        raise ConfigError(f"nothing of {name} is in the rounds that can be taken back, {first} and later")
    planned = state.planned_rollback
    event: Ordered | None = None
    if planned is None or record.worker not in planned.without:
        event = ev.RollbackOrdered(at_s=at_s, worker=record.worker, by=OPERATOR, why=order.why)
    note = f"it begins when round {state.round.round} ends"
    if record.ban is None:
        note += f"; {name} is not banned: `barnraise coordinator ban` keeps it from coming again"
    return event, _change(state, order, BanOf.KEY, record.worker, event, [record], note)


def _has_marks(record: WorkerRecord) -> bool:
    marks = (record.ban, record.quarantine, record.accused)
    counts = (record.quarantines, record.refused_lately, record.probation_left, record.audits_failed)
    return any(mark is not None for mark in marks) or any(counts) or record.false_accusations > 0


def _change(
    state: EngineState,
    order: StandingOrder,
    of: BanOf,
    name: str,
    event: Ordered | None,
    about: list[WorkerRecord],
    note: str = "",
) -> StandingChange:
    return StandingChange(
        act=order.act.value,
        of=of.value,
        name=name,
        changed=event is not None,
        workers=tuple(state.called(one.worker) for one in about),
        note=note,
    )
