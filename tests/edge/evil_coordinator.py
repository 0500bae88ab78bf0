"""A coordinator that holds the run's own certificate, and lies; and a real worker that meets it over TLS."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc

from coordinator.run.folder import RunFolder
from coordinator.store.versions import Versions
from protocol.framing import frames_of
from protocol.ids import Digest, worker_id_of
from protocol.joinlink import JoinLink
from protocol.limits import server_options
from protocol.manifest import sign_manifest
from protocol.messages import fill
from protocol.recipe import Recipe
from protocol.sequences import encode_sequences
from protocol.tls import manifest_key_message
from protocol.v1 import barnraise_pb2 as pb
from worker.agents import make_agent
from worker.home import open_home
from worker.machine.machine import Machine
from worker.options import WorkerOptions
from worker.pauses import Pauses

SERVICE = "barnraise.protocol.v1.Coordinator"
MACHINE = Machine(device="cpu", device_name="test", memory_bytes=1 << 30, threads=1, bf16=False)
Bend = Callable[[Any], Any]
UNARY: dict[str, Any] = {
    "Enrol": pb.EnrolRequest,
    "OpenSession": pb.OpenSessionRequest,
    "AcquireLease": pb.AcquireLeaseRequest,
    "ReturnLease": pb.ReturnLeaseRequest,
    "Heartbeat": pb.HeartbeatRequest,
    "CommitSubmission": pb.CommitSubmissionRequest,
    "GetManifest": pb.GetManifestRequest,
}


class EvilCoordinator:
    """Answers as an honest one would, but for what a test bends."""

    def __init__(self, run: RunFolder) -> None:
        self.run, self.layout = run, run.layout()
        self.store, self.dataset = run.artifacts(), run.dataset()
        self.versions = Versions(run.root / "versions", self.store.blocks, self.layout)
        digest = self.versions.manifest_digest(0)
        assert digest is not None
        self.manifest = self.versions.manifest(digest)
        self.signer = run.manifest_identity()
        self.bent: dict[str, Bend] = {}
        self.stream: Callable[[pb.DownloadRequest], AsyncIterator[bytes]] | None = None
        self.take: Callable[[Any], Any] | None = None
        self.compression = grpc.Compression.NoCompression
        self.asked: list[str] = []
        self.received = False
        self.link = ""

    async def start(self) -> None:
        self._server = grpc.aio.server(
            options=_without_limits_to_sending() if self.raw_options is None else (),
            compression=self.compression,
        )
        handlers = {name: grpc.unary_unary_rpc_method_handler(self._unary(name)) for name in UNARY}
        handlers["Download"] = grpc.unary_stream_rpc_method_handler(self._download)
        handlers["Upload"] = grpc.stream_unary_rpc_method_handler(self._upload)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        chain, key = self.run.leaf()
        port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
        await self._server.start()
        fingerprint = self.run.authority().fingerprint
        self.link = str(JoinLink(host="127.0.0.1", port=port, fingerprint=fingerprint, invite="A" * 22))

    raw_options: Any = None

    async def stop(self) -> None:
        await self._server.stop(0.0)

    def _unary(self, name: str) -> Any:
        async def handle(body: bytes, context: Any) -> bytes:
            self.asked.append(name)
            reply = getattr(self, f"_{name}")(UNARY[name].FromString(body))
            if name in self.bent:
                bent = self.bent[name](reply)
                if isinstance(bent, tuple):
                    await context.abort(*bent)
                reply = reply if bent is None else bent
            return reply if isinstance(reply, bytes) else bytes(reply.SerializeToString())

        return handle

    def _Enrol(self, request: pb.EnrolRequest) -> pb.EnrolReply:
        vouched = manifest_key_message(self.run.run_id, self.signer.public_key)
        return pb.EnrolReply(
            worker_id=worker_id_of(request.public_key),
            run_id=self.run.run_id,
            manifest_public_key=self.signer.public_key,
            manifest_key_vouch=self.run.authority().sign(vouched),
        )

    def _OpenSession(self, _: pb.OpenSessionRequest) -> pb.OpenSessionReply:
        description = pb.RunDescription(
            run_id=self.run.run_id,
            name="evil",
            model_json=json.dumps(dict(self.layout.config_json)),
            residency="frozen",
            codec="fp32",
            sequence_length=32,
            dataset_digest=self.dataset.digest,
            max_block_bytes=1 << 30,
        )
        return pb.OpenSessionReply(session_id=secrets.token_bytes(16), heartbeat_interval_s=60.0, run=description)

    def _AcquireLease(self, _: pb.AcquireLeaseRequest) -> pb.AcquireLeaseReply:
        if "CommitSubmission" in self.asked and not self.received:
            return pb.AcquireLeaseReply(wait=pb.Wait(reason="not all is here", retry_after_s=0.05))
        if self.received:
            return pb.AcquireLeaseReply(over=pb.RunOver(reason="done"))
        lease = pb.Lease(
            lease_id="r1.1", round=1, base_version=0, columns=[0, 1], data=pb.DataRange(seed=1, start=0, count=4),
            seed=3, inner_steps=2, batch_sequences=2, ttl_s=60.0, codec="fp32",
        )  # fmt: skip
        fill(lease.recipe, Recipe(optimizer="adamw", learning_rate=1e-3), Recipe)
        return pb.AcquireLeaseReply(lease=lease)

    def _ReturnLease(self, _: pb.ReturnLeaseRequest) -> pb.ReturnLeaseReply:
        return pb.ReturnLeaseReply()

    def _Heartbeat(self, _: pb.HeartbeatRequest) -> pb.HeartbeatReply:
        return pb.HeartbeatReply()

    def _CommitSubmission(self, _: pb.CommitSubmissionRequest) -> pb.CommitSubmissionReply:
        return pb.CommitSubmissionReply()

    def _GetManifest(self, _: pb.GetManifestRequest) -> pb.GetManifestReply:
        content = self.manifest.to_json()
        return pb.GetManifestReply(manifest_json=content, signature=sign_manifest(self.signer, content))

    async def _download(self, body: bytes, context: Any) -> AsyncIterator[bytes]:
        request = pb.DownloadRequest.FromString(body)
        self.asked.append("Download")
        if self.stream is not None:
            async for frame in self.stream(request):
                yield frame
            return
        for frame in self.honest_frames(request):
            yield frame

    def honest_frames(self, request: pb.DownloadRequest) -> Any:
        content = self.content(request)
        return frames_of(lambda start, length: content[start : start + length], len(content), request.offset)

    def content(self, request: pb.DownloadRequest) -> bytes:
        if request.WhichOneof("resource") == "lease_data":
            return encode_sequences(self.dataset.sequences(1, 0, 4, 32))
        return self.store.blocks.read(Digest(request.block_digest.hex()))

    async def _upload(self, messages: AsyncIterator[bytes], context: Any) -> bytes:
        self.asked.append("Upload")
        if self.take is not None:
            await self.take(messages)
        size = 0
        async for message in messages:
            size += len(message)
        self.received = True
        return bytes(pb.UploadReply(received_bytes=size, complete=True).SerializeToString())


class Told:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.details: list[str] = []
        """What stands beside the sentence for whoever has to find out more."""

    def say(self, event: str, text: str, **fields: object) -> None:
        self.events.append((event, text))
        self.details.append(str(fields.get("detail", "")))

    def step(self, done: int, total: int, loss: float | None, tokens_per_s: float) -> None:
        pass

    def close(self) -> None:
        pass

    def __str__(self) -> str:
        return "\n".join([*(text for _, text in self.events), *self.details])


class Meeting:
    """One worker and one evil coordinator."""

    def __init__(self, evil: EvilCoordinator, home: Path) -> None:
        self.evil, self.home, self.told = evil, home, Told()

    async def end(self, within_s: float = 20.0, **changes: Any) -> Any:
        """Start the worker and wait for its end."""
        async with asyncio.timeout(within_s):
            return await self.start(**changes)

    def start(self, **changes: Any) -> asyncio.Task[Any]:
        options = WorkerOptions(
            link=self.evil.link,
            home=self.home,
            measure_speed=False,
            first_backoff_s=0.01,
            max_backoff_s=0.02,
            pauses=Pauses(failure_s=0.01, upload_s=0.01),
            **changes,
        )
        link = JoinLink.parse(options.link)
        home = open_home(options.home, link.fingerprint)
        self.agent, _ = make_agent(options, MACHINE, link, home, self.told)
        self.task = asyncio.create_task(self.agent.run())
        return self.task

    async def saw(self, words: str) -> None:
        async with asyncio.timeout(10):
            while words not in str(self.told):
                assert not self.task.done(), f"{self.task.result()}: {self.told}"
                await asyncio.sleep(0.01)

    @property
    def kept_bytes(self) -> int:
        """What of it all lies on the volunteer's disk as a block."""
        blocks = [path for path in self.home.rglob("blocks/*") if path.suffix != ".part"]
        return sum(path.stat().st_size for path in blocks)


def field(**values: Any) -> Bend:
    """Set fields of the reply; `a__b` is field b of field a."""

    def bend(reply: Any) -> None:
        for path, value in values.items():
            *parents, name = path.split("__")
            target = reply
            for parent in parents:
                target = getattr(target, parent)
            if isinstance(value, list):
                del getattr(target, name)[:]
                getattr(target, name).extend(value)
            else:
                setattr(target, name, value)

    return bend


def _without_limits_to_sending() -> list[tuple[str, int]]:
    """Ours send nothing oversized, and a limit of their own would be taken for the worker's."""
    return [
        *(option for option in server_options() if "max_send" not in option[0]),
        ("grpc.max_send_message_length", -1),
    ]
