"""A little run, served over loopback TLS, and a client that signs its calls and sends whatever a test wants."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
import sysconfig
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from coordinator.edge.server import CoordinatorServer
from coordinator.run.folder import RunFolder, init_run
from coordinator.settings import RunSettings
from moe.layout import submission_specs
from protocol.codecs import codec_named
from protocol.errors import FINAL_TRAILER
from protocol.framing import frames_of
from protocol.identity import PrivateIdentity
from protocol.joinlink import JoinLink
from protocol.limits import PROTOCOL_VERSION, channel_options
from protocol.signing import CallSigner
from protocol.tensors import encode_tensors
from protocol.tls import COORDINATOR_NAME
from protocol.v1 import barnraise_pb2 as pb

SERVICE = "/barnraise.protocol.v1.Coordinator/"
ENGINE: dict[str, Any] = {
    "replicas": 1,
    "quorum": 1,
    "gather_s": 0.0,
    "screening": {"enabled": False},
    "inner": {"inner_steps": 2, "batch_sequences": 2, "warmup_steps": 0},
}
"""One worker closes a round by itself, after a moment's work."""
TEXT = ("abc.py", "ast.py", "bdb.py", "calendar.py", "cmd.py", "code.py", "codecs.py", "csv.py", "copy.py",
        "dis.py", "enum.py", "functools.py", "glob.py", "heapq.py", "inspect.py", "locale.py")  # fmt: skip


def write_text(folder: Path) -> Path:
    """A little real text."""
    for name in TEXT:
        shutil.copy(Path(sysconfig.get_paths()["stdlib"]) / name, folder / name)
    return folder


def make_run(folder: Path, text: Path, engine: Mapping[str, Any]) -> Path:
    """A run that nobody has served yet, to be copied."""
    small: dict[str, Any] = {"preset": "tiny", "data": str(text), "port": 0, "sequence_length": 32, "codec": "fp32"}
    init_run(folder, RunSettings(**small, heldout_limit=4, screening_sequences=4, engine={**ENGINE, **engine}))
    return folder


def copy_run(pristine: Path, to: Path) -> RunFolder:
    """A fresh copy of a run, opened."""
    shutil.copytree(pristine, to, ignore=shutil.ignore_patterns("control"))  # a socket is no file to copy
    return RunFolder.open(to)


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
        return grpc.aio.secure_channel(self.link.target, credentials, options=named, **arguments)

    async def close(self) -> None:
        await self.channel.close()

    async def raw(self, name: str, body: bytes, *, metadata: Any = None, channel: Any = None, **kw: Any) -> bytes:
        """Call a method of the workers' service, or one named in full."""
        method = name if name.startswith("/") else SERVICE + name
        metadata = self.signer.metadata(method, body) if metadata is None else metadata
        call = (channel or self.channel).unary_unary(method)
        return bytes(await call(body, **{"timeout": 20.0, "metadata": metadata, **kw}))

    async def call(self, name: str, request: Any, reply: Any, **kw: Any) -> Any:
        return reply.FromString(await self.raw(name, request.SerializeToString(), **kw))

    async def enrol(self, **changes: Any) -> pb.EnrolReply:
        fields: dict[str, Any] = {
            "protocol_version": PROTOCOL_VERSION,
            "public_key": self.identity.public_key,
            "invite": self.link.invite,
            "name": "raw",
            "capability": self.capability,
        }
        return await self.call("Enrol", pb.EnrolRequest(**(fields | changes)), pb.EnrolReply)

    def opening(self, **changes: Any) -> pb.OpenSessionRequest:
        fields: dict[str, Any] = {
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
        fields: dict[str, Any] = {
            "lease_id": lease.lease_id,
            "digest": hashlib.sha256(payload).digest(),
            "payload_bytes": len(payload),
            "codec": "fp32",
            "inner_steps_done": lease.inner_steps,
            "train_loss_first": 5.0,
            "train_loss_last": 4.0,
            "train_s": 0.1,
            "micro_batch": 1,
        }
        request = pb.CommitSubmissionRequest(**(fields | changes))
        return await self.call("CommitSubmission", request, pb.CommitSubmissionReply)

    def uploading(self, lease: pb.Lease, payload: bytes, *, frames: Any = None, timeout: float = 20.0, **changes: Any):
        """An upload that is under way: the honest frames from the offset that it names, or those that are given."""
        fields: dict[str, Any] = {
            "lease_id": lease.lease_id,
            "digest": hashlib.sha256(payload).digest(),
            "payload_bytes": len(payload),
            "offset": 0,
        }
        header = pb.UploadHeader(**(fields | changes))
        first = header.offset if header.offset < len(payload) else 0
        honest = frames_of(lambda start, length: payload[start : start + length], len(payload), first)
        opening = header.SerializeToString()

        async def messages() -> AsyncIterator[bytes]:
            yield opening
            if hasattr(frames, "__aiter__"):
                async for piece in frames:
                    yield piece
                return
            for piece in honest if frames is None else frames:
                yield piece

        method = SERVICE + "Upload"
        call = self.channel.stream_unary(method)
        return call(messages(), timeout=timeout, metadata=self.signer.metadata(method, opening))

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
        return submission_for(self.run, lease, scale=scale, seed=seed)


def submission_for(run: RunFolder, lease: pb.Lease, *, scale: float = 1e-3, seed: int = 0) -> bytes:
    """A well-formed submission of small random numbers, in the run's codec."""
    generator = torch.Generator().manual_seed(seed)
    specs = submission_specs(run.layout(), lease.columns)
    tensors = {spec.name: scale * torch.randn(spec.shape, generator=generator) for spec in specs}
    return encode_tensors(tensors, codec_named(run.settings().codec))


@contextlib.asynccontextmanager
async def clients_of(run: RunFolder, server: CoordinatorServer) -> AsyncIterator[Callable[..., Awaitable[RawClient]]]:
    """Makes clients, by default enrolled and with a session; all are closed at the end."""
    clients: list[RawClient] = []

    async def make(
        *, enrolled: bool = True, columns: int = 0, life_s: float = 60.0, link: str | None = None
    ) -> RawClient:
        if link is None:
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
        await client.close()


class Refusal:
    """Expects a gRPC status, a sentence that contains the given words, and to be told if that is final."""

    def __init__(self, code: grpc.StatusCode, words: str, *, final: bool | None = None) -> None:
        self._code, self._words, self._final = code, words, final

    async def of(self, call: Awaitable[Any]) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is self._code, f"{caught.value.code()}: {caught.value.details()}"
        assert self._words in (caught.value.details() or ""), caught.value.details()
        if self._final is not None:
            assert (FINAL_TRAILER in tuple(caught.value.trailing_metadata())) is self._final
