"""A leader's view: which of its commits it may answer for, and when it leads no more.

Decides; touches nothing: events in, commands out, to be carried out in their order, `Keep` durably before the next.
Always: while it waits for its follower (`Seat.waits`), nothing is answered that the follower has not acknowledged; the
witness hears `sync` only after the follower has all that was answered before, and the wait ends only when the witness
has said `async`, or on a person's word that the other machine is off. With a witness, a leader that is started answers
nothing until it heard that nobody else leads; one that waits needs not ask, since a promoted follower acknowledges
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from coordinator.standby.seat import FIRST_EPOCH, Held, Mode, Request, Seat, SeatRole, WitnessAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Write the seat down before anything else is done."""

    seat: Seat


@dataclass(frozen=True, slots=True, kw_only=True)
class AskWitness:
    """Send it this; the answer, if one comes, is an event."""

    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class LetGo:
    """Answers may go out again as far as `Leading.answerable` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """This machine leads no more."""

    why: str


LeadingCommand = Keep | AskWitness | LetGo | Fence


class Leading:
    """One process's. `number`s are the journal's positions."""

    def __init__(self, seat: Seat, *, committed: int, has_witness: bool) -> None:
        self.seat = seat
        self.committed = committed
        self.acked = 0
        """What the follower that is, or was last, attached has; it counts where the seat names that one."""
        self.attached = ""
        self._acked_by = ""
        self._has_witness = has_witness
        self._held: Held | None = None
        self._number: int | None = None
        self._checked = not has_witness
        self._must_reach = committed
        """Before the witness hears `sync`, the follower must have as much."""

    @property
    def answerable(self) -> int:
        """The last commit that may be answered for."""
        if self.seat.role is not SeatRole.LEADS:
            return -1
        if self.seat.waits:
            return min(self.acked, self.committed) if self.attached_counts else -1
        return self.committed if self._checked else -1

    @property
    def attached_counts(self) -> bool:
        """Whether `acked` is that of the follower for whom this leader waits."""
        return self._acked_by == self.seat.follower

    @property
    def follower(self) -> str:
        """Whose acknowledgements are counted; empty: nobody's."""
        return self._acked_by

    @property
    def lag(self) -> int:
        """Commits that the follower has not acknowledged: what is lost with this machine, at the most."""
        return self.committed - (self.acked if self._acked_by else 0)

    @property
    def trouble(self) -> str:
        """Why answers wait, in words; empty where they do not."""
        if self.seat.role is SeatRole.FENCED:
            return "another machine leads this run now"
        if self.answerable >= self.committed:
            return ""
        if self.seat.waits:
            who = "its follower, which is behind" if self.attached else "its follower, which is not there"
            return f"every answer waits for {who}"
        return "the witness has not said yet that no other machine leads this run"

    # ---- events -----------------------------------------------------------------------------------------------------

    def on_committed(self, position: int) -> list[LeadingCommand]:
        """The journal holds everything up to `position`."""
        self.committed = position
        return [] if self.seat.waits else [LetGo()]

    def on_attached(self, follower: str, position: int) -> str:
        """A follower is there and has so much; why it is not wanted, or nothing."""
        if self.seat.role is not SeatRole.LEADS:
            return "this machine leads the run no more"
        if self.seat.waits and follower != self.seat.follower:
            return "the run waits for another follower: leave sync first"
        self.attached = self._acked_by = follower
        self.acked = position
        return ""

    def on_detached(self, follower: str) -> None:
        """It is gone."""
        if self.attached == follower:
            self.attached = ""

    def on_acked(self, follower: str, position: int) -> list[LeadingCommand]:
        """It holds everything up to `position`, durably."""
        if follower != self._acked_by or position > self.committed:
            return []
        self.acked = max(self.acked, position)
        commands: list[LeadingCommand] = [LetGo()]
        if self.seat.mode is Mode.ENTERING:
            commands += self._entering()
        return commands

    def on_sync_ordered(self) -> list[LeadingCommand]:
        """The operator wants every answer to wait for the follower; it must be there (`attached`)."""
        if self.seat.mode in (Mode.SYNC, Mode.ENTERING) or not self.attached or self.seat.role is not SeatRole.LEADS:
            return []
        self._must_reach = self.committed
        commands = self._keep(mode=Mode.ENTERING, follower=self.attached)
        return commands + self._entering()

    def on_async_ordered(self, *, confirmed: bool) -> list[LeadingCommand]:
        """The operator wants answers to wait no more. `confirmed`: a person says that the other machine is off."""
        if self.seat.role is not SeatRole.LEADS:
            return []
        if confirmed:
            self._checked = True
            return [*self._keep(mode=Mode.ASYNC, follower=""), LetGo()]
        if self.seat.mode is Mode.ASYNC or not self._has_witness:
            return []
        return [*self._keep(mode=Mode.LEAVING), *self._ask()]

    def on_witness_named(self) -> None:
        """There is a witness from now on, or another one."""
        self._has_witness, self._held, self._number = True, None, None

    def on_tick(self) -> list[LeadingCommand]:
        """Every few seconds: what was asked and not answered is asked again, and whether somebody else leads."""
        if self.seat.role is not SeatRole.LEADS:
            return []
        return self._entering() if self.seat.mode is Mode.ENTERING else self._ask()

    def on_witness(self, request: Request, answer: WitnessAnswer) -> list[LeadingCommand]:
        """The witness answered `request`."""
        if self.seat.role is not SeatRole.LEADS:
            return []
        held = answer.held
        other = held is not None and (held.epoch, held.leader) != (self.seat.epoch, self.seat.me)
        if held is not None and other and held.epoch >= self.seat.epoch:
            return self.on_higher_epoch(held.epoch)
        self._held, self._number = held, 0 if held is None else held.number
        if held is None or held.epoch < self.seat.epoch:
            # It lost what it knew, or a promotion was made without it: this machine's seat is the newer knowledge.
            return [] if request.want is not None and not answer.granted and answer.why else self._ask()
        return self._agreed(held, granted=answer.granted)

    def on_higher_epoch(self, epoch: int) -> list[LeadingCommand]:
        """Another machine leads epoch `epoch`, as the witness or that machine itself said."""
        if self.seat.role is not SeatRole.LEADS:
            return []
        return [*self._keep(role=SeatRole.FENCED), Fence(why=f"another machine leads this run, in epoch {epoch}")]

    # ---- what follows -----------------------------------------------------------------------------------------------

    def _agreed(self, held: Held, *, granted: bool) -> list[LeadingCommand]:
        """The witness knows this machine as the leader."""
        commands: list[LeadingCommand] = []
        if not self._checked:
            self._checked = True
            commands.append(LetGo())
        mode = self.seat.mode
        if mode is Mode.ENTERING and granted and held.sync and held.follower == self.seat.follower:
            commands += self._keep(mode=Mode.SYNC)
        elif mode is Mode.LEAVING and granted and not held.sync:
            commands += [*self._keep(mode=Mode.ASYNC, follower=""), LetGo()]
        elif mode is Mode.LEAVING or (mode is Mode.ASYNC and held.sync):
            commands += self._ask()
        elif mode is Mode.ENTERING and not granted:
            commands += self._entering()
        return commands

    def _entering(self) -> list[LeadingCommand]:
        if not (self.attached_counts and self.acked >= self._must_reach):
            return []
        return self._ask() if self._has_witness else self._keep(mode=Mode.SYNC)

    def _ask(self) -> list[LeadingCommand]:
        """A look; or, where what the witness keeps is known and has to become something else, that."""
        if not self._has_witness:
            return []
        wants_sync = self.seat.mode in (Mode.ENTERING, Mode.SYNC)
        if self._number is None or self._is_as_wanted(sync=wants_sync):
            return [AskWitness(request=Request(by=self.seat.me))]
        follower = self.seat.follower if wants_sync else ""
        want = Held(number=0, epoch=self.seat.epoch, leader=self.seat.me, sync=wants_sync, follower=follower)
        confirmed = self.seat.epoch > FIRST_EPOCH
        request = Request(by=self.seat.me, expects=self._number, want=want, confirmed=confirmed)
        return [AskWitness(request=request)]

    def _is_as_wanted(self, *, sync: bool) -> bool:
        held = self._held
        if held is None or held.epoch != self.seat.epoch or self.seat.mode in (Mode.ENTERING, Mode.LEAVING):
            return False  # a wait is begun and ended by a grant alone: it outdoes whatever request comes late
        return held.sync == sync and held.follower == (self.seat.follower if sync else "")

    def _keep(self, **changes: object) -> list[LeadingCommand]:
        self.seat = replace(self.seat, **changes)  # type: ignore[arg-type]
        return [Keep(seat=self.seat)]
