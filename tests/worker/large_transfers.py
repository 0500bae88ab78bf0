"""Two processes that move blocks of real sizes: a coordinator's, and a worker's side of the wire."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial as bound
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from protocol.manifest import BlockRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What the worker's side did; bytes are of whole frames, as they went to gRPC or came from it."""

    down_bytes: int
    up_bytes: int
    up_offsets: tuple[int, ...]
    """Where each upload began."""
    peak_growth_bytes: int
    """By how much its memory grew, at most."""


class Memory:
    """Growth of this process's resident memory over what it was when this was made."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._before_bytes = _status_bytes("VmRSS")

    def peak_growth_bytes(self) -> int:
        return _status_bytes("VmHWM") - self._before_bytes


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def serve(folder: Path, pipe: Connection) -> None:
    """A coordinator, until it is killed. Tells its port, and how far its memory grew since it was last asked."""
    import torch

    from coordinator.edge.server import CoordinatorServer
    from coordinator.run.folder import RunFolder

    torch.set_num_threads(1)

    def tell_memory() -> None:
        memory = Memory()
        with contextlib.suppress(EOFError):
            while pipe.recv():
                pipe.send(memory.peak_growth_bytes())
                memory = Memory()

    async def run() -> None:
        server = CoordinatorServer(RunFolder.open(folder))
        await server.start()
        pipe.send(server.port)
        threading.Thread(target=tell_memory, daemon=True).start()
        await asyncio.Event().wait()

    asyncio.run(run())


def move(link_text: str, ca_pem: bytes, block: BlockRef, target: Path, payload: Path, pipe: Connection) -> None:
    """Fetch `block` into `target`, then take a lease and deliver `payload` for it; tells `Moved`.

    Halfway through each it says which way ("down" or "up") and waits until it is told to go on.
    """
    from protocol.identity import PrivateIdentity
    from protocol.joinlink import JoinLink
    from worker.client import CoordinatorClient

    link, identity = JoinLink.parse(link_text), PrivateIdentity.generate()
    assert link.invite is not None
    invite = link.invite

    async def run() -> Moved:
        client = CoordinatorClient(link, identity, first_backoff_s=0.05, max_backoff_s=0.5)
        client.connect(ca_pem)
        try:
            await _begin(client, identity.public_key, invite)
            memory = Memory()
            came, went = _Halfway("down", block.payload_bytes, pipe), _Halfway("up", payload.stat().st_size, pipe)
            await _bring(client, block, target, came)
            offsets = await _deliver(client, payload, went)
            return Moved(
                down_bytes=came.total,
                up_bytes=went.total,
                up_offsets=offsets,
                peak_growth_bytes=memory.peak_growth_bytes(),
            )
        finally:
            await client.close()

    pipe.send(asyncio.run(run()))
    pipe.recv()  # what was sent is read before this end closes


class _Halfway:
    """Counts bytes, and waits once, in the middle."""

    def __init__(self, way: str, size_bytes: int, pipe: Connection) -> None:
        self._way, self._half_bytes, self._pipe = way, size_bytes // 2, pipe
        self.total = 0

    def __call__(self, count: int) -> None:
        before, self.total = self.total, self.total + count
        if before < self._half_bytes <= self.total:
            self._pipe.send(self._way)
            self._pipe.recv()


async def _begin(client: Any, public_key: bytes, invite: str) -> None:
    from protocol.limits import PROTOCOL_VERSION
    from protocol.v1 import barnraise_pb2 as pb

    capability = pb.Capability(device="cpu", memory_bytes=64 << 30)
    request = pb.EnrolRequest(
        protocol_version=PROTOCOL_VERSION, public_key=public_key, invite=invite, name="mover", capability=capability
    )
    await client.enrol(request)
    await client.open_session(capability)


async def _bring(client: Any, block: BlockRef, target: Path, came: Callable[[int], None]) -> None:
    """The block into `target`, as a fetcher brings it."""
    from worker.blocks import PartialBlock
    from worker.files import DISK

    async def step() -> None:
        partial = PartialBlock(target, DISK, block.digest, block.payload_bytes)
        async for piece in client.block(block.digest, block.payload_bytes, partial.offset):
            partial.add(piece)
            came(len(piece))
        partial.finish()

    await client.patiently(step)


async def _deliver(client: Any, payload: Path, went: Callable[[int], None]) -> tuple[int, ...]:
    """Commit and upload, as often as it takes; where each upload began."""
    from protocol.errors import Unavailable
    from protocol.v1 import barnraise_pb2 as pb
    from worker.files import DISK, file_digest

    lease, digest, size = (await client.acquire_lease(20.0)).lease, file_digest(payload), payload.stat().st_size
    named = {"lease_id": lease.lease_id, "digest": bytes.fromhex(digest), "payload_bytes": size}
    commit = pb.CommitSubmissionRequest(
        **named, codec="fp32", inner_steps_done=lease.inner_steps, train_s=0.1, micro_batch=1
    )
    offsets: list[int] = []
    while (offset := (await client.commit_submission(commit)).upload_offset) < size:
        offsets.append(offset)
        with contextlib.suppress(Unavailable):
            if (await client.upload(pb.UploadHeader(**named, offset=offset), bound(DISK.read, payload), went)).complete:
                break
    return tuple(offsets)
