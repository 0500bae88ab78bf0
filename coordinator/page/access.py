"""Who is logged in on the page: tickets that log somebody in once, visits that end, and how often something is tried.

Decides how long each lives. Holds always: a ticket and a visit are 256 random bits, of which only the SHA-256 is kept
here; a ticket is good once and for `TICKET_S`; everything is in memory, so a restart logs everybody out, and there are
never many of anything. Safe in several threads: tickets are made in the coordinator's loop, and used in the page's.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

TICKET_S = 60.0
IDLE_S = 30 * 60.0
"""A visit ends when nothing was asked in it for so long."""
LONGEST_S = 8 * 3600.0
MOST_TICKETS = 64
MOST_VISITS = 64
"""The oldest goes first: operators are few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Somebody:
    """Who came in."""

    name: str
    """Stands beside everything that is ordered."""
    may_order: bool
    """Or only look."""


class Tries:
    """So many at once, and one more every so often."""

    def __init__(self, burst: int, every_s: float, clock: Callable[[], float]) -> None:
        self._burst, self._every_s, self._clock = burst, every_s, clock
        self._left, self._at_s = float(burst), clock()

    def take(self) -> float:
        """0 if one more is allowed, else the seconds until it is."""
        now_s = self._clock()
        self._left = min(float(self._burst), self._left + (now_s - self._at_s) / self._every_s)
        self._at_s = now_s
        if self._left < 1.0:
            return (1.0 - self._left) * self._every_s
        self._left -= 1.0
        return 0.0


@dataclass(slots=True, kw_only=True)
class Visit:
    """Somebody who is logged in."""

    who: Somebody
    token: str
    """Stands in every form of this visit: a page elsewhere does not know it."""
    began_s: float
    seen_s: float
    acts: Tries
    by_password: str | None = None
    """The mark of the password that it came by, with which it ends; None: it came otherwise."""
    told: list[str] = field(default_factory=list)
    """What the next page says, once: what came of an act."""
    links: list[str] = field(default_factory=list)
    """Join links that were just made, likewise."""

    def has_token(self, token: str) -> bool:
        """Whether a form is of this visit."""
        return hmac.compare_digest(token.encode(errors="replace"), self.token.encode())


class Access:
    """One page's tickets and visits."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tickets: OrderedDict[bytes, tuple[Somebody, float]] = OrderedDict()
        self._visits: OrderedDict[bytes, Visit] = OrderedDict()
        self.passwords = Tries(5, 10.0, clock)
        """For everybody together: whoever cannot wait asks for a ticket."""

    def ticket(self, who: Somebody) -> str:
        """A word that logs `who` in, once and soon."""
        word = secrets.token_urlsafe(32)
        with self._lock:
            self._tickets[_digest(word)] = who, self._clock() + TICKET_S
            while len(self._tickets) > MOST_TICKETS:
                self._tickets.popitem(last=False)
        return word

    def redeem(self, ticket: str) -> str | None:
        """The cookie of a new visit; None where the ticket is none, was used, or is too old."""
        with self._lock:
            found = self._tickets.pop(_digest(ticket), None)
        if found is None or self._clock() > found[1]:
            return None
        return self.begin(found[0])

    def begin(self, who: Somebody, *, by_password: str | None = None) -> str:
        """The cookie of a new visit."""
        cookie, now_s = secrets.token_urlsafe(32), self._clock()
        visit = Visit(
            who=who,
            token=secrets.token_urlsafe(32),
            began_s=now_s,
            seen_s=now_s,
            acts=Tries(30, 1.0, self._clock),
            by_password=by_password,
        )
        with self._lock:
            self._visits[_digest(cookie)] = visit
            while len(self._visits) > MOST_VISITS:
                self._visits.popitem(last=False)
        return cookie

    def visit(self, cookie: str) -> Visit | None:
        """The visit with this cookie, if it goes on."""
        now_s = self._clock()
        with self._lock:
            visit = self._visits.get(_digest(cookie))
            if visit is None:
                return None
            if now_s - visit.seen_s > IDLE_S or now_s - visit.began_s > LONGEST_S:
                del self._visits[_digest(cookie)]
                return None
            visit.seen_s = now_s
            return visit

    def leave(self, cookie: str) -> None:
        """Somebody logs out."""
        with self._lock:
            self._visits.pop(_digest(cookie), None)

    def end_of(self, name: str) -> None:
        """Whoever came in under this name is out, and holds no ticket."""
        with self._lock:
            for digest in [digest for digest, visit in self._visits.items() if visit.who.name == name]:
                del self._visits[digest]
            for digest in [digest for digest, (who, _) in self._tickets.items() if who.name == name]:
                del self._tickets[digest]


def _digest(word: str) -> bytes:
    return hashlib.sha256(word.encode(errors="replace")).digest()
