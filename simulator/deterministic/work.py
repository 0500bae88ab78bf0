"""What a simulated run asks of training, measuring and outer steps, whether they are hashes or real.

Decides nothing: `hashwork.HashWork` and `training.RealWork` do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from numpy.typing import NDArray

from coordinator.engine.commands import AggregateRound, SlowCommand
from coordinator.engine.state import EngineState
from coordinator.work import port
from moe.layout import Layout
from protocol.arithmetic import UNKNOWN_ARITHMETIC
from protocol.ids import Digest, LeaseId
from simulator.deterministic.disk import Disk
from worker.fetched import FetchedLease
from worker.ports import LeaseProgress, Measurer

DISK_FULL = OSError(28, "No space left on device")


class MissingContent(BaseException):
    """Content that an event or command relies on is not there: never excusable, so the simulation stops.

    No `Exception`: nothing that is simulated may take it for a failure to be dealt with.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedLease:
    """What came of a lease."""

    payload: bytes
    loss_first: float = 5.0
    loss_last: float = 4.0
    micro_batch: int = 1


class Spoils(StrEnum):
    """What a submission does to an outer step, though it passes every check."""

    NOTHING = ""
    ALONE = "alone"
    """No step can be made with it."""
    TOGETHER = "together"
    """No step can be made of a block that somebody else holds, too."""
    STUBBORN = "stubborn"
    """The same, and a cautious step fails whole."""
    MODEL = "model"
    """A version that it has a part in is worse than the one before."""
    REPLAY = "replay"
    """No harm: but whoever computes its lease again comes to something else."""


def arithmetic_said(state: EngineState, lease_id: LeaseId) -> str:
    """The class in which a lease was computed: volunteers here say the truth about that."""
    record = state.leases.get(lease_id)
    return UNKNOWN_ARITHMETIC if record is None else record.arithmetic


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a coordinator's process does its slow work."""

    disk: Disk
    clock: Callable[[], float]
    is_wanted: Callable[[SlowCommand], bool]
    fails: Callable[[SlowCommand], bool]
    spoils: Callable[[LeaseId], Spoils]
    arithmetic: Callable[[LeaseId], str]
    """The class in which a lease was computed."""
    on_aggregated: Callable[[AggregateRound, Digest], None]


class Served(Protocol):
    """What a coordinator's process serves of its versions."""

    def manifest_digest(self, version: int) -> Digest | None:
        """Of a version that is kept."""

    def manifest_bytes(self, digest: Digest) -> bytes:
        """As they are signed."""

    def block(self, digest: Digest) -> bytes | None:
        """The bytes of a block that a kept version names."""

    def served(self) -> frozenset[Digest]:
        """All such blocks."""


class Texts(Protocol):
    """What a coordinator asks of its dataset for the sake of workers."""

    @property
    def digest(self) -> Digest: ...  # noqa: D102
    @property
    def licence(self) -> str: ...  # noqa: D102
    def sequences(self, seed: int, start: int, count: int, seq_len: int) -> NDArray[Any]:
        """[count, seq_len + 1] tokens."""

    def heldout_sequences(self, seq_len: int) -> int:
        """How many no lease names."""

    def heldout_all(self, seq_len: int, limit: int | None = None) -> NDArray[Any]:
        """[limit, seq_len + 1] of these."""


class SimulatedWork(Protocol):
    """What is trained, measured and stepped in a simulated run: `HashWork`, or `training.RealWork`."""

    name: str
    residency: str
    admission_work_bits: int
    most_per_range: int
    column_parts: int
    copies: int
    fallback_s: float

    @property
    def layout(self) -> Layout: ...  # noqa: D102
    @property
    def codec(self) -> str: ...  # noqa: D102
    @property
    def sequence_length(self) -> int: ...  # noqa: D102
    @property
    def heldout_limit(self) -> int: ...  # noqa: D102
    @property
    def texts(self) -> Texts: ...  # noqa: D102
    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame of an upload: a submission has a few."""

    def first_version(self, disk: Disk) -> Digest:
        """Write version 0; its manifest."""

    def executor(self, site: Site) -> port.Work:
        """The executor of a process that was just started."""

    def served(self, disk: Disk) -> Served:
        """What a process serves that was just started."""

    def progress(self, worker: int) -> LeaseProgress:
        """What a volunteer's disk holds of a lease in training."""

    def share_left(self, worker: int, fetched: FetchedLease) -> float:
        """The share of the lease that this worker's disk does not hold already."""

    def trained(self, worker: int, fetched: FetchedLease) -> TrainedLease:
        """The submission for a lease whose time is over."""

    def measurer(self, *, lies: bool) -> Measurer | None:
        """What a worker measures others' submissions with; None where none of these workers does."""

    def interrupted(self, worker: int, fetched: FetchedLease, share: float) -> None:
        """The worker's process died when `share` of what was left was done."""
