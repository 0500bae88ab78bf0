"""Every decoder that sees bytes from the network, or from a file that may be torn, with valid samples to start from.

A target's `decode` gets arbitrary bytes and may do nothing but return or raise one of its `refusals`. `growth` bounds
what it may allocate on the way: so many bytes for each byte of input, and `base_bytes` whatever the input.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf.message import Message

from coordinator.auth import check_protocol_version
from coordinator.datasets.card import (
    CARD_FILE,
    FORMAT,
    MAX_CARD_BYTES,
    DatasetCard,
    SourceCard,
    content_digest,
    read_card,
)
from coordinator.datasets.tokenizing import FileTokenizer
from coordinator.engine import events as ev
from coordinator.engine.config import EngineConfig
from coordinator.engine.engine import Engine
from coordinator.engine.records import event_from_json, event_to_json
from coordinator.engine.version import ENGINE_VERSION
from coordinator.membership import clean_name, speed_of
from coordinator.rpc import parse
from coordinator.service import clean_reason, digest_from
from moe.config import config_from_json, config_to_json
from moe.presets import preset
from moe.tokenizer import byte_tokenizer_json
from protocol.codecs import BF16, FP32
from protocol.errors import (
    ConfigError,
    DigestMismatch,
    LocalError,
    MalformedMessage,
    Refused,
    Unauthenticated,
)
from protocol.framing import FrameReader, frames_of
from protocol.identity import PrivateIdentity
from protocol.ids import TRUNK, BlockId, LeaseId, RoundNumber, RunId, Version, WorkerId, column_block, digest_of
from protocol.joinlink import JoinLink
from protocol.manifest import BlockRef, Manifest, verify_manifest
from protocol.sequences import decode_sequences, encode_sequences
from protocol.signing import CallSigner, CounterWindow, parse_metadata, verify_call
from protocol.tensors import TensorSpec, decode_tensors, encode_tensors
from protocol.v1 import barnraise_pb2 as pb
from worker.lease import description_from_message, lease_from_message, printable

Errors = tuple[type[Exception], ...]
SECRET = b"a secret of the fuzzer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One decoder."""

    name: str
    decode: Callable[[bytes], object]
    refusals: Errors
    samples: Callable[[], Sequence[bytes]]
    growth: int = 64
    """Bytes that may be allocated for each byte of input."""
    base_bytes: int = 256 * 1024


# ---- tensors and frames

SPECS = [TensorSpec("layer/weight", (8, 4)), TensorSpec("layer/bias", (4,)), TensorSpec("gate", (2, 2, 2))]
PAYLOAD = bytes(range(256)) * 4


def _tensors() -> list[bytes]:
    tensors = {spec.name: torch.ones(spec.shape) for spec in SPECS}
    return [encode_tensors(tensors, FP32), encode_tensors(tensors, BF16)]


def _decode_tensors(data: bytes) -> object:
    codec = FP32 if len(data) % 2 else BF16
    try:
        decode_tensors(data, SPECS, FP32 if codec is BF16 else BF16)
    except MalformedMessage:
        return decode_tensors(data, SPECS, codec)
    return None


def _feed_frames(data: bytes) -> object:
    """Frames of any length, one after the other, as a stream would bring them."""
    reader = FrameReader(len(PAYLOAD), digest_of(PAYLOAD), offset=0)
    for frame in data.split(b"|") if data[:1] == b"|" else [data]:
        reader.feed(frame)
    reader.finish()
    return reader


def _frames() -> list[bytes]:
    (whole,) = frames_of(lambda offset, length: PAYLOAD[offset : offset + length], len(PAYLOAD))
    return [whole, b"|" + whole]


def _sequences() -> list[bytes]:
    return [encode_sequences(np.arange(4 * 9, dtype=kind).reshape(4, 9) % 250) for kind in (np.uint8, np.uint16)]


# ---- manifests, links, signatures


@cache
def _identity() -> PrivateIdentity:
    return PrivateIdentity.generate()


def _manifest() -> list[bytes]:
    blocks = (TRUNK, column_block(0))
    refs = {block: BlockRef(digest=digest_of(block.encode()), payload_bytes=100) for block in blocks}
    manifest = Manifest(
        run_id=RunId("run"),
        version=Version(1),
        parent_version=Version(0),
        round=RoundNumber(1),
        created_at_s=1.5,
        model=config_to_json(preset("tiny")),
        residency="frozen",
        blocks=refs,
        momenta={},
        val_loss=3.5,
        tokens_trained=1000,
    )
    return [manifest.to_json()]


def _signed_manifest(data: bytes) -> object:
    verify_manifest(_identity().public_key, data[64:], data[:64])
    return Manifest.from_json(data[64:])


