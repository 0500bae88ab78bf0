"""A served run, an honest worker beside every attack, and a client that sends whatever a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import secrets
import shutil
import sysconfig
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from coordinator.runfolder import RunFolder, init_run
from coordinator.server import CoordinatorServer
from coordinator.settings import RunSettings
from coordinator.throttle import EdgeLimits, Throttle
from moe.layout import submission_specs
from protocol.codecs import FP32
from protocol.framing import frames_of
from protocol.identity import PrivateIdentity
from protocol.joinlink import JoinLink
from protocol.limits import PROTOCOL_VERSION, channel_options
from protocol.signing import CallSigner
from protocol.tensors import encode_tensors
from protocol.tls import COORDINATOR_NAME
from protocol.v1 import barnraise_pb2 as pb

torch.set_num_threads(1)

SERVICE = "/barnraise.protocol.v1.Coordinator/"
ENGINE: dict[str, Any] = {
    "max_rounds": 100,
    "replicas": 1,
    "quorum": 1,
    "gather_s": 0.0,
    "screening": {"enabled": False},
    "inner": {"inner_steps": 2, "batch_sequences": 2, "warmup_steps": 0},
}


@pytest.fixture(scope="session")
def pristine_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody has served yet, to be copied."""
    text = tmp_path_factory.mktemp("text")
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in ("abc.py", "ast.py", "bdb.py", "calendar.py", "cmd.py", "code.py", "codecs.py", "csv.py", "copy.py",
                 "dis.py", "enum.py", "functools.py", "glob.py", "heapq.py", "inspect.py", "locale.py"):  # fmt: skip
        shutil.copy(library / name, text / name)
    folder = tmp_path_factory.mktemp("pristine") / "run"
    small = {"preset": "tiny", "data": str(text), "port": 0, "sequence_length": 32, "codec": "fp32"}
    init_run(folder, RunSettings(**small, heldout_limit=4, screening_sequences=4, engine=ENGINE))
    return folder


@pytest.fixture
def run(pristine_run: Path, tmp_path: Path) -> RunFolder:
    """A fresh copy of the pristine run."""
    shutil.copytree(pristine_run, tmp_path / "run")
    return RunFolder.open(tmp_path / "run")


class Clock:
    """A clock that a test sets; it may also advance by itself each time that it is read."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.step_s = 0.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """The clock by which the served run counts rates and waits."""
    return Clock()


@pytest.fixture
def limits() -> EdgeLimits:
    """The served run's limits; a module that wants others overrides this."""
    return EdgeLimits()


@pytest.fixture
async def server(run: RunFolder, limits: EdgeLimits, clock: Clock) -> AsyncIterator[CoordinatorServer]:
    """The run, served."""
    started = CoordinatorServer(run, throttle=Throttle(limits=limits, clock=clock))
    await started.start()
    yield started
    await started.stop(0.0)


