"""A follower's view: whose records it takes, and when it may lead itself.

Decides; touches nothing, as `leading.py`. Always: records are taken only where they go on from what is here, under the
chain that the leader names; a lower epoch than one that was seen is refused; what was promoted takes nothing more. It
leads by itself only on the witness's word; else a person must say that the other machine is off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from coordinator.standby.leading import AskWitness, Keep
from coordinator.standby.seat import Held, Mode, Request, Seat, SeatRole, WitnessAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """This machine leads from now on."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotPromoted:
    """It does not, and why."""

    why: str


FollowingCommand = Keep | AskWitness | Promoted | NotPromoted
CONFIRM = "say that the other machine is off, and it is done without"


class Following:
    """One process's."""

    def __init__(self, seat: Seat, *, has_witness: bool) -> None:
        self.seat = seat
        self.has_witness = has_witness
        self._wants_to_lead = False

    @property
    def follows(self) -> bool:
        """Whether records are taken."""
        return self.seat.role is SeatRole.FOLLOWS

    @property
    def may_lead_soon(self) -> bool:
        """Whether the witness is asked to let this machine lead."""
        return self._wants_to_lead

    def on_leader(self, epoch: int) -> tuple[list[FollowingCommand], str]:
        """A leader of this epoch is there; why it is not followed, or nothing."""
        if not self.follows:
            return [], f"this machine leads the run itself, in epoch {self.seat.epoch}"
        if epoch < self.seat.epoch:
            return [], f"it leads epoch {epoch}, and epoch {self.seat.epoch} was begun: it is fenced"
        self._wants_to_lead = False
        return (self._keep(epoch=epoch), "") if epoch > self.seat.epoch else ([], "")

    def on_base_begun(self) -> list[FollowingCommand]:
        """What is here is about to be replaced by the leader's run as a whole."""
        return self._keep(whole=False)

    def on_base_whole(self) -> list[FollowingCommand]:
        """It has been, durably."""
        return self._keep(whole=True)

    def on_promotion_ordered(self, *, confirmed: bool) -> list[FollowingCommand]:
        """A person, or the silence of the leader, wants this machine to lead."""
        if self.seat.role is SeatRole.LEADS:
            return [Promoted(epoch=self.seat.epoch)]
        if not self.seat.whole:
            return [NotPromoted(why="what is here is not a whole run yet")]
        if confirmed:
            return self._promoted(self.seat.epoch + 1)
        if not self.has_witness:
            return [NotPromoted(why=f"there is no witness that could tell: {CONFIRM}")]
        self._wants_to_lead = True
        return [AskWitness(request=Request(by=self.seat.me))]

    def on_witness(self, request: Request, answer: WitnessAnswer) -> list[FollowingCommand]:
        """The witness answered."""
        if not self.follows or not self._wants_to_lead:
            return []
        held = answer.held
        if held is None:
            return self._not_promoted(f"the witness knows nothing of this run: {CONFIRM}")
        if held.leader == self.seat.me and held.epoch > self.seat.epoch:
            return self._promoted(held.epoch)
        if held.epoch != self.seat.epoch or not held.sync or held.follower != self.seat.me:
            return self._not_promoted(f"{_hindrance(held, self.seat)}: {CONFIRM}")
        want = Held(number=0, epoch=held.epoch + 1, leader=self.seat.me, sync=False)
        return [AskWitness(request=Request(by=self.seat.me, expects=held.number, want=want))]

    def on_no_witness(self) -> list[FollowingCommand]:
        """It did not answer."""
        return self._not_promoted(f"the witness does not answer: {CONFIRM}") if self._wants_to_lead else []

    def _promoted(self, epoch: int) -> list[FollowingCommand]:
        kept = self._keep(role=SeatRole.LEADS, epoch=epoch, mode=Mode.ASYNC, follower="")
        return [*kept, Promoted(epoch=epoch)]

    def _not_promoted(self, why: str) -> list[FollowingCommand]:
        self._wants_to_lead = False
        return [NotPromoted(why=why)]

    def _keep(self, **changes: object) -> list[FollowingCommand]:
        self.seat = replace(self.seat, **changes)  # type: ignore[arg-type]
        return [Keep(seat=self.seat)]


def _hindrance(held: Held, seat: Seat) -> str:
    if held.epoch != seat.epoch:
        return f"the run is at epoch {held.epoch}, and what is here is of epoch {seat.epoch}"
    if not held.sync:
        return "the leader answered without waiting for this machine (async), so some of it may not be here"
    return "the leader waits for another follower"
