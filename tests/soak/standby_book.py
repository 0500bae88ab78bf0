"""What was answered, by whom, and what of it whoever leads next must have: a book outside of every process.

Always held: nothing that was answered is missing from the history that goes on, but for what `async` may lose; one
machine alone answers in an epoch, and never again once a later one answered; while a leader in `sync` is cut off from
its follower, it answers nothing new; an outer step that workers were told of is not made again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.run.folder import RunFolder
from coordinator.run.seats import read_seat
from coordinator.standby.seat import Seat, SeatRole
from coordinator.store.journal import Journal
from coordinator.store.journal_file import GENESIS, chained
from protocol.errors import ConfigError
from tests.soak.coordinator_kills import Lives, Volunteer
from tests.soak.history import Acknowledged

PAUSE_S = 0.05


@dataclass(slots=True)
class StandbyTally:
    """What became of it."""

    at_place: Counter[str] = field(default_factory=Counter)
    """By who and where: processes that killed themselves there."""
    from_outside: Counter[str] = field(default_factory=Counter)
    """By who: at whatever moment it was."""
    cuts: Counter[str] = field(default_factory=Counter)
    successions: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    fenced: int = 0
    """Leaders that another was promoted over, came back, and were told that they lead no more."""
    records_lost_async: int = 0
    answers_lost_async: int = 0
    answers_lost_sync: int = 0
    split_brains: int = 0
    """Answers by a second leader, or by one that was cut off. These two are asserted to be 0."""
    records_allowed_async: int = 0
    """As many as `status` said that the follower was behind, and were committed after it said so."""
    silent_s: float = 0.0
    """For which leaders in `sync` were cut off from their followers, and answered nothing."""
    wall_s: float = 0.0

    @property
    def kills(self) -> int:
        """All."""
        return self.at_place.total() + self.from_outside.total()


class History:
    """The records of one line of machines, as they were committed."""

    def __init__(self, first: str, ledger: Path) -> None:
        self.first, self.ledger = first, ledger
        self.words: set[str] = set()
        self.keys: dict[str, set[tuple[str, str]]] = {"SubmissionCommitted": set(), "SubmissionUploaded": set()}
        self.version = self.count = 0
        """Of the newest outer step; of records after the first."""

    def read(self) -> None:
        """What the ledger has more by now."""
        lines = self.lines()
        for line in lines[self.count :]:
            record = json.loads(line)
            match record["type"]:
                case "SubmissionCommitted" | "SubmissionUploaded" as kind:
                    self.keys[kind].add((record["lease_id"], record["digest"]))
                case "RoundAggregated":
                    self.version = max(self.version, int(record["version"]))
            if "text" in record:
                self.words.add(str(record["text"]))
        self.count = len(lines)

    def lines(self) -> list[str]:
        """Whole ones: the leader may be writing another."""
        text = self.ledger.read_text("utf-8")
        return text[: text.rfind("\n") + 1].splitlines()

    def as_far_as(self, run: RunFolder, ledger: Path) -> History:
        """What of it is in this run's journal, which has to be the beginning of it; kept as another ledger."""
        journal = Journal.open(run.journal_path, writable=False)
        position, chain = journal.last_position, journal.chain
        journal.close()
        kept = self.lines()[: position - 1]
        assert len(kept) == position - 1, f"{run.root} has {position - 1 - len(kept)} records that no leader committed"
        found = chained(GENESIS, self.first)
        for line in kept:
            found = chained(found, line)
        assert found == chain, f"the journal in {run.root} is not the beginning of its leader's"
        ledger.write_text("".join(f"{line}\n" for line in kept), "utf-8")
        history = History(self.first, ledger)
        history.read()
        return history


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One announcement that was answered."""

    text: str
    by: str
    began_s: float


class Book:
    """Of one run."""

    def __init__(self, tally: StandbyTally) -> None:
        self.tally = tally
        self.words: list[Word] = []
        self.couriers: list[Courier] = []
        self.violations: list[str] = []
        self._leader_of: dict[int, str] = {}
        self._first_answer_s: dict[int, float] = {}
        self._silent_since_s: dict[str, float] = {}

    # ---- answers ----------------------------------------------------------------------------------------------------

    def word(self, text: str, by: str, epoch: int, began_s: float) -> None:
        """It was announced, and answered just now."""
        self.words.append(Word(text=text, by=by, began_s=began_s))
        self.tally.answered["words"] += 1
        self._by(by, epoch, began_s)
        since_s = self._silent_since_s.get(by)
        if since_s is not None and began_s > since_s:
            self.violations.append(f"{by} answered {text!r}, which it should not have been able to")

    def work(self, what: str, by: str, epoch: int) -> None:
        """A volunteer was told that something is safe."""
        self.tally.answered[what] += 1
        self._by(by, epoch, None)

    def _by(self, by: str, epoch: int, began_s: float | None) -> None:
        leader = self._leader_of.setdefault(epoch, by)
        if leader != by:
            self.violations.append(f"both {leader} and {by} answered in epoch {epoch}")
        if began_s is None:
            return
        self._first_answer_s.setdefault(epoch, time.monotonic())
        if any(later > epoch and at_s < began_s for later, at_s in self._first_answer_s.items()):
            self.violations.append(f"{by} answered in epoch {epoch}, which was over")

    def silence(self, by: str) -> None:
        """Whatever is asked of this machine from now on must not be answered."""
        self._silent_since_s.setdefault(by, time.monotonic())

    def silence_ends(self, by: str) -> None:
        """It may be."""
        since_s = self._silent_since_s.pop(by, None)
        if since_s is not None:
            self.tally.silent_s += time.monotonic() - since_s

    def answers_after(self, since_s: float) -> int:
        """Words that were asked since then and answered."""
        return sum(word.began_s > since_s for word in self.words[-200:])

    # ---- checks -----------------------------------------------------------------------------------------------------

    def check(self, history: History, most_lost: int, where: str) -> None:
        """What was answered and is not in `history`, at most so much; it is forgotten, as the price of `async`."""
        self.tally.split_brains = len(self.violations)
        assert not self.violations, self.violations[:5]
        history.read()
        words = [word.text for word in self.words if word.text not in history.words]
        lost = len(words)
        for courier in self.couriers:
            for kind, keys in (
                ("SubmissionCommitted", courier.told.commits),
                ("SubmissionUploaded", courier.told.uploads),
            ):
                gone = keys - history.keys[kind]
                lost += len(gone)
                keys.difference_update(gone)
            if courier.told.version > history.version:
                lost += 1
                courier.told.version = history.version
        if most_lost:
            self.tally.answers_lost_async += lost
        else:
            self.tally.answers_lost_sync += lost
        assert lost <= most_lost, f"{lost} answers are lost {where}, where {most_lost} may be: {words[:5]}"
        self.words = [word for word in self.words if word.text in history.words]

    @property
    def told(self) -> Acknowledged:
        """To all volunteers together."""
        return Acknowledged(
            commits={key for one in self.couriers for key in one.told.commits},
            uploads={key for one in self.couriers for key in one.told.uploads},
            version=max((one.told.version for one in self.couriers), default=0),
        )


class Courier(Volunteer):
    """A volunteer that can be sent to another machine, and whose answers are booked."""

    patience_s = 4.0

    def __init__(self, run: RunFolder, link: str, lives: NamedLives, number: int, book: Book) -> None:
        self.told = Acknowledged()
        super().__init__(run, link, lives, self.told, number)
        self._book, self.number, self._by = book, number, ""
        book.couriers.append(self)

    def go_to(self, lives: NamedLives) -> None:
        """Speak to that machine from the next request on."""
        self._lives = lives
        self._life = -1

    async def _one_lease(self) -> None:
        await asyncio.sleep(PAUSE_S)  # else they would take all of the machine
        by, epoch = self._by, self.epoch
        before = len(self.told.commits), len(self.told.uploads)
        try:
            await super()._one_lease()
        finally:
            for what, was, now in zip(
                ("commits", "submissions"), before, (len(self.told.commits), len(self.told.uploads)), strict=True
            ):
                if now > was:
                    self._book.work(what, by, epoch)

    async def _connected(self) -> None:
        lives = self._lives
        assert isinstance(lives, NamedLives)
        await super()._connected()
        self._by = lives.name
        if self._lives is not lives:
            self._life = -1
            raise TimeoutError  # it was sent elsewhere meanwhile


@dataclass(slots=True)
class NamedLives(Lives):
    """Of one machine."""

    name: str = ""


def seat_of(root: Path) -> Seat | None:
    """What it says now."""
    try:
        return read_seat(root)
    except ConfigError:
        return None


def is_fenced(root: Path) -> Callable[[], bool]:
    """Whether a machine has heard that it leads no more."""
    return lambda: (seat := seat_of(root)) is not None and seat.role is SeatRole.FENCED