def _call_metadata(data: bytes) -> object:
    """Pairs of key and value, as gRPC gives them: a length byte, then the value, keys in turn."""
    keys = ("session", "counter", "request", "signature")
    pairs: list[tuple[str, str | bytes]] = []
    place = 0
    while place < len(data) and len(pairs) < 8:
        size = data[place]
        value = data[place + 1 : place + 1 + size]
        pairs.append((f"barnraise-{keys[len(pairs) % 4]}-bin", value if size != 255 else value.decode("latin-1")))
        place += 1 + size
    call = parse_metadata(pairs)
    CounterWindow().accept(call.counter)
    verify_call(_identity().public_key, call, "/method", b"body")
    return call


def _metadata() -> list[bytes]:
    signed = CallSigner(_identity(), bytes(16)).metadata("/method", b"body")
    return [b"".join(bytes([len(value)]) + value for _, value in signed)]


def _links() -> list[bytes]:
    tail = f"/#{'0f' * 32}.{'A-_9' * 8}"
    return [f"barnraise://{host}:50051{tail}".encode() for host in ("example.org", "[2001:db8::1]", "192.0.2.7")]


# ---- protobuf requests and replies

KINDS: list[type[Message]] = [getattr(pb, name) for name in sorted(pb.DESCRIPTOR.message_types_by_name)]


def _filled(kind: type[Message], depth: int = 3) -> Message:
    """A message with something in every field."""
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue
        value: Any
        if field.message_type is not None:
            if depth == 0:
                continue
            value = _filled(field.message_type._concrete_class, depth - 1)
        elif field.cpp_type == field.CPPTYPE_STRING:
            value = "cpu" if field.type == field.TYPE_STRING else bytes(32)
        else:
            value = 1
        if field.is_repeated:
            getattr(message, field.name).append(value)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(value)
        else:
            setattr(message, field.name, value)
    return message


def _requests() -> list[bytes]:
    return [bytes([number]) + _filled(kind).SerializeToString() for number, kind in enumerate(KINDS)]


def _request(data: bytes) -> object:
    """The first byte says which message; every field then goes through what the edges check it with."""
    message = parse(KINDS[data[0] % len(KINDS)] if data else KINDS[0], data[1:])
    for field, value in message.ListFields():
        if isinstance(value, str):
            clean_reason(value)
            printable(value)
        if field.name == "name":
            clean_name(value)
        if field.name == "digest":
            digest_from(value)
        if field.name == "protocol_version":
            check_protocol_version(value)
        if isinstance(value, pb.Capability):
            speed_of(value)
    return message


def _lease(data: bytes) -> object:
    return lease_from_message(parse(pb.Lease, data), max_columns=4, layout_columns=8, sequence_length=64)


def _leases() -> list[bytes]:
    lease = pb.Lease(
        lease_id="r1.1",
        round=1,
        columns=[0, 3],
        data=pb.DataRange(seed=1, start=0, count=480),
        seed=7,
        inner_steps=30,
        batch_sequences=16,
        learning_rate=4e-3,
        router_lr_scale=0.1,
        warmup_steps=3,
        weight_decay=0.01,
        adam_beta1=0.9,
        adam_beta2=0.99,
        adam_eps=1e-8,
        clip_norm=1.0,
        optimizer="adamw",
        muon_learning_rate=0.02,
        muon_momentum=0.95,
        ttl_s=60.0,
    )
    return [lease.SerializeToString()]


def _description(data: bytes) -> object:
    description = description_from_message(parse(pb.RunDescription, data))
    return config_from_json(_json(description.model_json))


def _descriptions() -> list[bytes]:
    description = pb.RunDescription(
        run_id="run",
        name="a run",
        model_json=json.dumps(config_to_json(preset("tiny"))),
        residency="frozen",
        codec="bf16",
        sequence_length=64,
        dataset_digest="0f" * 32,
        max_block_bytes=1000,
    )
    return [description.SerializeToString()]


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("not JSON") from error


# ---- cards and tokenizers


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="barnraise-fuzz-"))


def _card(data: bytes) -> object:
    (_folder() / CARD_FILE).write_bytes(data)
    return read_card(_folder())


def _cards() -> list[bytes]:
    digest = digest_of(b"part")
    known: dict[str, Any] = {"vocab_size": 264, "token_bytes": 2, "end_of_document": 258}
    hashes: dict[str, Any] = dict.fromkeys(("train_sha256", "heldout_sha256", "tokenizer_sha256"), digest)
    card = DatasetCard(
        digest=content_digest(**known, **hashes),
        format=FORMAT,
        tokenizer="bytes",
        train_tokens=1000,
        train_documents=10,
        heldout_tokens=100,
        heldout_documents=1,
        heldout_share=0.1,
        licence="CC0-1.0",
        allowed_uses=("any",),
        sources=(SourceCard(kind="folder", name="x", documents=11, duplicates=0, skipped=0, text_bytes=1100),),
        **known,
        **hashes,
    )
    return [card.to_json(), json.dumps(asdict(card)).encode()]


