"""The manifest: what one version of the model consists of, block by block, as signed canonical JSON.

A worker believes a block only if a signed manifest names its digest and size. One manifest has one byte string (keys
sorted, no blanks, ASCII), and only that one is accepted, so its digest and signature stand for its meaning. Touches
nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protocol.canonical import length_prefixed
from protocol.errors import MalformedMessage
from protocol.identity import PrivateIdentity, verify
from protocol.ids import BlockId, Digest, RoundNumber, RunId, Version, column_of
from protocol.limits import MAX_CONTROL_BYTES
from protocol.residency import RESIDENCIES

MAX_BLOCKS = 4097
"""Trunk and 4096 columns; the largest models of today have 512 experts in a layer."""
_MAX_INTEGER = 2**53
"""Above it, JSON readers in other languages begin to round."""
_DOMAIN = b"barnraise-manifest-v1"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRef:
    """Where a block's bytes are: a content address and their number."""

    digest: Digest
    payload_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One version of the model. Blocks and momenta are fp32 safetensors payloads."""

    run_id: RunId
    version: Version
    parent_version: Version | None
    """None for version 0 only."""
    round: RoundNumber
    created_at_s: float
    model: Mapping[str, Any]
    """The closed model configuration, as JSON; `moe` validates its content."""
    residency: str
    blocks: Mapping[BlockId, BlockRef]
    momenta: Mapping[BlockId, BlockRef]
    """Outer momentum, for blocks that have one."""
    val_loss: float | None
    tokens_trained: int

    def to_json(self) -> bytes:
        """The one canonical byte string of this manifest."""
        return _canonical(
            {
                "blocks": _refs_to_json(self.blocks),
                "created_at_s": float(self.created_at_s),
                "model": self.model,
                "momenta": _refs_to_json(self.momenta),
                "parent_version": self.parent_version,
                "residency": self.residency,
                "round": self.round,
                "run_id": self.run_id,
                "tokens_trained": self.tokens_trained,
                "val_loss": None if self.val_loss is None else float(self.val_loss),
                "version": self.version,
            }
        )

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Read untrusted bytes; MalformedMessage names the field that is wrong."""
        if len(content) > MAX_CONTROL_BYTES:
            raise MalformedMessage(f"manifest has {len(content)} bytes, at most {MAX_CONTROL_BYTES} are read")
        try:
            fields = json.loads(content.decode("ascii"))
            canonical = _canonical(fields)
        except (ValueError, RecursionError) as error:
            raise MalformedMessage(f"manifest is not JSON: {str(error)[:120]}") from error
        if not isinstance(fields, dict):
            raise MalformedMessage("manifest is not a JSON object")
        manifest = _from_fields(fields)
        if canonical != content:
            raise MalformedMessage("manifest is not in canonical form: keys sorted and once, no blanks, ASCII")
        return manifest


def sign_manifest(identity: PrivateIdentity, content: bytes) -> bytes:
    """Signature of the manifest key over exactly these bytes."""
    return identity.sign(length_prefixed(_DOMAIN, content))


def verify_manifest(public_key: bytes, content: bytes, signature: bytes) -> None:
    """Raises Unauthenticated unless the manifest key signed exactly these bytes. Call before `Manifest.from_json`."""
    verify(public_key, signature, length_prefixed(_DOMAIN, content))


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _refs_to_json(refs: Mapping[BlockId, BlockRef]) -> dict[str, dict[str, object]]:
    return {block: {"digest": ref.digest, "payload_bytes": ref.payload_bytes} for block, ref in refs.items()}


_FIELDS = frozenset(Manifest.__slots__)


def _from_fields(fields: dict[str, Any]) -> Manifest:
    if set(fields) != _FIELDS:
        wrong = sorted(set(fields) ^ _FIELDS)
        raise MalformedMessage(f"manifest has missing or unknown fields: {', '.join(wrong)[:200]}")
    version = _integer(fields, "version")
    parent = None if fields["parent_version"] is None else _integer(fields, "parent_version")
    if (parent is None) != (version == 0) or (parent is not None and parent >= version):
        raise MalformedMessage(f"manifest version {version} cannot have parent_version {parent}")
    blocks = _refs(fields, "blocks")
    momenta = _refs(fields, "momenta")
    if not blocks or not set(momenta) <= set(blocks):
        raise MalformedMessage("manifest must name blocks, and momenta for none but those")
    if not isinstance(fields["model"], dict):
        raise MalformedMessage("manifest field model is not a JSON object")
    if fields["residency"] not in RESIDENCIES:
        raise MalformedMessage(f"manifest residency must be one of {', '.join(RESIDENCIES)}")
    run_id = fields["run_id"]
    if not isinstance(run_id, str) or not 1 <= len(run_id) <= 128 or not run_id.isprintable():
        raise MalformedMessage("manifest run_id must be 1 to 128 printable characters")
    return Manifest(
        run_id=RunId(run_id),
        version=Version(version),
        parent_version=None if parent is None else Version(parent),
        round=RoundNumber(_integer(fields, "round")),
        created_at_s=_real(fields, "created_at_s"),
        model=fields["model"],
        residency=fields["residency"],
        blocks=blocks,
        momenta=momenta,
        val_loss=None if fields["val_loss"] is None else _real(fields, "val_loss"),
        tokens_trained=_integer(fields, "tokens_trained"),
    )


def _integer(fields: dict[str, Any], name: str) -> int:
    value = fields[name]
    if type(value) is not int or not 0 <= value <= _MAX_INTEGER:
        raise MalformedMessage(f"manifest field {name} must be an integer from 0 to {_MAX_INTEGER}")
    return value


def _real(fields: dict[str, Any], name: str) -> float:
    value = fields[name]
    if type(value) is not float or not math.isfinite(value):
        raise MalformedMessage(f"manifest field {name} must be a finite real number")
    return value


def _refs(fields: dict[str, Any], name: str) -> dict[BlockId, BlockRef]:
    entries = fields[name]
    if not isinstance(entries, dict) or len(entries) > MAX_BLOCKS:
        raise MalformedMessage(f"manifest field {name} must be an object of at most {MAX_BLOCKS} blocks")
    refs = {}
    for block, entry in entries.items():
        try:
            column_of(BlockId(block))
        except ValueError as error:
            raise MalformedMessage(f"manifest field {name} has an invalid block id: {block[:40]!r}") from error
        if not isinstance(entry, dict) or set(entry) != {"digest", "payload_bytes"}:
            raise MalformedMessage(f"manifest block {block[:40]} must have digest and payload_bytes")
        digest = entry["digest"]
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise MalformedMessage(f"manifest block {block[:40]} has a digest that is not 64 hexadecimal digits")
        refs[BlockId(block)] = BlockRef(digest=Digest(digest), payload_bytes=_integer(entry, "payload_bytes"))
    return refs
