"""What the worker of the release before said to its coordinator is understood by this one, byte by byte.

`worker_4.json.xz` is a conversation of protocol version 4 (converse.py), begun with the run of `engine_6.tar.xz`. Only
signatures are made anew, since they name a session. What comes back is read with that release's own schema, and must
have every field that it had then.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import lzma
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from coordinator.edge.server import CoordinatorServer
from coordinator.run.clock import Clocks
from protocol.identity import PrivateIdentity
from protocol.joinlink import JoinLink
from protocol.limits import PROTOCOL_VERSION
from protocol.signing import CallSigner
from protocol.versions import OLDEST_VERSION
from tests.releases.test_older_runs import HERE, unpacked
from tests.served import SERVICE, RawClient

RECORDED = max(HERE.glob("worker_*.json.xz"))
STREAMED = {"Download", "Upload"}


def test_the_conversation_is_of_the_oldest_version_that_is_taken() -> None:
    assert json.loads(lzma.decompress(RECORDED.read_bytes()))["protocol_version"] in {OLDEST_VERSION, PROTOCOL_VERSION}


async def test_it_joins_trains_sends_and_is_credited(tmp_path: Path) -> None:
    record = json.loads(lzma.decompress(RECORDED.read_bytes()))
    run, _ = unpacked(6, tmp_path)
    run.registry_path.write_bytes(base64.b64decode(record["registry"]))
    server = CoordinatorServer(run, clocks=Clocks(wall=lambda: record["wall_s"] + 60.0))
    port = await server.start()
    link = JoinLink.parse(record["link"])
    client = Before(dataclasses.replace(link, port=port), run, _identity(record, tmp_path))
    schema = _schema(base64.b64decode(record["schema"]))
    try:
        judged: list[Any] = []
        for call in record["calls"]:
            sent = [base64.b64decode(one) for one in call["sent"]]
            if call["name"] == "Download":
                assert await client.fetched(sent[0]) == call["sha256"]
                continue
            reply = schema(f"{call['name']}Reply", await client.say(call["name"], sent))
            if call["name"] == "OpenSession":
                client.in_session(reply.session_id)
            judged += getattr(reply, "verdicts", ())
            _as_full(reply, schema(f"{call['name']}Reply", base64.b64decode(call["received"])), call["name"])
        ask = next(call for call in record["calls"] if call["name"] == "AcquireLease")
        while not judged:
            heard = await client.say("AcquireLease", [base64.b64decode(one) for one in ask["sent"]])
            judged += schema("AcquireLeaseReply", heard).verdicts
    finally:
        await client.close()
        await server.stop(0.0)
    assert [verdict.outcome for verdict in judged] == [1], "accepted"


def _as_full(now: Message, then: Message, where: str) -> None:
    """Every field that was there then is there now."""
    lacking = {field.name for field, _ in then.ListFields()} - {field.name for field, _ in now.ListFields()}
    # what may differ with the moment at which it was asked
    assert not lacking - {"wait", "lease", "verdicts", "cancelled", "verdict", "upload_offset"}, (where, lacking)
    for field, value in then.ListFields():
        if isinstance(value, Message) and now.HasField(field.name):
            _as_full(getattr(now, field.name), value, f"{where}.{field.name}")


def _schema(serialized: bytes) -> Any:
    file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)

    def read(name: str, content: bytes) -> Any:
        kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))
        return kind.FromString(content)

    return read


def _identity(record: dict[str, Any], folder: Path) -> PrivateIdentity:
    return PrivateIdentity.from_pem(base64.b64decode(record["key"]), folder / "identity.pem")


class Before(RawClient):
    """Says what was said, signed for this session."""

    def in_session(self, session_id: bytes) -> None:
        self.signer = CallSigner(self.identity, session_id, audience=self.audience)

    async def say(self, name: str, sent: list[bytes]) -> bytes:
        if name in {"Enrol", "OpenSession"}:
            self.signer = CallSigner(self.identity, audience=self.audience)
        metadata = self.signer.metadata(SERVICE + name, sent[0])
        call = self.channel.stream_unary(SERVICE + name)
        return bytes(await call(iter(sent), timeout=60.0, metadata=metadata))

    async def fetched(self, body: bytes) -> str:
        hasher = hashlib.sha256()
        metadata = self.signer.metadata(SERVICE + "Download", body)
        frames = self.channel.unary_stream(SERVICE + "Download")(body, timeout=60.0, metadata=metadata)
        while (frame := await frames.read()) is not grpc.aio.EOF:
            hasher.update(frame)
        return hasher.hexdigest()
