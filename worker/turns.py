"""Several runs on one device: whose turn it is, by the shares that the volunteer gave them.

Decides between leases, never within one: the run whose time, divided by its share, is the least asks for the next
lease. A run that has been asked and has no work passes its turn on after a while, and gets no time for having waited.
Pure but for the clock that it is given; what a turn means for a worker is a rule like others (`TurnPolicy`): out of
turn, what is in training is finished and sent, and nothing new is begun.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

from worker.policy import Circumstances, Permission, Policy

PATIENCE_S: Final = 90.0
"""In its turn, a run may take so long until it grants a lease: torch is loaded first, coordinators gather workers."""
AWAY_S: Final = 10 * PATIENCE_S
"""A run without work is asked so seldom that asking costs the others a tenth of their time."""


@dataclasses.dataclass(slots=True)
class _Contender:
    """One run."""

    share: Callable[[], float]
    has_lease: Callable[[], bool]
    used_s: float = 0.0
    """Divided by the shares of then; whole while there was none, which is no reason to starve it later."""
    is_welcome: bool = False
    """Whether its own rules let it work."""
    away_until_s: float = float("-inf")
    """It had no work when it was asked last."""
    was_out: bool = False
    """It had no work, or its rules were against any, since its last turn: that earns nothing."""


class Turns:
    """The runs of one device. Each is asked for again and again, as its worker looks at its rules."""

    def __init__(self, clock: Callable[[], float], patience_s: float = PATIENCE_S) -> None:
        self._clock, self._patience_s = clock, patience_s
        self._runs: dict[str, _Contender] = {}
        self.turn = ""
        """Whose it is; empty: nobody's."""
        self._since_s = self._looked_s = clock()

    def enter(self, run: str, share: Callable[[], float], has_lease: Callable[[], bool]) -> None:
        """`run` wants turns. `share`: as it is ruled at the moment; 0: none while others have work."""
        least_s = min((each.used_s for each in self._runs.values()), default=0.0)
        self._runs[run] = _Contender(share=share, has_lease=has_lease, used_s=least_s)

    def leave(self, run: str) -> None:
        """It is over."""
        self._runs.pop(run, None)
        if self.turn == run:
            self.turn = ""

    def may_ask(self, run: str, *, is_welcome: bool) -> bool:
        """Whether `run` may ask for a lease now."""
        each = self._runs[run]
        each.is_welcome, each.was_out = is_welcome, each.was_out or not is_welcome
        now_s = self._clock()
        self._look(now_s)
        return self.turn == run and (self._next(now_s) in ("", run) or not self._runs[run].has_lease())

    def _look(self, now_s: float) -> None:
        """Charge whoever trains, and pass the turn on where its holder has none of the work in hand any more."""
        passed_s, self._looked_s = now_s - self._looked_s, now_s
        holder = self._runs.get(self.turn)
        if holder is not None and holder.has_lease():
            holder.used_s += passed_s / (holder.share() or 1.0)
            self._since_s = now_s
            return
        following = self._next(now_s)
        if following and following != self.turn:
            self._hand_to(following, now_s)

    def _next(self, now_s: float) -> str:
        """Whose turn it should be; empty: nobody's but the holder's."""
        welcome = {name: each for name, each in self._runs.items() if each.is_welcome and each.share() > 0.0}
        holder = welcome.get(self.turn)
        if holder is not None and not holder.has_lease() and now_s - self._since_s >= self._patience_s:
            holder.away_until_s, holder.was_out = now_s + AWAY_S, True
        candidates = {name: each for name, each in welcome.items() if each.away_until_s <= now_s} or welcome
        return min(candidates, key=lambda name: (candidates[name].used_s, name), default="")

    def _hand_to(self, run: str, now_s: float) -> None:
        taker = self._runs[run]
        if taker.was_out:
            others = (each.used_s for name, each in self._runs.items() if name != run)
            taker.used_s, taker.was_out = max(taker.used_s, min(others, default=0.0)), False
        self.turn, self._since_s = run, now_s


class TurnPolicy:
    """A run's own rules, and its turn."""

    def __init__(self, rules: Policy, turns: Turns, run: str, named: Callable[[str], str] = str) -> None:
        """`named`: what people call a run."""
        self._rules, self._turns, self._run, self._named = rules, turns, run, named

    @property
    def look_again_s(self) -> float | None:
        """As the rules say, and each second at the least."""
        return min(1.0, self._rules.look_again_s or 1.0)

    def may_work(self, now: Circumstances) -> Permission:
        """Where its rules let it, and it is its turn."""
        permission = self._rules.may_work(now)
        is_turn = self._turns.may_ask(self._run, is_welcome=permission.allowed)
        if not permission.allowed or is_turn:
            return permission
        return Permission(allowed=False, reason=self._why())

    def _why(self) -> str:
        turn = self._turns.turn
        if not turn:
            return "no run has a share of this machine"
        return f"it is the turn of {self._named(turn)}" if turn != self._run else "another run's turn comes next"
