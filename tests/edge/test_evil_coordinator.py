"""The worker's edge: a coordinator that holds the run's own certificate, and lies. A real worker meets it over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from coordinator.runfolder import RunFolder
from coordinator.versions import Versions
from moe.config import config_to_json
from moe.presets import preset
from protocol.framing import frames_of
from protocol.identity import PrivateIdentity
from protocol.ids import TRUNK, Digest, RunId, worker_id_of
from protocol.joinlink import JoinLink
from protocol.limits import MAX_MESSAGE_BYTES, server_options
from protocol.manifest import BlockRef, Manifest, sign_manifest
from protocol.sequences import encode_sequences
from protocol.tls import manifest_key_message
from protocol.v1 import barnraise_pb2 as pb
from worker.agent import Agent
from worker.home import open_home
from worker.joining import Joining
from worker.options import WorkerOptions
from worker.probe import Machine

torch.set_num_threads(1)

SERVICE = "barnraise.protocol.v1.Coordinator"
MACHINE = Machine(device="cpu", device_name="test", memory_bytes=1 << 30, threads=1, bf16=False)
Bend = Callable[[Any], Any]
UNARY = {
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
        self.versions = Versions(run.root / "versions", self.store, self.layout)
        digest = self.versions.manifest_digest(0)
        assert digest is not None
        self.manifest = self.versions.manifest(digest)
        self.signer = run.manifest_identity()
        self.bent: dict[str, Bend] = {}
        self.stream: Callable[[pb.DownloadRequest], AsyncIterator[bytes]] | None = None
        self.take: Callable[[Any], Any] | None = None
        self.compression = grpc.Compression.NoCompression
        self.asked: list[str] = []
        self.link = ""

    async def start(self) -> None:
        self._server = grpc.aio.server(
            options=(*server_options(), ("grpc.max_send_message_length", -1)) if self.raw_options is None else (),
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
        if "CommitSubmission" in self.asked:
            return pb.AcquireLeaseReply(over=pb.RunOver(reason="done"))
        lease = pb.Lease(
            lease_id="r1.1", round=1, base_version=0, columns=[0, 1], data=pb.DataRange(seed=1, start=0, count=4),
            seed=3, inner_steps=2, batch_sequences=2, learning_rate=1e-3, router_lr_scale=0.1, warmup_steps=0,
            weight_decay=0.0, adam_beta1=0.9, adam_beta2=0.99, adam_eps=1e-8, clip_norm=1.0, optimizer="adamw",
            muon_learning_rate=0.02, muon_momentum=0.95, ttl_s=60.0,
        )  # fmt: skip
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
        return bytes(pb.UploadReply(received_bytes=size, complete=True).SerializeToString())


class Told:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def say(self, event: str, text: str, **fields: object) -> None:
        self.events.append((event, text))

    def step(self, done: int, total: int, loss: float | None, tokens_per_s: float) -> None:
        pass

    def close(self) -> None:
        pass

    def __str__(self) -> str:
        return "\n".join(text for _, text in self.events)


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
            **changes,
        )
        link = JoinLink.parse(options.link)
        home = open_home(options.home, link.fingerprint)
        self.agent = Agent(options, MACHINE, Joining(options, link, home, self.told), home.outbox, self.told)
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


@pytest.fixture
async def meeting(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Meeting]:
    """A worker about to join an evil coordinator. It stops after its third failure, without pauses."""
    monkeypatch.setattr("worker.session.FAILURE_PAUSE_S", 0.01)
    met = Meeting(EvilCoordinator(run), tmp_path / "home")
    await met.evil.start()
    yield met
    if hasattr(met, "task"):
        met.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await met.task
    await met.evil.stop()


async def test_a_coordinator_that_does_not_lie_is_served(meeting: Meeting) -> None:
    """Else the refusals below would prove nothing."""
    ended = await meeting.end()
    assert ended.exit_code == 0, meeting.told
    assert meeting.evil.asked.count("Upload") == 1


# ---- who it is --------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("call", "bend", "words"),
    [
        ("Enrol", field(worker_id="0" * 32), "not this worker's key"),
        ("Enrol", field(manifest_public_key=bytes(32)), "did not vouch"),
        ("Enrol", field(manifest_key_vouch=b"x"), "did not vouch"),
        ("Enrol", field(run_id="another"), "did not vouch"),
        ("Enrol", field(run_id="\x1b[31mred"), "printable"),
        ("Enrol", lambda _: b"\xff\xff", "not a EnrolReply"),
        ("Enrol", lambda _: (grpc.StatusCode.FAILED_PRECONDITION, "speaks protocol version 0; update"), "update"),
        ("OpenSession", field(session_id=b""), "session id"),
        ("OpenSession", field(session_id=bytes(17)), "session id"),
        ("OpenSession", field(run__run_id="another"), "enrolled in"),
        ("OpenSession", field(run__sequence_length=2**31), "sequence_length"),
        ("OpenSession", field(run__max_block_bytes=2**63), "max_block_bytes"),
        ("OpenSession", field(run__residency="everywhere"), "residency"),
        ("OpenSession", field(run__codec="pickle"), "codec"),
        ("OpenSession", field(run__dataset_digest="../../etc/passwd"), "dataset_digest"),
        ("OpenSession", field(run__model_json='{"model_type": "../../evil", "auto_map": "code"}'), "architecture"),
        ("OpenSession", field(run__model_json="[" * 50_000), "JSON"),
    ],
)
async def test_a_run_that_is_not_what_it_says_is_left(meeting: Meeting, call: str, bend: Bend, words: str) -> None:
    meeting.evil.bent[call] = bend
    ended = await meeting.end()
    assert ended.exit_code == 2
    assert words in ended.reason
    assert "AcquireLease" not in meeting.evil.asked


WIDE = {"hidden_size": 1 << 16, "intermediate_size": 1 << 16, "num_attention_heads": 64, "num_key_value_heads": 64}


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_hidden_layers": 256, "num_experts": 512, "num_experts_per_tok": 256, **WIDE},
        {"vocab_size": 1 << 20, **WIDE},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 2**62},
        {"num_experts": 4096, "num_hidden_layers": 256},
    ],
)
async def test_a_model_of_huge_shapes_costs_nothing(meeting: Meeting, sizes: dict[str, int]) -> None:
    values = {**config_to_json(preset("tiny")), **sizes}
    meeting.evil.bent["OpenSession"] = field(run__model_json=json.dumps(values))
    ended = await meeting.end(within_s=5.0)
    assert ended.exit_code == 2
    assert any(words in ended.reason for words in ("expected", "columns fit", "experts in all")), ended.reason


# ---- what it asks for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e30},
        {"learning_rate": float("nan")},
        {"adam_beta2": 1.5},
        {"clip_norm": -1.0},
        {"optimizer": "sgd"},
        {"muon_learning_rate": 1e9},
        {"muon_momentum": 1.0},
        {"weight_decay": float("inf")},
        {"inner_steps": 2**31},
        {"batch_sequences": 2**31},
        {"data__count": 2**40},
        {"ttl_s": 1e12},
        {"columns": [0, 10**6]},
        {"columns": [1, 0]},
        {"columns": list(range(8)) * 2},
        {"lease_id": "../../etc/passwd\n"},
    ],
)
async def test_an_absurd_lease_is_refused_and_named(meeting: Meeting, changes: dict[str, Any]) -> None:
    meeting.evil.bent["AcquireLease"] = field(**{f"lease__{name}": value for name, value in changes.items()})
    ended = await meeting.end()
    assert ended.exit_code == 2
    assert next(iter(changes)).replace("__", ".") in ended.reason
    assert "Download" not in meeting.evil.asked


async def test_being_told_to_wait_no_time_for_ever_does_not_spin(meeting: Meeting) -> None:
    for pause_s in (0.0, -1.0, float("nan")):
        meeting.evil.bent["AcquireLease"] = lambda _, s=pause_s: pb.AcquireLeaseReply(wait=pb.Wait(retry_after_s=s))
        meeting.evil.asked.clear()
        task = meeting.start()
        await asyncio.sleep(0.4)
        assert 1 <= meeting.evil.asked.count("AcquireLease") <= 8
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_what_it_says_cannot_steer_the_terminal(meeting: Meeting, capsys: pytest.CaptureFixture[str]) -> None:
    from worker.progress import make_reporter

    evil_text = "\x1b]0;owned\x07\x1b[2J\r\nfake line\u202e"
    verdicts = [pb.Verdict(lease_id=evil_text, outcome=2, reason=evil_text)] * 5000
    meeting.evil.bent["AcquireLease"] = lambda _: pb.AcquireLeaseReply(
        over=pb.RunOver(reason=evil_text), verdicts=verdicts
    )
    meeting.evil.bent["OpenSession"] = field(run__name=evil_text)
    reporter = make_reporter("plain")
    meeting.told = reporter  # type: ignore[assignment]
    ended = await meeting.end()
    reporter.say("raw", evil_text)
    reporter.say("end", ended.reason)
    shown = capsys.readouterr().out
    assert "owned" in shown
    assert len(shown.splitlines()) < 100
    assert all(character.isprintable() for line in shown.split("\n") for character in line)


# ---- what it sends ----------------------------------------------------------------------------------------------


def resigned(change: Callable[[Manifest], Manifest], signer: PrivateIdentity | None = None) -> Any:
    def bend(evil: EvilCoordinator) -> Bend:
        def reply(_: Any) -> pb.GetManifestReply:
            content = change(evil.manifest).to_json()
            return pb.GetManifestReply(manifest_json=content, signature=sign_manifest(signer or evil.signer, content))

        return reply

    return bend


def with_trunk(**changes: Any) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        ref: BlockRef = dataclasses.replace(manifest.blocks[TRUNK], **changes)
        return dataclasses.replace(manifest, blocks={**manifest.blocks, TRUNK: ref})

    return change


def without_trunk(manifest: Manifest) -> Manifest:
    return dataclasses.replace(
        manifest, blocks={block: ref for block, ref in manifest.blocks.items() if block != TRUNK}
    )


@pytest.mark.parametrize(
    ("bend", "words"),
    [
        (resigned(lambda manifest: manifest, PrivateIdentity.generate()), "signature"),
        (lambda _: field(signature=bytes(64)), "signature"),
        (lambda _: field(signature=b""), "signature"),
        (resigned(lambda m: dataclasses.replace(m, run_id=RunId("another"))), "expected run, version"),
        (resigned(lambda m: dataclasses.replace(m, version=1, parent_version=0)), "expected run, version"),
        (resigned(lambda m: dataclasses.replace(m, residency="absent")), "expected run, version"),
        (resigned(lambda m: dataclasses.replace(m, model={**m.model, "vocab_size": 8})), "another model"),
        (resigned(with_trunk(payload_bytes=2**50)), "block trunk: expected"),
        (resigned(with_trunk(payload_bytes=1)), "block trunk: expected"),
        (resigned(lambda m: dataclasses.replace(m, blocks={})), "must name blocks"),
        (resigned(without_trunk), "lacks block trunk"),
    ],
)
async def test_a_manifest_that_does_not_hold_is_refused(meeting: Meeting, bend: Any, words: str) -> None:
    meeting.evil.bent["GetManifest"] = bend(meeting.evil)
    ended = await meeting.end()
    assert ended.exit_code == 1
    assert words in str(meeting.told)
    assert "Download" not in meeting.evil.asked


async def test_an_older_version_than_leased_is_no_substitute(meeting: Meeting) -> None:
    meeting.evil.bent["AcquireLease"] = field(lease__base_version=7)
    ended = await meeting.end()
    assert ended.exit_code == 1
    assert "expected run, version" in str(meeting.told)


async def test_a_block_that_is_not_what_was_signed_is_never_used(meeting: Meeting) -> None:
    evil = meeting.evil

    async def other_bytes(request: pb.DownloadRequest) -> AsyncIterator[bytes]:
        content = bytes(len(evil.content(request)))
        for frame in frames_of(lambda start, length: content[start : start + length], len(content)):
            yield frame

    evil.stream = other_bytes
    ended = await meeting.end()
    assert ended.exit_code == 1
    assert "has digest" in str(meeting.told)
    assert meeting.kept_bytes == 0


async def test_sequences_outside_the_vocabulary_are_never_trained_on(meeting: Meeting) -> None:
    evil = meeting.evil
    honest = evil.content
    evil.content = lambda r: b"\xff" * len(honest(r)) if r.lease_data else honest(r)  # type: ignore[method-assign]
    ended = await meeting.end()
    assert ended.exit_code == 1
    assert "CommitSubmission" not in evil.asked


@pytest.mark.parametrize("what", ["block", "lease_data"])
async def test_an_endless_stream_is_hung_up_on(meeting: Meeting, what: str) -> None:
    evil = meeting.evil
    sent = 0

    async def endless(request: pb.DownloadRequest) -> AsyncIterator[bytes]:
        nonlocal sent
        for frame in evil.honest_frames(request):
            yield frame
        if (request.WhichOneof("resource") == "lease_data") is (what == "lease_data"):
            while True:
                sent += 1
                yield frame

    evil.stream = endless
    ended = await meeting.end()
    assert ended.exit_code == 1
    assert "frame" in str(meeting.told)
    after = sent
    await asyncio.sleep(0.1)
    assert sent <= after + 2  # it was told to stop, not just ignored


async def test_a_stalled_download_is_broken_off_and_taken_up_again(meeting: Meeting) -> None:
    evil = meeting.evil
    stalls = 0

    async def stalled(request: pb.DownloadRequest) -> AsyncIterator[bytes]:
        nonlocal stalls
        if request.block_digest and stalls < 2:
            stalls += 1
            await asyncio.Event().wait()
        for frame in evil.honest_frames(request):
            yield frame

    evil.stream = stalled
    ended = await meeting.end(stall_s=0.2)
    assert ended.exit_code == 0
    assert "nothing came for 0.2 s" in str(meeting.told)


async def test_a_stream_that_stalls_for_ever_costs_the_lease_and_not_the_volunteer(meeting: Meeting) -> None:
    async def never(_: pb.DownloadRequest) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    meeting.evil.stream = never
    meeting.evil.bent["AcquireLease"] = field(lease__ttl_s=0.5)
    task = meeting.start(stall_s=0.1)
    await meeting.saw("deadline passed")
    meeting.agent.leave("enough")
    async with asyncio.timeout(3):
        assert (await task).exit_code == 0


async def test_an_upload_that_nobody_takes_is_broken_off_and_sent_again(
    meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.agent.UPLOAD_PAUSE_S", 0.01)
    monkeypatch.setattr("protocol.framing.FRAME_BYTES", 16 * 1024)
    stalls = 0

    async def take(_: Any) -> None:
        nonlocal stalls
        stalls += 1
        if stalls == 1:
            await asyncio.Event().wait()

    meeting.evil.take = take
    ended = await meeting.end(stall_s=0.3)
    assert ended.exit_code == 0
    assert "nothing was taken for 0.3 s" in str(meeting.told)
    assert stalls == 2


async def test_an_oversized_or_compressed_reply_is_not_read(meeting: Meeting, run: RunFolder) -> None:
    meeting.evil.bent["GetManifest"] = field(manifest_json=bytes(MAX_MESSAGE_BYTES + 1))
    meeting.start()
    await meeting.saw("larger than max")
    assert meeting.kept_bytes == 0


async def test_a_compressed_reply_is_not_unpacked(meeting: Meeting) -> None:
    evil = meeting.evil
    await evil.stop()
    evil.compression, evil.raw_options = grpc.Compression.Gzip, ()
    await evil.start()
    evil.bent["Enrol"] = field(manifest_key_vouch=bytes(500_000))  # small enough to be read, if it were unpacked
    meeting.start()
    await meeting.saw("ompress")
    assert "did not vouch" not in str(meeting.told)
