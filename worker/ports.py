"""What a worker needs of the world, each as narrow as it is used: the coordinator, who gives blocks, and the trainer.

Decides nothing. Real ones: `client.CoordinatorClient` (coordinator and block source), `apart.trainer.ApartTrainer` (in
whose process there is a `train.training.TrainingRoom`), `train.lease_state.LeaseStates`; the deterministic simulation
has its own. Files stand in worker/files.py, time in worker/timing.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from protocol.ids import Digest, LeaseId
from protocol.v1 import barnraise_pb2 as pb

if TYPE_CHECKING:
    from worker.fetched import FetchedItem, FetchedLease
    from worker.outbox import Submission
    from worker.train.local_state import LocalState
    from worker.trouble import Trouble

Result = TypeVar("Result")

ReadPart = Callable[[int, int], bytes]
"""(offset, length) to exactly these bytes."""


class BlockSource(Protocol):
    """Who can give a block's bytes. Nobody has to be believed: whoever asks checks the digest."""

    def block(self, digest: Digest, payload_bytes: int, offset: int) -> AsyncGenerator[bytes | memoryview, None]:
        """The bytes from `offset` on, in order, in pieces of any size. Unavailable: worth another try."""


class Coordinator(BlockSource, Protocol):
    """One coordinator's calls. Each raises a `RemoteError`; those that may be repeated are, until they are answered."""

    async def certificate(self, background: Background) -> bytes:
        """PEM of the coordinator's certificate, checked against nothing but the join link."""

    def connect(self, ca_pem: bytes) -> None:
        """Make ready for calls to whoever has this certificate."""

    async def close(self) -> None:
        """End calls that are under way."""

    async def patiently(self, step: Callable[[], Awaitable[Result]]) -> Result:
        """`step`, again after a pause where it ends in Unavailable, as long as it takes."""

    async def enrol(self, request: pb.EnrolRequest) -> pb.EnrolReply:
        """Redeem the invite."""

    async def open_session(self, capability: pb.Capability, team: str | None = None) -> pb.OpenSessionReply:
        """Prove the key; later calls are made in this session. `team` None: as before."""

    async def list_receipts(self, after: int) -> pb.ListReceiptsReply:
        """What was earned since."""

    async def acquire_lease(self, wait_s: float) -> pb.AcquireLeaseReply:
        """Ask for work."""

    async def return_lease(self, lease_id: str, reason: str) -> None:
        """Hand a lease back."""

    async def heartbeat(self, request: pb.HeartbeatRequest, timeout_s: float) -> pb.HeartbeatReply:
        """A sign of life, tried once."""

    async def commit_submission(self, request: pb.CommitSubmissionRequest) -> pb.CommitSubmissionReply:
        """Commit to a digest."""

    async def upload(self, header: pb.UploadHeader, read: ReadPart, on_bytes: Callable[[int], None]) -> pb.UploadReply:
        """Send a payload from the header's offset on, tried once."""

    async def get_manifest(self, version: int) -> pb.GetManifestReply:
        """The signed manifest of a version."""

    async def download_lease_data(self, lease_id: str, max_bytes: int, on_bytes: Callable[[int], None]) -> bytes:
        """The payload with the lease's sequences."""

    async def download_measure_data(self, item_id: str, max_bytes: int) -> bytes:
        """The payload with an item's sequences."""

    async def download_measure_payload(self, item_id: str, payload_bytes: int, digest: Digest) -> bytes:
        """The submission that an item is about, under its digest."""

    async def sources(self, request: pb.SourcesRequest) -> pb.SourcesReply:
        """Who has the blocks that are wanted, and which may be taken from the coordinator."""

    async def archive(self, request: pb.ArchiveRequest) -> pb.ArchiveReply:
        """What is to be kept whole, by whoever does that."""

    async def answer_measure(self, request: pb.AnswerMeasureRequest) -> pb.AnswerMeasureReply:
        """What measuring an item came to."""


@dataclass(slots=True)
class Progress:
    """How far training is: written by the training thread, read by heartbeats. Plain values, so no lock."""

    inner_step: int = 0
    train_loss: float = 0.0
    tokens_per_s: float = 0.0


class Measurer(Protocol):
    """Measures somebody else's submission, on the device; called beside the event loop, one item at a time."""

    def measure(self, item: FetchedItem) -> tuple[list[float], list[float]]:
        """Losses of the item's sequences before, and of its parts' after: nats a token."""


class Trainer(Protocol):
    """Trains one lease at a time, somewhere beside the event loop."""

    @property
    def progress(self) -> Progress:
        """Of the present or last lease."""

    def start(
        self, fetched: FetchedLease, done: Callable[[Submission], None], failed: Callable[[Trouble], None]
    ) -> None:
        """Train `fetched`. Then either `done`, with the submission in the outbox, or `failed`; neither once stopped."""

    def stop(self) -> None:
        """Stop soon."""

    def rest(self) -> None:
        """Nothing is to be trained for a while: give back the memory that the last lease took, once it has stopped."""

    def wake(self) -> None:
        """The while is over."""

    def pace(self, share: float) -> None:
        """Train for this share of the time, from now on."""

    def join(self, timeout_s: float) -> bool:
        """Wait for what was stopped; whether it has ended."""


class LeaseProgress(Protocol):
    """Keeps how far a lease has come, over restarts: at most one lease's."""

    def save(self, computation: str, state: LocalState) -> None:
        """Replace what is kept, durably."""

    def load(self, computation: str) -> LocalState | None:
        """The progress of `computation`, if that is what is kept."""

    def keep_only(self, lease_id: LeaseId) -> None:
        """Progress of another lease goes."""

    @property
    def used_bytes(self) -> int:
        """Bytes of what is kept."""

    def clear(self) -> None:
        """Forget it."""


class BlockPlaces(Protocol):
    """Where whole blocks lie."""

    def path(self, digest: Digest) -> Path:
        """Of one that is here."""


class WorkDisk(Protocol):
    """The disk as training needs it: `allowance.DiskAllowance`, or what asks it from another process."""

    @property
    def blocks(self) -> BlockPlaces:
        """What was fetched."""

    @property
    def progress(self) -> LeaseProgress:
        """How far a lease has come."""

    def make_room(self, coming_bytes: int) -> bool:
        """Whether so many bytes more may be written."""

    def has_room_for_progress(self, state_bytes: int, submission_bytes: int) -> bool:
        """Whether progress may be kept beside the lease's finished work."""

    def give_way(self) -> bool:
        """The disk is full: whether anything could be deleted."""


class Background(Protocol):
    """Runs what would block the event loop."""

    @property
    def busy(self) -> bool:
        """Whether something is still running."""

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function(*arguments)`, awaited."""
