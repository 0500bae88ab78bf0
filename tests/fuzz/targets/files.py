"""Decoders of files that may be torn, or come from somebody else: dataset cards, tokenizers, journal, snapshot."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

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
from moe.tokenizer import byte_tokenizer_json
from protocol.errors import ConfigError, LocalError, MalformedMessage
from protocol.ids import BlockId, LeaseId, RunId, WorkerId, digest_of
from tests.fuzz.target import Target, scratch

SECRET = b"a secret of the fuzzer"


# ---- cards and tokenizers


def _card(data: bytes) -> object:
    (scratch() / CARD_FILE).write_bytes(data)
    return read_card(scratch())


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
    path = scratch() / "tokenizer.json"
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
    try:
        state = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("not JSON") from error
    return Engine.restore(state, SECRET)


def _sealed_card(data: bytes) -> bytes:
    """The card with the digest of what it says."""
    try:
        fields = json.loads(data)
        keys = ("vocab_size", "token_bytes", "end_of_document", "train_sha256", "heldout_sha256", "tokenizer_sha256")
        fields["digest"] = content_digest(**{key: fields[key] for key in keys})
        return json.dumps(fields).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return data


TARGETS = (
    Target(
        name="dataset-card",
        decode=_card,
        refusals=(ConfigError,),
        samples=_cards,
        seal=_sealed_card,
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
