"""What an agent and its trainer's process say to each other: a closed set of small messages, and no other.

Decides their fields alone. Both sides are this program, on this machine, of this user: nothing here comes from the
network unchecked, and nothing is unpickled. Tensors, sequences and payloads are never in a message: they lie in files
under the run's folder, and are named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter

from protocol.causes import Cause
from protocol.ids import BlockId, Digest
from protocol.lease import TrunkPart
from worker.allowance import DiskCap
from worker.fetched import MeasuredPart
from worker.lease import ReceivedLease, RunDescription
from worker.machine.machine import Machine
from worker.outbox import Submission
from worker.steps import Way

# ---- from the agent -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """The first: where the run's files are, and how its owner wants progress to be kept."""

    kind: Literal["begin"] = "begin"
    folder: str
    keep_progress_every_s: float
    progress_bytes_a_day: int | None
    disk_pause_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What is this machine? A `Machine`."""

    kind: Literal["probe"] = "probe"
    number: int
    device: str | None
    memory_bytes: int | None
    threads: int | None
    ruled: dict[str, int | None]
    """Another cap on memory, by kind of device."""
    others_bytes: int
    """What the agent's process takes of a cap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Understand:
    """A `Layout`."""

    kind: Literal["understand"] = "understand"
    number: int
    description: RunDescription


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanShard:
    """A `ShardOffer`."""

    kind: Literal["plan"] = "plan"
    number: int
    description: RunDescription
    machine: Machine
    most_columns: int | None
    cap: DiskCap


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSpeed:
    """Tokens a second."""

    kind: Literal["speed"] = "speed"
    number: int
    description: RunDescription
    machine: Machine
    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeSteps:
    """Nothing: the block lies in the cache's folder then."""

    kind: Literal["steps"] = "steps"
    number: int
    description: RunDescription
    way: Way


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeSubmission:
    """Bytes."""

    kind: Literal["size"] = "size"
    number: int
    description: RunDescription
    columns: tuple[int, ...]
    trunk: TrunkPart
    codec: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureLosses:
    """A `FetchedItem`, its payload and sequences in files: two lists of losses."""

    kind: Literal["measure"] = "measure"
    number: int
    description: RunDescription
    machine: Machine
    item_id: str
    columns: tuple[int, ...]
    codec: str
    digests: dict[BlockId, Digest]
    parts: tuple[MeasuredPart, ...]
    trunk: TrunkPart
    payload: str
    sequences: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainLease:
    """A `FetchedLease`, its sequences in a file. Ends in `LeaseTrained` or `LeaseNotTrained`, unless it is stopped."""

    kind: Literal["train"] = "train"
    number: int
    description: RunDescription
    machine: Machine
    lease: ReceivedLease
    digests: dict[BlockId, Digest]
    sequences: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopLease:
    """Stop it at the end of its micro-step."""

    kind: Literal["stop"] = "stop"
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceTraining:
    """Train for this share of the time: whatever is in training, and what follows."""

    kind: Literal["pace"] = "pace"
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomSaid:
    """The answer to `RoomAsked`."""

    kind: Literal["room"] = "room"
    number: int
    given: bool


TrainerOrder = Annotated[
    Begin
    | Probe
    | Understand
    | PlanShard
    | MeasureSpeed
    | TakeSteps
    | SizeSubmission
    | MeasureLosses
    | TrainLease
    | StopLease
    | PaceTraining
    | RoomSaid,
    Field(discriminator="kind"),
]

# ---- from the trainer's process -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What an order asked for."""

    kind: Literal["answer"] = "answer"
    number: int
    found: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class NotAnswered:
    """Why it came to nothing."""

    kind: Literal["no answer"] = "no answer"
    number: int
    error: str
    """A class of protocol/errors.py; any other name is a failure of ours, or of a library's."""
    text: str
    cause: Cause | None
    disk_errno: int | None = None
    """Where it was the disk: there may be room to make for it."""
    device_lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NewsSaid:
    """For the volunteer."""

    kind: Literal["said"] = "said"
    event: str
    text: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStepped:
    """An inner step of lease `number` ended."""

    kind: Literal["step"] = "step"
    number: int
    done: int
    total: int
    loss: float | None
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTrained:
    """Its submission is in the outbox."""

    kind: Literal["trained"] = "trained"
    number: int
    submission: Submission


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseNotTrained:
    """The fields of a `Trouble`."""

    kind: Literal["not trained"] = "not trained"
    number: int
    cause: Cause | None
    detail: str
    device_lost: bool


RoomWanted = Literal["room", "progress", "way"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomAsked:
    """The agent keeps the block cache: may this be written, or can anything give way?"""

    kind: Literal["room"] = "room"
    number: int
    want: RoomWanted
    coming_bytes: int = 0
    submission_bytes: int = 0


TrainerWord = Annotated[
    Answered | NotAnswered | NewsSaid | LeaseStepped | LeaseTrained | LeaseNotTrained | RoomAsked,
    Field(discriminator="kind"),
]

ORDER: Final[TypeAdapter[Any]] = TypeAdapter(TrainerOrder)
WORD: Final[TypeAdapter[Any]] = TypeAdapter(TrainerWord)
