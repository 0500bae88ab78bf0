"""A run's status for whoever asks: the summary, and page by page what there may be ten thousand of.

Decides how large a page is. Always: a page fits into one control message whatever its rows hold, it is made in
milliseconds however many rows there are, and the pages one after another hold every row that was there from the first
to the last. Reads the engine's state, writes nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import islice
from operator import itemgetter
from typing import Any

from pydantic import TypeAdapter, ValidationError

from coordinator.edge.headline import sentence_of
from coordinator.edge.overview import summary_of
from coordinator.edge.standby_desk import status_of_standby
from coordinator.edge.standing import current_lease, state_of, worker_status
from coordinator.edge.status import (
    CheckpointStatus,
    ClosedRound,
    KeptStatus,
    RunStatus,
    RunSummary,
    ValidationStatus,
    WorkerState,
    WorkerStatus,
    by_calendar,
)
from coordinator.engine import explain
from coordinator.engine.engine import Engine
from coordinator.engine.state import EngineState
from coordinator.run.replication import StandbyState
from coordinator.run.traffic import Traffic
from protocol.errors import MalformedMessage
from protocol.ids import RunId, WorkerId
from protocol.limits import MAX_CONTROL_BYTES
from protocol.misfits import misfits

PAGE_ROWS = 500
PAGE_BYTES = MAX_CONTROL_BYTES // 2
"""Of rows in a page. The largest single row, a worker with 1024 columns, takes some 12 KiB."""
LOOKED_AT = 2000
"""Workers that one page looks at, where it is asked for those in some states only: it may then be short, or empty."""
_LEFT_OUT = 100
"""Submissions left out of a round that its row names."""


class PageKind(StrEnum):
    """What a page holds. Values are the names in the protocol's enum."""

    WORKERS = "WORKERS"
    ROUNDS = "ROUNDS"
    VALIDATIONS = "VALIDATIONS"
    CHECKPOINTS = "CHECKPOINTS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which rows: after the one that `after` names (empty: from the first), at most `most` of them."""

    kind: PageKind
    after: str = ""
    most: int = PAGE_ROWS
    states: frozenset[WorkerState] = frozenset()
    """Of workers, only those in these; empty: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Rows as JSON, and what to ask for the next page with; empty: these were the last."""

    rows: tuple[str, ...]
    next: str


Ask = Callable[[Query], Awaitable[Page]]

ROWS: Mapping[PageKind, TypeAdapter[Any]] = {
    PageKind.WORKERS: TypeAdapter(WorkerStatus),
    PageKind.ROUNDS: TypeAdapter(ClosedRound),
    PageKind.VALIDATIONS: TypeAdapter(ValidationStatus),
    PageKind.CHECKPOINTS: TypeAdapter(CheckpointStatus),
}
"""What each row is as JSON, both ways."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How much of a status is wanted besides the summary."""

    workers: int | None = None
    """At most so many, by state in the order of `WorkerState`; None: all, in the order in which they enrolled."""
    states: frozenset[WorkerState] = frozenset()
    """Workers in these only; empty: in any."""
    rounds: bool = True
    """All closed rounds that are remembered."""
    rest: bool = True
    """All validations and checkpoints that are."""


EVERYTHING = Wanted()


