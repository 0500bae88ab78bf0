"""The witness's whole judgement: who may change what it keeps of a run, and how.

Decides by compare-and-set on `Held.number`. Always: in one epoch only its leader changes anything; another epoch is
begun by the follower for whom that leader waits (`sync`), which has all that was ever acknowledged, or on a person's
word that the other machine is off; epochs never fall. Pure: whoever calls it keeps the result on disk before
it answers.
"""

from __future__ import annotations

from dataclasses import replace

from coordinator.standby.seat import FIRST_EPOCH, Held, Request, WitnessAnswer


def judged(held: Held | None, request: Request) -> WitnessAnswer:
    """The answer to `request`, and with it what is held from now on."""
    want = request.want
    if want is None:
        return WitnessAnswer(held=held)
    number = 0 if held is None else held.number
    if request.expects != number:
        return WitnessAnswer(held=held, why=f"this is change {number}, not {request.expects}: look again")
    why = _objection(held, request, want)
    if why:
        return WitnessAnswer(held=held, why=why)
    return WitnessAnswer(held=replace(want, number=number + 1), granted=True)


def _objection(held: Held | None, request: Request, want: Held) -> str:
    """Why not; empty where nothing speaks against it."""
    if want.leader != request.by:
        return "nobody asks for another machine"
    if held is None:
        if want.epoch != FIRST_EPOCH and not request.confirmed:
            return "the witness knows nothing of this run: it cannot tell whether another machine leads it"
        return ""
    if want.epoch == held.epoch:
        return "" if held.leader == request.by else f"another machine leads epoch {held.epoch}"
    if want.epoch < held.epoch:
        return f"the run is at epoch {held.epoch} already"
    if request.confirmed:
        return ""
    if want.epoch != held.epoch + 1:
        return f"the run is at epoch {held.epoch}: a copy of another one is not in step"
    if not held.sync:
        return "the leader does not wait for its follower (async): what it acknowledged may not be here"
    return "" if held.follower == request.by else "the leader waits for another follower"
