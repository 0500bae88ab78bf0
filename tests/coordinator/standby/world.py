"""Two machines for one run, a witness, and a network between them, in no time: kills at every step, partitions, loss.

Real: `Leading`, `Following`, `judged`. Simulated: disks that keep what was written, and everything that happens in some
order that one seed decides. Held against a book that lies outside of every machine.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from coordinator.standby.following import Following, NotPromoted, Promoted
from coordinator.standby.leading import AskWitness, Fence, Keep, Leading, LetGo
from coordinator.standby.seat import Held, Request, Seat, SeatRole, WitnessAnswer
from coordinator.standby.witness import judged

WITNESS = "W"


class Violation(AssertionError):
    """A promise was broken."""


class Killed(Exception):
    """The process died here."""


@dataclass
class Book:
    """What clients were told, and by whom."""

    acked: dict[int, tuple[int, str, bool]] = field(default_factory=dict)
    """Operation to epoch, machine and whether it waited for its follower."""
    steps: dict[int, int] = field(default_factory=dict)
    """Outer step to the operation that made it, as it was acknowledged."""
    highest: int = 0
    lost_async: int = 0
    promotions: Counter[str] = field(default_factory=Counter)
    places: Counter[str] = field(default_factory=Counter)
    acks_waiting: int = 0


@dataclass
class Machine:
    name: str
    seat: Seat
    journal: list[tuple[int, int]] = field(default_factory=list)
    """Operation and outer step of each record; positions begin with 1."""
    up: bool = True
    leading: Leading | None = None
    following: Following | None = None
    waiting: list[tuple[int, int]] = field(default_factory=list)
    """Operations that are not answered yet, and their positions."""
    shown_lag: int = 0


class World:
    def __init__(self, seed: int, *, witness: bool = True, plant: str = "") -> None:
        self.random = random.Random(seed)
        self.has_witness = witness
        self.plant = plant
        self.book = Book()
        self.held: Held | None = None
        self.witness_up = True
        self.cut: set[frozenset[str]] = set()
        self.mail: list[tuple[str, str, tuple[object, ...]]] = []
        self.calm = False
        self.ops = 0
        first = Machine("A", Seat(me="A0"))
        second = Machine("B", Seat(me="B0", role=SeatRole.FOLLOWS, whole=False, epoch=0))
        self.machines = {"A": first, "B": second}
        self.lives = Counter[str]()
        for machine in self.machines.values():
            self._start(machine)

    # ---- what happens -----------------------------------------------------------------------------------------------

    def run(self, steps: int) -> Book:
        for _ in range(steps):
            self._step()
        self.calm, self.cut, self.witness_up, self.mail = True, set(), True, []
        for _ in range(12):
            for machine in self.machines.values():
                self._restart(machine)
                for act in (self._tick, self._client, partial(self._promote, confirmed=False)):
                    self._guard(machine, partial(act, machine))
                    self._deliver_all()
        self._require_alive()
        return self.book

    def _step(self) -> None:
        draw = self.random.random()
        machine = self.random.choice(list(self.machines.values()))
        other = self._other(machine)
        if draw < 0.40 and self.mail:
            self._deliver(self.mail.pop(self.random.randrange(len(self.mail))))
        elif draw < 0.58:
            self._guard(machine, lambda: self._client(machine))
        elif draw < 0.78:
            self._guard(machine, lambda: self._tick(machine))
        elif draw < 0.80:
            self._restart(machine)
        elif draw < 0.86:
            self.witness_up = self.calm or self.random.random() < 0.7
        elif draw < 0.89 and not self.calm:
            pair = frozenset(self.random.sample(["A", "B", WITNESS], 2))
            self.cut ^= {pair}
        elif draw < 0.92:
            order = self.random.choice(["sync", "sync", "async"])
            self._guard(machine, lambda: self._order(machine, order))
        elif draw < 0.96:
            self._guard(machine, lambda: self._promote(machine, confirmed=False))
        elif draw < 0.97 and not other.up and self.witness_up and self._linked(machine.name, WITNESS):
            # a person walks over and sees that it is off; it stays off until the witness knows
            self._guard(machine, lambda: self._promote(machine, confirmed=True))
        elif draw < 0.985 and not self.calm:
            machine.up = False

    def _deliver_all(self) -> None:
        for _ in range(100):
            if self.mail:
                self._deliver(self.mail.pop(0))

    def _guard(self, machine: Machine, act: Callable[[], None]) -> None:
        if not machine.up:
            return
        try:
            act()
        except Killed:
            machine.up = False

    def _place(self, kind: str) -> None:
        if not self.calm and self.random.random() < 0.01:
            self.book.places[kind] += 1
            raise Killed

    def _start(self, machine: Machine) -> None:
        machine.up, machine.waiting = True, []
        machine.leading = machine.following = None
        if machine.seat.role is SeatRole.FOLLOWS:
            machine.following = Following(machine.seat, has_witness=self.has_witness)
        elif machine.seat.role is SeatRole.LEADS:
            machine.leading = Leading(machine.seat, committed=len(machine.journal), has_witness=self.has_witness)
            if self.plant == "unchecked":
                machine.leading._checked = True
            if self.plant == "early sync":
                machine.leading._must_reach = 0
        else:
            # its operator makes a follower of it again: another name, and nothing of what it had
            self.lives[machine.name] += 1
            machine.seat = Seat(
                me=f"{machine.name}{self.lives[machine.name]}", role=SeatRole.FOLLOWS, whole=False, epoch=0
            )
            machine.journal = []
            self._start(machine)

    def _restart(self, machine: Machine) -> None:
        if not machine.up and not self._is_kept_off(machine):
            self._start(machine)

    def _is_kept_off(self, machine: Machine) -> bool:
        """Whoever said that a machine is off keeps it off until the witness knows."""
        other = self._other(machine).seat
        told = self.held is not None and self.held.epoch >= other.epoch
        led = other.role is SeatRole.LEADS and machine.seat.role is SeatRole.LEADS
        return led and other.epoch > machine.seat.epoch and not told

    def _other(self, machine: Machine) -> Machine:
        return self.machines["B" if machine.name == "A" else "A"]

    def _linked(self, one: str, other: str) -> bool:
        return frozenset((one, other)) not in self.cut

    # ---- messages ---------------------------------------------------------------------------------------------------

    def _send(self, sender: str, to: str, *content: object) -> None:
        if self.calm or self.random.random() < 0.9:
            self.mail.append((sender, to, content))
            if not self.calm and self.random.random() < 0.1:
                self.mail.append((sender, to, content))

    def _deliver(self, mail: tuple[str, str, tuple[object, ...]]) -> None:
        sender, to, content = mail
        if not self._linked(sender, to):
            return
        if to == WITNESS:
            request = content[0]
            assert isinstance(request, Request)
            if self.witness_up:
                answer = judged(self.held, request)
                self.held = answer.held
                self._send(WITNESS, sender, request, answer)
            return
        machine = self.machines[to]
        self._guard(machine, lambda: self._receive(machine, sender, content))

    def _receive(self, machine: Machine, sender: str, content: tuple[object, ...]) -> None:
        if sender == WITNESS:
            request, answer = content
            assert isinstance(request, Request)
            assert isinstance(answer, WitnessAnswer)
            if request.by != machine.seat.me:
                return
            if machine.leading is not None:
                self._do(machine, machine.leading.on_witness(request, answer))
            elif machine.following is not None:
                self._do(machine, machine.following.on_witness(request, answer))
            return
        kind, *rest = content
        getattr(self, f"_on_{kind}")(machine, *rest)

    def _on_attach(self, leader: Machine, follower: str, position: int, last: object) -> None:
        view = leader.leading
        if view is None:
            return
        goes_on = position <= len(leader.journal) and (position == 0 or leader.journal[position - 1] == last)
        if goes_on and not view.on_attached(follower, position):
            self._do(leader, view.on_acked(follower, position))
            self._offer(leader, position)
        elif not goes_on and not view.on_attached(follower, 0):
            self._send(leader.name, self._other(leader).name, "base", view.seat.epoch, tuple(leader.journal))

    def _on_base(self, machine: Machine, epoch: int, journal: tuple[tuple[int, int], ...]) -> None:
        view = machine.following
        if view is None:
            return
        commands, refused = view.on_leader(epoch)
        if refused:
            return
        self._do(machine, commands)
        self._do(machine, view.on_base_begun())
        machine.journal = list(journal)
        self._place("base in place")
        self._do(machine, view.on_base_whole())
        self._ack(machine)

    def _on_records(self, machine: Machine, epoch: int, after: int, last: object, records: tuple[tuple[int, int], ...]):
        view = machine.following
        if view is None:
            return
        commands, refused = view.on_leader(epoch)
        if refused:
            return
        self._do(machine, commands)
        here = machine.journal[after - 1] if 0 < after <= len(machine.journal) else None
        if after != len(machine.journal) or (after and here != last):
            return
        self._place("before the follower's commit")
        machine.journal += records
        self._place("after the follower's commit")
        if not machine.seat.whole:
            self._do(machine, view.on_base_whole())
        self._ack(machine)

    def _on_acked(self, machine: Machine, follower: str, epoch: int, position: int) -> None:
        view = machine.leading
        if view is None or epoch != view.seat.epoch:
            return
        self._do(machine, view.on_acked(follower, position))
        if view.attached == follower:
            self._offer(machine, position)

    def _ack(self, machine: Machine) -> None:
        self._send(
            machine.name, self._other(machine).name, "acked", machine.seat.me, machine.seat.epoch, len(machine.journal)
        )

    def _offer(self, leader: Machine, after: int) -> None:
        view = leader.leading
        assert view is not None
        records = tuple(leader.journal[after:])
        if records:
            last = leader.journal[after - 1] if after else None
            self._send(leader.name, self._other(leader).name, "records", view.seat.epoch, after, last, records)

    # ---- machines ---------------------------------------------------------------------------------------------------

    def _client(self, machine: Machine) -> None:
        view = machine.leading
        if view is None:
            return
        self.ops += 1
        step = 1 + max((one for _, one in machine.journal), default=0)
        machine.journal.append((self.ops, step))
        self._place("after the commit")
        machine.waiting.append((self.ops, len(machine.journal)))
        self._do(machine, view.on_committed(len(machine.journal)))
        if view.attached:
            self._offer(machine, view.acked)

    def _tick(self, machine: Machine) -> None:
        if machine.leading is not None:
            machine.shown_lag = machine.leading.lag
            self._do(machine, machine.leading.on_tick())
            if machine.leading is not None and self.random.random() < 0.1:
                machine.leading.on_detached(machine.leading.attached)
        elif machine.following is not None:
            last = machine.journal[-1] if machine.journal else None
            self._send(machine.name, self._other(machine).name, "attach", machine.seat.me, len(machine.journal), last)

    def _order(self, machine: Machine, order: str) -> None:
        view = machine.leading
        if view is None:
            return
        if order == "sync":
            commands = view.on_sync_ordered()
            if self.plant == "early sync":
                view._must_reach = 0
                commands += view.on_tick()
            self._do(machine, commands)
        else:
            self._do(machine, view.on_async_ordered(confirmed=False))

    def _promote(self, machine: Machine, *, confirmed: bool) -> None:
        view = machine.following
        if view is None:
            return
        if not confirmed:
            self._do(machine, view.on_promotion_ordered(confirmed=False))
            return
        held = self.held
        if held is None or (held.leader == self._other(machine).seat.me and held.epoch == machine.seat.epoch):
            self._do(machine, view.on_promotion_ordered(confirmed=True))  # a person looks at the witness, too

    def _do(self, machine: Machine, commands: Sequence[object]) -> None:
        for command in commands:
            match command:
                case Keep(seat=seat):
                    self._place("before the seat is kept")
                    promoted = (machine.seat.role, seat.role) == (SeatRole.FOLLOWS, SeatRole.LEADS)
                    machine.seat = seat
                    if promoted:
                        self._check_promotion(machine)
                    self._place("after the seat is kept")
                case AskWitness(request=request):
                    self._send(machine.name, WITNESS, request)
                case LetGo():
                    self._release(machine)
                case Fence():
                    machine.leading, machine.up = None, False
                case Promoted():
                    self._start(machine)
                case NotPromoted():
                    pass

    def _release(self, machine: Machine) -> None:
        view = machine.leading
        assert view is not None
        machine.shown_lag = view.lag
        answerable = view.committed if self.plant == "answers at once" else view.answerable
        while machine.waiting and machine.waiting[0][1] <= answerable:
            self._place("before an answer")
            operation, position = machine.waiting.pop(0)
            self._told(machine, view, operation, machine.journal[position - 1][1])

    # ---- the book ---------------------------------------------------------------------------------------------------

    def _told(self, machine: Machine, view: Leading, operation: int, step: int) -> None:
        epoch, book = view.seat.epoch, self.book
        if epoch < book.highest:
            raise Violation(f"{machine.name} acknowledged {operation} in epoch {epoch}, after epoch {book.highest}")
        book.highest = epoch
        if step in book.steps:
            raise Violation(f"outer step {step} was acknowledged as {book.steps[step]} and as {operation}")
        book.steps[step] = operation
        book.acked[operation] = (epoch, machine.name, view.seat.waits)
        book.acks_waiting += view.seat.waits

    def _check_promotion(self, machine: Machine) -> None:
        here = {operation for operation, _ in machine.journal}
        lost = [one for one in self.book.acked if one not in here]
        waited = [one for one in lost if self.book.acked[one][2]]
        if waited:
            raise Violation(f"{machine.name} was promoted without {waited}, which were acknowledged in sync")
        other = self._other(machine)
        self.book.promotions["by person" if not self._granted(machine) else "by witness"] += 1
        if self._granted(machine) and lost:
            raise Violation(f"{machine.name} was promoted by the witness without {lost}")
        if len(lost) > other.shown_lag:
            raise Violation(f"{len(lost)} are lost with {other.name}, which showed a lag of {other.shown_lag}")
        self.book.lost_async += len(lost)
        for one in lost:  # told, as async's price: what is done again is not done twice
            del self.book.acked[one]
        self.book.steps = {step: one for step, one in self.book.steps.items() if one not in lost}

    def _granted(self, machine: Machine) -> bool:
        return self.held is not None and self.held.leader == machine.seat.me and self.held.epoch == machine.seat.epoch

    def _require_alive(self) -> None:
        leaders = [one for one in self.machines.values() if one.leading is not None]
        if not any(one.leading is not None and one.leading.answerable >= 0 for one in leaders):
            raise Violation(f"nobody answers in the end: {[one.seat for one in self.machines.values()]}, {self.held}")
        best = max(leaders, key=lambda one: one.seat.epoch)
        here = {operation for operation, _ in best.journal}
        lost = [one for one in self.book.acked if one not in here]
        if lost:
            raise Violation(f"{lost} were acknowledged and are not in {best.name}'s journal")