class StatusReader:
    """Answers for one engine."""

    def __init__(
        self,
        engine: Engine,
        *,
        run_id: RunId,
        name: str,
        run_time: Callable[[], float],
        wall_time: Callable[[], float],
        traffic: Traffic,
        connected: Callable[[WorkerId], bool],
        lease_length: Callable[[EngineState], str],
        stalled: Callable[[], str | None] = lambda: None,
        standby: Callable[[], StandbyState | None] = lambda: None,
        elsewhere: Callable[[], KeptStatus | None] = lambda: None,
    ) -> None:
        """`stalled`: why nothing can be recorded, while that is so. `elsewhere`: what other machines hold."""
        self._engine = engine
        self._run_id = run_id
        self._name = name
        self._run_time = run_time
        self._wall_time = wall_time
        self._traffic = traffic
        self._connected = connected
        self._lease_length = lease_length
        self._stalled = stalled
        self._standby, self._elsewhere = standby, elsewhere

    def summary(self) -> RunSummary:
        """The run at this moment, in short."""
        summary = summary_of(
            self._engine,
            run_id=self._run_id,
            name=self._name,
            now_s=self._run_time(),
            wall_s=self._wall_time(),
            traffic=self._traffic,
            connected=self._connected,
            lease_length=self._lease_length,
        )
        beside = {"standby": status_of_standby(self._standby()), "elsewhere": self._elsewhere()}
        summary = summary.model_copy(update=beside)
        return summary.model_copy(update={"sentence": sentence_of(self._engine.state, summary, self._stalled())})

    def page(self, query: Query) -> Page:
        """Rows from `query.after` on; MalformedMessage where that names none."""
        rows: list[str] = []
        most, size, last = min(query.most, PAGE_ROWS), 0, query.after
        for looked_at, (key, row) in enumerate(self._rows(query)):
            if row is not None:
                size += len(row)
                if rows and size > PAGE_BYTES:
                    return Page(rows=tuple(rows), next=last)
                rows.append(row.decode())
            last = key
            if len(rows) >= most or looked_at + 1 >= LOOKED_AT:
                return Page(rows=tuple(rows), next=last)
        return Page(rows=tuple(rows), next="")

    def _rows(self, query: Query) -> Iterator[tuple[str, bytes | None]]:
        """Each row that comes next: what names it, and its JSON; None where it is not asked for."""
        if query.kind is PageKind.WORKERS:
            return self._workers(query)
        numbered = sorted(_numbered(self._engine.state, query.kind), key=itemgetter(0))
        first = bisect_right(numbered, _number(query.after), key=itemgetter(0)) if query.after else 0
        return ((str(number), ROWS[query.kind].dump_json(row)) for number, row in islice(numbered, first, None))

    def _workers(self, query: Query) -> Iterator[tuple[str, bytes | None]]:
        state, now_s, common = self._engine.state, self._run_time(), explain.common_reason(self._engine.state)
        first = 0
        if query.after:
            place = state.index.places.get(WorkerId(query.after))
            if place is None:
                raise MalformedMessage("a page is asked for after a worker that is not enrolled")
            first = place + 1
        for worker, record in islice(state.workers.items(), first, None):
            row = None
            if not query.states or state_of(record, current_lease(state, worker)) in query.states:
                status = worker_status(self._engine, record, connected=self._connected, now_s=now_s, common=common)
                row = ROWS[PageKind.WORKERS].dump_json(status)
            yield worker, row


async def put_together(summary: RunSummary, ask: Ask, wanted: Wanted = EVERYTHING) -> RunStatus:
    """A summary and the rows that are wanted, page by page."""
    rows: dict[str, tuple[Any, ...]] = {"workers": await _wanted_workers(summary, ask, wanted)}
    if wanted.rounds:
        rows["history"] = await _all(ask, Query(kind=PageKind.ROUNDS))
    if wanted.rest:
        rows["validations"] = await _all(ask, Query(kind=PageKind.VALIDATIONS))
        rows["checkpoints"] = await _all(ask, Query(kind=PageKind.CHECKPOINTS))
    return RunStatus.model_validate({**dict(summary), **rows})


async def _wanted_workers(summary: RunSummary, ask: Ask, wanted: Wanted) -> tuple[Any, ...]:
    if wanted.workers is None:
        return await _all(ask, Query(kind=PageKind.WORKERS, states=wanted.states))
    found: list[Any] = []
    for state in (each for each in WorkerState if each in summary.worker_states):
        left = wanted.workers - len(found)
        if left > 0 and (not wanted.states or state in wanted.states):
            found += await _all(ask, Query(kind=PageKind.WORKERS, states=frozenset({state}), most=left))
    return tuple(found)


async def _all(ask: Ask, query: Query) -> tuple[Any, ...]:
    """Every row; where the query wants fewer than a page holds, only so many."""
    found: list[Any] = []
    while True:
        page = await ask(query)
        try:
            found += [ROWS[query.kind].validate_json(row) for row in page.rows]
        except ValidationError as error:
            where, what = misfits(error)[0]
            raise MalformedMessage(f"a row of the coordinator's status is invalid: {where}: {what}") from error
        if not page.next or page.next == query.after or (query.most < PAGE_ROWS and len(found) >= query.most):
            return tuple(found[: query.most] if query.most < PAGE_ROWS else found)
        query = replace(query, after=page.next)


def _numbered(state: EngineState, kind: PageKind) -> Iterator[tuple[int, Any]]:
    """Rows that bear a number of their own, in whatever order they came."""
    match kind:
        case PageKind.ROUNDS:
            for record in state.history:
                short = replace(record, left_out=record.left_out[:_LEFT_OUT])
                yield int(record.round), by_calendar(short, state.wall_at_s)
        case PageKind.VALIDATIONS:
            for one in state.validations:
                yield int(one.version), ValidationStatus(**asdict(one))
        case _:
            for export in state.checkpoints:
                yield int(export.version), CheckpointStatus(**asdict(export))


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise MalformedMessage("a page is asked for after a row that has no number")
    return int(text)
