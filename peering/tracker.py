"""Who holds which block, and who is to take it from whom: the coordinator's book, sans-IO.

Decides, for a worker that asks, from which other workers it may take each block that it lacks, and which blocks it may
take from the coordinator (a grant). Always, while holders deliver: each block is granted `copies` times, to workers
that share; the others wait for those. A grant is a lease: it lapses unless it is renewed, and whoever lets one lapse is
granted nothing more until a grant comes to something. Whoever got nothing for `fallback_s` is granted what it wants,
whatever else is known, unless a sharer takes it at that moment, or did so just now: then, after twice as long, unless
two take it, and so on. So one silent holder costs a copy more, and not one for each worker that waited for it. What a
worker says against a holder counts for itself alone: nobody is shut out by it, and a liar's word costs an honest holder
nothing. Time, and who is here, are given. Touches nothing.

Rarest first and busy peers that are nobody's fault: BitTorrent (Cohen, "Incentives Build Robustness in BitTorrent",
2003).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import islice

from protocol.ids import Digest, WorkerId

MOST_HOLDERS = 6
"""Named for one block. Two upload slots each are more than a worker fetches at once."""
MOST_SOURCES = 16
"""Blocks that one answer says something about: four times what a worker fetches at once."""
GRANTS_AT_ONCE = 2
"""Of one worker: more would share the same line of the coordinator, and be passed on later."""
GRANT_S = 30.0
"""A grant that is not renewed lapses: three times the pause after which a worker renews it."""
MOST_GRANT_S = 1800.0
"""However often it is renewed: a block of 100 MB takes as long at 64 KiB/s."""
FIRST_WAIT_S = 2.0
"""Before a block that no sharer wants goes to a worker that does not share: sharers ask at the same time."""
WANTED_S = 15.0
"""How long a question counts: a worker that still wants a block asks again every few seconds."""
NEW_HOLDER_S = 5.0
"""After one has fallen back, before the next may: who waits asks again within seconds, and finds a holder more."""
AVOIDED_S = 120.0
"""How long a worker is not sent to a holder that failed it, the first time; twice as long each time after that."""
MOST_DOUBLINGS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Where a worker is reached that shares."""

    host: str
    port: int
    certificate: bytes
    """DER; its SHA-256 is the holder's name."""
    name: Digest
    peer_id: str = ""
    """Where nobody can connect to it: its node, which is reached,"""
    through: tuple[str, ...] = ()
    """as PEER@HOST:PORT, by these relays; host and port are then nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeFrom:
    """Where one block comes from: from the coordinator if it is granted, otherwise from one of the holders."""

    digest: Digest
    holders: tuple[Shared, ...]
    granted: bool


@dataclass(slots=True)
class _Grant:
    began_s: float
    ends_s: float


@dataclass(slots=True)
class _Known:
    """Of one worker."""

    shared: Shared | None = None
    held: set[Digest] = field(default_factory=set)
    """Told, by a worker that shares."""
    wants: dict[Digest, float] = field(default_factory=dict)
    """Since when."""
    asked_s: float = 0.0
    grants: dict[Digest, _Grant] = field(default_factory=dict)
    let_lapse: bool = False
    avoids: dict[Digest, float] = field(default_factory=dict)
    """Holders, by name, and until when."""
    failed_by: Counter[Digest] = field(default_factory=Counter)
    handed: int = 0
    """When it was last named as a holder, counted in answers."""


class Tracker:
    """One run's book. Lives in memory: after a restart everybody tells it again."""

    def __init__(
        self, *, copies: int, fallback_s: float, is_here: Callable[[WorkerId], bool] = lambda _worker: True
    ) -> None:
        """`copies`: how many workers take one block from the coordinator. `is_here`: who of them still lives."""
        self._copies, self._fallback_s, self._is_here = copies, fallback_s, is_here
        self._workers: dict[WorkerId, _Known] = {}
        self._holders: dict[Digest, dict[WorkerId, None]] = {}
        self._granted: dict[Digest, set[WorkerId]] = {}
        self._fell_back_s: dict[Digest, float] = {}
        """When a sharer was granted the block last because it had waited for so long."""
        self._answers = 0
        self._present: frozenset[WorkerId] = frozenset()
        """Who shares and is here, at the present question."""

    def some_sharers(self, most: int, beside: WorkerId | None = None) -> tuple[Shared, ...]:
        """Up to `most` of those who share, are here, and can be connected to; others each time."""
        here = [
            known.shared
            for worker, known in self._workers.items()
            if known.shared is not None and not known.shared.peer_id and worker != beside and self._is_here(worker)
        ]
        first = self._answers % len(here) if here else 0
        return tuple((here[first:] + here[:first])[:most])

    # ---- what workers tell ------------------------------------------------------------------------------------------

    def share(self, worker: WorkerId, shared: Shared | None) -> None:
        """The worker shares what it tells to have, from there; None: nothing any more."""
        known = self._of(worker)
        if shared is None:
            self._drop(worker, known, list(known.held))
        known.shared = shared

    def got(self, worker: WorkerId, digests: Iterable[Digest], *, whole: bool = False) -> None:
        """These have come, and been checked. `whole`: of what was told before, the rest is gone."""
        known, told = self._of(worker), list(digests)
        if whole:
            self._drop(worker, known, list(known.held.difference(told)))
        for digest in told:
            known.wants.pop(digest, None)
            if known.grants.pop(digest, None) is not None:
                self._ungrant(worker, digest)
                known.let_lapse = False
            if known.shared is not None:
                known.held.add(digest)
                self._holders.setdefault(digest, {})[worker] = None

    def gone(self, worker: WorkerId, digests: Iterable[Digest]) -> None:
        """These are there no more."""
        self._drop(worker, self._of(worker), digests)

    def failed(self, worker: WorkerId, holders: Iterable[Digest], now_s: float) -> None:
        """These holders gave the worker something else than they should, or nothing: it is not sent to them a while."""
        known = self._of(worker)
        names = {other.shared.name for other in self._workers.values() if other.shared is not None}
        for name in names.intersection(holders):
            doublings = min(known.failed_by[name], MOST_DOUBLINGS)
            known.failed_by[name] += 1
            known.avoids[name] = now_s + AVOIDED_S * 2.0**doublings

    def renew(self, worker: WorkerId, digests: Iterable[Digest], now_s: float) -> None:
        """These come from the coordinator at present."""
        grants = self._of(worker).grants
        for digest in digests:
            grant = grants.get(digest)
            if grant is not None:
                grant.ends_s = min(now_s + GRANT_S, grant.began_s + MOST_GRANT_S)

    def keep(self, is_served: Callable[[Digest], bool]) -> None:
        """Forget blocks that nobody may fetch any more."""
        for worker, known in self._workers.items():
            self._drop(worker, known, [digest for digest in known.held if not is_served(digest)])
            known.wants = {digest: at_s for digest, at_s in known.wants.items() if is_served(digest)}
        self._fell_back_s = {digest: at_s for digest, at_s in self._fell_back_s.items() if is_served(digest)}

    # ---- what they are told -----------------------------------------------------------------------------------------

    @property
    def anybody_shares(self) -> bool:
        """Whether asking can come to anything but the coordinator."""
        return self._copies > 0 and any(self._sharers())

    def shares(self, worker: WorkerId) -> Shared | None:
        """Where the worker is reached, as far as it has told."""
        known = self._workers.get(worker)
        return known.shared if known is not None else None

    def known(self, worker: WorkerId) -> int:
        """Blocks that the worker is taken to share."""
        return len(self._of(worker).held)

    def is_held(self, digest: Digest) -> bool:
        """Whether a worker that shares, and is here, has told that it has the block."""
        return any(self._can_give(one, self._workers[one]) for one in self._holders.get(digest, ()))

    def ask(
        self,
        worker: WorkerId,
        wanted: Sequence[Digest],
        now_s: float,
        *,
        room: int = MOST_SOURCES,
        still_s: float = 0.0,
        relayed: bool = False,
    ) -> list[TakeFrom]:
        """Sources of what `worker` wants, rarest first; what is left out has to wait.

        `room`: how many it could begin with now. `still_s`: for how long nothing has come, from anybody.
        `relayed`: whether it can be sent to a holder to whom nobody can connect.
        """
        if not self.anybody_shares:
            return [TakeFrom(digest=digest, holders=(), granted=True) for digest in wanted[:MOST_SOURCES]]
        self._answers += 1
        self._present = frozenset(holder for holder, other in self._workers.items() if self._can_give(holder, other))
        self._lapse(now_s)
        known = self._of(worker)
        known.asked_s, since = now_s, known.wants
        known.wants = {digest: since.get(digest, now_s) for digest in wanted}
        found: list[TakeFrom] = []
        for digest in (
            () if room == 0 else sorted(known.wants, key=lambda one: (self._supply(one), distance(worker, one)))
        ):
            usable = self._usable(worker, known, digest, now_s, relayed=relayed)
            granted = digest in known.grants or (
                len(known.grants) < GRANTS_AT_ONCE
                and sum(one.granted for one in found) < room
                and (
                    self._falls_back(digest, now_s, still_s)
                    or self._may_take(known, digest, now_s, usable=bool(usable))
                )
            )
            if granted:
                if still_s >= self._fallback_s and known.shared is not None and digest not in known.grants:
                    self._fell_back_s[digest] = now_s
                self._grant(worker, known, digest, now_s)
            if granted or usable:
                found.append(TakeFrom(digest=digest, holders=self._named(usable), granted=granted))
            if len(found) == MOST_SOURCES:
                break
        return found

    def _falls_back(self, digest: Digest, now_s: float, still_s: float) -> bool:
        """Whether it has waited for long enough: one goes first, and the others may have it from that one."""
        is_new = now_s - self._fell_back_s.get(digest, -math.inf) < NEW_HOLDER_S
        return not is_new and still_s >= self._fallback_s * (1 + len(self._granted.get(digest, ())))

    def _may_take(self, known: _Known, digest: Digest, now_s: float, *, usable: bool) -> bool:
        """Whether the block is one more time, or after all, to be taken from the coordinator."""
        if known.let_lapse:
            return False
        if known.shared is not None:
            return self._supply(digest) < self._copies or not (usable or self._granted.get(digest))
        # It would be passed on to nobody, so it waits for whoever shares, as long as such a one wants it.
        if usable or self._granted.get(digest) or now_s - known.wants[digest] < FIRST_WAIT_S:
            return False
        return not any(digest in other.wants for other in self._asking_sharers(now_s))

    # ---- the book ---------------------------------------------------------------------------------------------------

    def _of(self, worker: WorkerId) -> _Known:
        return self._workers.setdefault(worker, _Known())

    def _sharers(self) -> Iterator[_Known]:
        return (known for worker, known in self._workers.items() if self._can_give(worker, known))

    def _can_give(self, worker: WorkerId, known: _Known) -> bool:
        return known.shared is not None and self._is_here(worker)

    def _asking_sharers(self, now_s: float) -> Iterator[_Known]:
        return (known for known in self._sharers() if not known.let_lapse and now_s - known.asked_s < WANTED_S)

    def _usable(self, worker: WorkerId, known: _Known, digest: Digest, now_s: float, *, relayed: bool) -> list[_Known]:
        """Holders of the block that `worker` may be sent to."""
        return [
            other
            for holder, other in self._holding(digest)
            if holder != worker
            and other.shared is not None
            and (relayed or not other.shared.peer_id)
            and known.avoids.get(other.shared.name, now_s) <= now_s
        ]

    def _holding(self, digest: Digest) -> Iterator[tuple[WorkerId, _Known]]:
        return ((one, self._workers[one]) for one in self._holders.get(digest, ()) if one in self._present)

    def _supply(self, digest: Digest) -> int:
        """Workers that have the block to pass on, or take it from the coordinator to do so; counted to a few."""
        few = max(MOST_HOLDERS, self._copies)
        return sum(1 for _ in islice(self._holding(digest), few)) + len(self._granted.get(digest, ()))

    def _named(self, usable: list[_Known]) -> tuple[Shared, ...]:
        """Some of them, those that were not named for the longest time first; but last those that cost a relay."""
        chosen = nsmallest(MOST_HOLDERS, usable, key=_is_named_before)
        for known in chosen:
            known.handed = self._answers
        return tuple(known.shared for known in chosen if known.shared is not None)

    def _grant(self, worker: WorkerId, known: _Known, digest: Digest, now_s: float) -> None:
        if digest in known.grants:
            return
        known.grants[digest] = _Grant(began_s=now_s, ends_s=now_s + GRANT_S)
        if known.shared is not None:
            self._granted.setdefault(digest, set()).add(worker)

    def _ungrant(self, worker: WorkerId, digest: Digest) -> None:
        takers = self._granted.get(digest)
        if takers is not None:
            takers.discard(worker)
            if not takers:
                del self._granted[digest]

    def _lapse(self, now_s: float) -> None:
        for worker, known in self._workers.items():
            here = self._is_here(worker)
            for digest in [one for one, grant in known.grants.items() if grant.ends_s <= now_s or not here]:
                del known.grants[digest]
                self._ungrant(worker, digest)
                known.let_lapse = known.let_lapse or here  # who left has let nothing lapse

    def _drop(self, worker: WorkerId, known: _Known, digests: Iterable[Digest]) -> None:
        for digest in digests:
            known.held.discard(digest)
            holders = self._holders.get(digest)
            if holders is not None:
                holders.pop(worker, None)
                if not holders:
                    del self._holders[digest]


def _is_named_before(known: _Known) -> tuple[bool, int]:
    return known.shared is not None and bool(known.shared.peer_id), known.handed


def distance(worker: WorkerId, digest: Digest) -> int:
    """By which each worker has an order of its own for blocks that are equally rare, so that not all begin with one."""
    return int(worker[:16], 16) ^ int(digest[:16], 16)
