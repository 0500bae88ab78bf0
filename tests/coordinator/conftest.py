"""A run in a temporary folder, its server over loopback TLS, and a raw client that signs but trusts nothing else."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import sysconfig
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from coordinator.runfolder import RunFolder, init_run
from coordinator.server import CoordinatorServer
from coordinator.settings import RunSettings
from moe.layout import submission_specs
from protocol.codecs import codec_named
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
    "max_rounds": 2,
    "replicas": 1,
    "quorum": 1,
    "gather_s": 0.0,
    "min_grace_s": 0.0,
    "grace_share": 0.0,
    "checkpoint_every": 1,
    "screening": {"enabled": False},
    "inner": {"inner_steps": 2, "batch_sequences": 2, "warmup_steps": 0},
}


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little real text."""
    folder = tmp_path_factory.mktemp("text")
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in ("abc.py", "ast.py", "bdb.py", "calendar.py", "cmd.py", "code.py", "codecs.py", "csv.py", "copy.py",
                 "dis.py", "enum.py", "functools.py", "glob.py", "heapq.py", "inspect.py", "locale.py"):  # fmt: skip
        shutil.copy(library / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def pristine_run(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    """A run that nobody has served yet, to be copied."""
    folder = tmp_path_factory.mktemp("pristine") / "run"
    settings = RunSettings(
        preset="tiny",
        data=str(text_folder),
        port=0,
        sequence_length=32,
        codec="fp32",
        heldout_limit=4,
        screening_sequences=4,
        engine=ENGINE,
    )
    init_run(folder, settings)
    return folder


@pytest.fixture
def run(pristine_run: Path, tmp_path: Path) -> RunFolder:
    """A fresh copy of the pristine run."""
    shutil.copytree(pristine_run, tmp_path / "run")
    return RunFolder.open(tmp_path / "run")


@pytest.fixture
async def server(run: RunFolder) -> AsyncIterator[CoordinatorServer]:
    """The run, served."""
    started = CoordinatorServer(run)
    await started.start()
    yield started
    await started.stop(0.0)


class RawClient:
    """Signs calls; everything else is the test's business."""

    def __init__(self, link: JoinLink, run: RunFolder, identity: PrivateIdentity | None = None) -> None:
        self.link = link
        self.identity = identity or PrivateIdentity.generate()
        self.audience = bytes.fromhex(link.fingerprint)
        self.signer = CallSigner(self.identity, audience=self.audience)
        credentials = grpc.ssl_channel_credentials(root_certificates=run.authority().cert_pem)
        options = [*channel_options(), ("grpc.ssl_target_name_override", COORDINATOR_NAME)]
        self.channel = grpc.aio.secure_channel(link.address, credentials, options=options)
        self.capability = pb.Capability(device="cpu", memory_bytes=8 << 30)

    async def close(self) -> None:
        await self.channel.close()

    async def call(self, name: str, request: Any, reply: Any, *, metadata: Any = None, service: str = SERVICE) -> Any:
        body = request.SerializeToString()
        metadata = self.signer.metadata(service + name, body) if metadata is None else metadata
        return reply.FromString(await self.channel.unary_unary(service + name)(body, timeout=20.0, metadata=metadata))

    async def enrol(self, **changes: Any) -> pb.EnrolReply:
        fields = {
            "protocol_version": PROTOCOL_VERSION,
            "public_key": self.identity.public_key,
            "invite": self.link.invite,
            "name": "raw",
            "capability": self.capability,
        }
        return await self.call("Enrol", pb.EnrolRequest(**(fields | changes)), pb.EnrolReply)

    async def open(self) -> pb.OpenSessionReply:
        self.signer = CallSigner(self.identity, audience=self.audience)
        request = pb.OpenSessionRequest(
            protocol_version=PROTOCOL_VERSION,
            public_key=self.identity.public_key,
            nonce=secrets.token_bytes(16),
            capability=self.capability,
        )
        reply = await self.call("OpenSession", request, pb.OpenSessionReply)
        self.signer = CallSigner(self.identity, reply.session_id, audience=self.audience)
        return reply

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
        return await self.call(
            "CommitSubmission", pb.CommitSubmissionRequest(**(fields | changes)), pb.CommitSubmissionReply
        )

    async def upload(
        self, lease: pb.Lease, payload: bytes, *, offset: int = 0, frames: Callable[[], Iterator[bytes]] | None = None
    ) -> pb.UploadReply:
        header = pb.UploadHeader(
            lease_id=lease.lease_id,
            digest=hashlib.sha256(payload).digest(),
            payload_bytes=len(payload),
            offset=offset,
        ).SerializeToString()
        pieces = frames() if frames else frames_of(lambda a, n: payload[a : a + n], len(payload), offset)

        async def messages() -> AsyncIterator[bytes]:
            yield header
            for piece in pieces:
                yield piece

        method = SERVICE + "Upload"
        call = self.channel.stream_unary(method)
        return pb.UploadReply.FromString(
            await call(messages(), timeout=20.0, metadata=self.signer.metadata(method, header))
        )

    async def download(self, request: pb.DownloadRequest) -> list[bytes]:
        body, method = request.SerializeToString(), SERVICE + "Download"
        call = self.channel.unary_stream(method)(body, timeout=20.0, metadata=self.signer.metadata(method, body))
        return [frame async for frame in call]


@pytest.fixture
async def join(run: RunFolder, server: CoordinatorServer) -> AsyncIterator[Callable[[], Any]]:
    """Makes clients that are enrolled and have a session."""
    clients: list[RawClient] = []

    async def make(*, enrolled: bool = True, identity: PrivateIdentity | None = None) -> RawClient:
        (link,) = await server.create_invites()
        client = RawClient(JoinLink.parse(link), run, identity)
        clients.append(client)
        if enrolled:
            await client.enrol()
            await client.open()
        return client

    yield make
    for client in clients:
        await client.close()


def submission_for(run: RunFolder, lease: pb.Lease, *, scale: float = 1e-3, seed: int = 0) -> bytes:
    """A well-formed submission of small random numbers."""
    generator = torch.Generator().manual_seed(seed)
    specs = submission_specs(run.layout(), lease.columns)
    tensors = {spec.name: scale * torch.randn(spec.shape, generator=generator) for spec in specs}
    return encode_tensors(tensors, codec_named(run.settings().codec))


@pytest.fixture
def submission() -> Callable[..., bytes]:
    """Makes submissions."""
    return submission_for


@pytest.fixture
def client_type() -> type[RawClient]:
    """For tests that start and stop the server themselves."""
    return RawClient