class RawClient:
    """Signs calls; everything else is the test's business."""

    def __init__(self, link: JoinLink, run: RunFolder, identity: PrivateIdentity | None = None) -> None:
        self.link = link
        self.run = run
        self.identity = identity or PrivateIdentity.generate()
        self.audience = bytes.fromhex(link.fingerprint)
        self.signer = CallSigner(self.identity, audience=self.audience)
        self.capability = pb.Capability(device="cpu", memory_bytes=8 << 30)
        self.channel = self.dial()

    def dial(self, options: Any = None, **arguments: Any) -> Any:
        """A channel to the run over TLS; by default with a worker's own options."""
        credentials = grpc.ssl_channel_credentials(root_certificates=self.run.authority().cert_pem)
        chosen = channel_options() if options is None else options
        named = [*chosen, ("grpc.ssl_target_name_override", COORDINATOR_NAME)]
        return grpc.aio.secure_channel(self.link.address, credentials, options=named, **arguments)

    async def raw(self, name: str, body: bytes, *, metadata: Any = None, channel: Any = None, **kw: Any) -> bytes:
        method = name if name.startswith("/") else SERVICE + name
        metadata = self.signer.metadata(method, body) if metadata is None else metadata
        call = (channel or self.channel).unary_unary(method)
        return bytes(await call(body, **{"timeout": 20.0, "metadata": metadata, **kw}))

    async def call(self, name: str, request: Any, reply: Any, **kw: Any) -> Any:
        return reply.FromString(await self.raw(name, request.SerializeToString(), **kw))

    async def enrol(self, **changes: Any) -> pb.EnrolReply:
        fields = {
            "protocol_version": PROTOCOL_VERSION,
            "public_key": self.identity.public_key,
            "invite": self.link.invite,
            "name": "raw",
            "capability": self.capability,
        }
        return await self.call("Enrol", pb.EnrolRequest(**(fields | changes)), pb.EnrolReply)

    def opening(self, **changes: Any) -> pb.OpenSessionRequest:
        fields = {
            "protocol_version": PROTOCOL_VERSION,
            "public_key": self.identity.public_key,
            "nonce": secrets.token_bytes(16),
            "capability": self.capability,
        }
        return pb.OpenSessionRequest(**(fields | changes))

    async def open(self, **changes: Any) -> pb.OpenSessionReply:
        self.signer = CallSigner(self.identity, audience=self.audience)
        reply = await self.call("OpenSession", self.opening(**changes), pb.OpenSessionReply)
        self.signer = CallSigner(self.identity, reply.session_id, audience=self.audience)
        return reply

    async def beat(self) -> pb.HeartbeatReply:
        return await self.call("Heartbeat", pb.HeartbeatRequest(), pb.HeartbeatReply)

    async def acquire(self, wait_s: float = 10.0) -> pb.AcquireLeaseReply:
        return await self.call("AcquireLease", pb.AcquireLeaseRequest(wait_s=wait_s), pb.AcquireLeaseReply)

    async def commit(self, lease: pb.Lease, payload: bytes, **changes: Any) -> pb.CommitSubmissionReply:
        fields = {
            "lease_id": lease.lease_id,
            "digest": hashlib.sha256(payload).digest(),
            "payload_bytes": len(payload),
            "codec": "fp32",
            "inner_steps_done": lease.inner_steps,
            "train_loss_first": 5.0,
            "train_loss_last": 4.0,
            "train_s": 0.1,
        }
        request = pb.CommitSubmissionRequest(**(fields | changes))
        return await self.call("CommitSubmission", request, pb.CommitSubmissionReply)

    def uploading(self, lease: pb.Lease, payload: bytes, *, frames: Any = None, timeout: float = 20.0, **changes: Any):
        fields = {
            "lease_id": lease.lease_id,
            "digest": hashlib.sha256(payload).digest(),
            "payload_bytes": len(payload),
            "offset": 0,
        }
        header = pb.UploadHeader(**(fields | changes)).SerializeToString()

        async def messages() -> AsyncIterator[bytes]:
            yield header
            if hasattr(frames, "__aiter__"):
                async for piece in frames:
                    yield piece
                return
            honest = frames_of(lambda start, length: payload[start : start + length], len(payload))
            for piece in honest if frames is None else frames:
                yield piece

        method = SERVICE + "Upload"
        call = self.channel.stream_unary(method)
        return call(messages(), timeout=timeout, metadata=self.signer.metadata(method, header))

    async def upload(self, lease: pb.Lease, payload: bytes, **kw: Any) -> pb.UploadReply:
        return pb.UploadReply.FromString(await self.uploading(lease, payload, **kw))

    def downloading(self, timeout: float = 20.0, **fields: Any) -> Any:
        body, method = pb.DownloadRequest(**fields).SerializeToString(), SERVICE + "Download"
        call = self.channel.unary_stream(method)
        return call(body, timeout=timeout, metadata=self.signer.metadata(method, body))

    async def download(self, **fields: Any) -> list[bytes]:
        return [frame async for frame in self.downloading(**fields)]

    def submission(self, lease: pb.Lease, *, scale: float = 1e-3, seed: int = 0) -> bytes:
        """A well-formed submission of small random numbers."""
        generator = torch.Generator().manual_seed(seed)
        specs = submission_specs(self.run.layout(), lease.columns)
        return encode_tensors({s.name: scale * torch.randn(s.shape, generator=generator) for s in specs}, FP32)


@pytest.fixture
async def join(run: RunFolder, server: CoordinatorServer) -> AsyncIterator[Callable[..., Any]]:
    """Makes clients that are enrolled and have a session."""
    clients: list[RawClient] = []

    async def make(*, enrolled: bool = True, columns: int = 0, life_s: float = 60.0) -> RawClient:
        (link,) = await server.create_invites(expires_in_s=life_s)
        client = RawClient(JoinLink.parse(link), run)
        client.capability.max_columns = columns
        clients.append(client)
        if enrolled:
            await client.enrol()
            await client.open()
        return client

    yield make
    for client in clients:
        await client.channel.close()


@pytest.fixture
async def honest(server: CoordinatorServer, join: Callable[..., Any]) -> AsyncIterator[RawClient]:
    """A worker with a lease when the attack begins, which delivers its submission when it is over."""
    client = await join(columns=2)
    lease = (await client.acquire()).lease
    yield client
    await client.beat()
    payload = client.submission(lease, seed=7)
    await client.commit(lease, payload)
    assert (await client.upload(lease, payload)).complete
    assert server._run is not None
    assert not server._run.pump.failed.done()


class Refusal:
    """Expects a gRPC status, and a sentence that contains the given words."""

    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        self._code, self._words = code, words

    async def of(self, call: Awaitable[Any]) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is self._code, f"{caught.value.code()}: {caught.value.details()}"
        assert self._words in (caught.value.details() or ""), caught.value.details()


@pytest.fixture
def refused() -> type[Refusal]:
    """`await refused(code, words).of(call)`."""
    return Refusal


@pytest.fixture
def replace() -> Callable[..., EdgeLimits]:
    """EdgeLimits with some changed."""
    return lambda **changes: dataclasses.replace(EdgeLimits(), **changes)


@pytest.fixture
def cancelling() -> Callable[..., Any]:
    """A block whose background call is cancelled at its end."""

    @contextlib.asynccontextmanager
    async def block(call: Any) -> AsyncIterator[Any]:
        try:
            yield call
        finally:
            call.cancel()
            await asyncio.sleep(0)

    return block


@pytest.fixture
def files_of(run: RunFolder) -> Callable[[], Iterator[str]]:
    """Every file at and beside the run folder: what a path trick would add to."""
    return lambda: iter(sorted(str(path) for path in run.root.parent.rglob("*") if path.is_file()))


@pytest.fixture
def client_type() -> type[RawClient]:
    """For tests that start the server themselves."""
    return RawClient