def _tokenizer(data: bytes) -> object:
    path = _folder() / "tokenizer.json"
    path.write_bytes(data)
    return FileTokenizer(path)


# ---- the journal


def _config() -> EngineConfig:
    return EngineConfig(run_id=RunId("run"), columns=4, train_sequences=10_000)


def _created() -> ev.RunCreated:
    return ev.RunCreated(at_s=0.0, engine_version=ENGINE_VERSION, config=_config(), base_manifest=digest_of(b"v0"))


def _journal_records() -> list[bytes]:
    worker, lease_id = WorkerId("0f" * 32), LeaseId("r1.1")
    enrolled = ev.WorkerEnrolled(
        at_s=1.0, worker=worker, name="maria", trusted=False, max_columns=2, tokens_per_s=900.0
    )
    norms = (ev.BlockNorm(block=BlockId("trunk"), norm_l2=1.0),)
    measured = ev.SubmissionMeasured(at_s=2.0, command_id="m", lease_id=lease_id, malformed="", norms=norms)
    found = [_created(), enrolled, measured, ev.LeaseRequested(at_s=1.0, worker=worker, wait_s=30.0)]
    return [event_to_json(event).encode() for event in found]


def _journal_record(data: bytes) -> object:
    return event_from_json(data.decode("utf-8", "replace"))


def _snapshots() -> list[bytes]:
    engine, _ = Engine.create(_created(), SECRET)
    worker = WorkerId("0f" * 32)
    engine.handle(
        ev.WorkerEnrolled(at_s=1.0, worker=worker, name="maria", trusted=False, max_columns=2, tokens_per_s=900.0)
    )
    engine.handle(ev.LeaseRequested(at_s=1.0, worker=worker))
    engine.handle(ev.Ticked(at_s=9.0))
    return [json.dumps(engine.snapshot()).encode()]


def _snapshot(data: bytes) -> object:
    return Engine.restore(_json(data), SECRET)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(name="tensors", decode=_decode_tensors, refusals=(MalformedMessage,), samples=_tensors),
        Target(name="frames", decode=_feed_frames, refusals=(MalformedMessage, DigestMismatch), samples=_frames),
        Target(
            name="sequences",
            decode=lambda data: decode_sequences(data, 4, 9, 256),
            refusals=(MalformedMessage,),
            samples=_sequences,
        ),
        Target(name="manifest", decode=Manifest.from_json, refusals=(MalformedMessage,), samples=_manifest),
        Target(
            name="signed-manifest",
            decode=_signed_manifest,
            refusals=(MalformedMessage, Unauthenticated),
            samples=lambda: [bytes(64) + content for content in _manifest()],
        ),
        Target(
            name="join-link",
            decode=lambda data: JoinLink.parse(data.decode("utf-8", "replace")),
            refusals=(ConfigError,),
            samples=_links,
        ),
        Target(name="metadata", decode=_call_metadata, refusals=(Unauthenticated,), samples=_metadata),
        Target(name="requests", decode=_request, refusals=(MalformedMessage, Refused), samples=_requests),
        Target(name="lease", decode=_lease, refusals=(MalformedMessage,), samples=_leases),
        Target(name="run-description", decode=_description, refusals=(MalformedMessage,), samples=_descriptions),
        Target(
            name="model-config",
            decode=lambda data: config_from_json(_json(data)),
            refusals=(MalformedMessage,),
            samples=lambda: [json.dumps(config_to_json(preset("tiny"))).encode()],
        ),
        Target(
            name="dataset-card",
            decode=_card,
            refusals=(ConfigError,),
            samples=_cards,
            base_bytes=MAX_CARD_BYTES + 256 * 1024,  # read in one piece
        ),
        Target(
            name="tokenizer",
            decode=_tokenizer,
            refusals=(ConfigError,),
            samples=lambda: [byte_tokenizer_json()],
            base_bytes=4 * 1024 * 1024,
        ),
        Target(name="journal-record", decode=_journal_record, refusals=(LocalError,), samples=_journal_records),
        Target(
            name="snapshot",
            decode=_snapshot,
            refusals=(LocalError, ConfigError, MalformedMessage),
            samples=_snapshots,
            base_bytes=4 * 1024 * 1024,
        ),
    )
}
