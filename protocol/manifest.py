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
from dataclasses import asdict, dataclass, field
from typing import Any

from protocol.canonical import length_prefixed
from protocol.errors import MalformedMessage
from protocol.identity import PrivateIdentity, verify
from protocol.ids import BlockId, Digest, RoundNumber, RunId, Version, column_of
from protocol.limits import MAX_CONTROL_BYTES
from protocol.residency import RESIDENCIES

MAX_BLOCKS = 4097
"""Trunk and 4096 columns; the largest models of today have 512 experts in a layer."""
MAX_STEPS = 2048
"""Steps that all chains of one manifest have, so that it stays under `MAX_CONTROL_BYTES`; a block's may have one."""
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
class DeltaRef:
    """One step towards a block: whoever has the block `base` makes the next one of it (protocol/deltas.py)."""

    base: Digest
    """Of the whole payload that it starts from."""
    digest: Digest
    """Of the delta's own payload."""
    payload_bytes: int
    codec: str
    """What the delta is encoded in: a name of protocol/codecs.py, known to whoever takes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenRefs:
    """What stands in for columns that a worker does not hold: all columns of one version, in one encoding."""

    version: Version
    """Whose columns they are: the manifest's own, or an earlier one."""
    codec: str
    blocks: Mapping[BlockId, BlockRef]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One version of the model. Blocks, masters and momenta are fp32 safetensors payloads."""

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
    deltas: Mapping[BlockId, tuple[DeltaRef, ...]] = field(default_factory=dict)
    """How a block may be come to from earlier ones: the last step first, each from what the next one comes to."""
    masters: Mapping[BlockId, BlockRef] = field(default_factory=dict)
    """What the coordinator goes on from, where that is not the published block: it is served to nobody."""
    frozen: FrozenRefs | None = None
    """None: columns that are not held are those of `blocks`."""

    def to_json(self) -> bytes:
        """The one canonical byte string of this manifest."""
        added: dict[str, object] = {}
        if self.deltas:
            added["deltas"] = {block: [asdict(step) for step in steps] for block, steps in self.deltas.items()}
        if self.masters:
            added["masters"] = _refs_to_json(self.masters)
        if self.frozen is not None:
            added["frozen"] = {**asdict(self.frozen), "blocks": _refs_to_json(self.frozen.blocks)}
        return _canonical(
            {
                **added,
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


_OPTIONAL = frozenset({"deltas", "masters", "frozen"})
"""Manifests of before had none of them; one that says nothing is left out, so that the byte string stays the one."""
_FIELDS = frozenset(Manifest.__slots__) - _OPTIONAL


def _from_fields(fields: dict[str, Any]) -> Manifest:
    if set(fields) - _OPTIONAL != _FIELDS:
        wrong = sorted((set(fields) - _OPTIONAL) ^ _FIELDS)
        raise MalformedMessage(f"manifest has missing or unknown fields: {', '.join(wrong)[:200]}")
    version = _integer(fields, "version")
    parent = None if fields["parent_version"] is None else _integer(fields, "parent_version")
    if (parent is None) != (version == 0) or (parent is not None and parent >= version):
        raise MalformedMessage(f"manifest version {version} cannot have parent_version {parent}")
    blocks = _refs(fields, "blocks")
    momenta = _refs(fields, "momenta")
    if not blocks or not set(momenta) <= set(blocks):
        raise MalformedMessage("manifest must name blocks, and momenta for none but those")
    _check_optional(fields)
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
        deltas=_deltas(fields.get("deltas", {}), blocks),
        masters=_among(_refs(fields, "masters"), blocks, "masters") if "masters" in fields else {},
        frozen=_frozen(fields["frozen"], blocks, version) if "frozen" in fields else None,
    )


def _check_optional(fields: dict[str, Any]) -> None:
    for name in _OPTIONAL & set(fields):
        if not isinstance(fields[name], dict) or not fields[name]:
            raise MalformedMessage(f"manifest field {name} must be an object that says something, or be left out")


def _among(refs: dict[BlockId, BlockRef], blocks: Mapping[BlockId, BlockRef], name: str) -> dict[BlockId, BlockRef]:
    if not set(refs) <= set(blocks):
        raise MalformedMessage(f"manifest field {name} names blocks that the version does not have")
    return refs


def _deltas(entries: dict[str, Any], blocks: Mapping[BlockId, BlockRef]) -> dict[BlockId, tuple[DeltaRef, ...]]:
    chains: dict[BlockId, tuple[DeltaRef, ...]] = {}
    for block, steps in entries.items():
        if block not in blocks or not isinstance(steps, list) or not steps:
            raise MalformedMessage(f"manifest delta {block[:40]} must be a list of steps towards one of its blocks")
        chains[BlockId(block)] = tuple(_step(step, block) for step in steps)
    if sum(map(len, chains.values())) > max(MAX_STEPS, len(blocks)):
        raise MalformedMessage(f"manifest has more than {MAX_STEPS} steps between versions")
    return chains


def _step(entry: object, block: str) -> DeltaRef:
    if not isinstance(entry, dict) or set(entry) != {"base", "digest", "payload_bytes", "codec"}:
        raise MalformedMessage(f"manifest delta {block[:40]} must have base, digest, payload_bytes and codec")
    return DeltaRef(
        base=_digest(entry["base"], block),
        digest=_digest(entry["digest"], block),
        payload_bytes=_integer(entry, "payload_bytes"),
        codec=_codec(entry["codec"]),
    )


def _frozen(entry: dict[str, Any], blocks: Mapping[BlockId, BlockRef], version: int) -> FrozenRefs:
    if set(entry) != {"version", "codec", "blocks"}:
        raise MalformedMessage("manifest field frozen must have version, codec and blocks")
    of = _integer(entry, "version")
    if of > version:
        raise MalformedMessage(f"manifest version {version} cannot have frozen columns of version {of}")
    refs = _among(_refs(entry, "blocks"), blocks, "frozen")
    return FrozenRefs(version=Version(of), codec=_codec(entry["codec"]), blocks=refs)


def _codec(value: object) -> str:
    """Whether there is such a codec is for whoever decodes it: a newer one is no reason to refuse all the rest."""
    if not isinstance(value, str) or not 1 <= len(value) <= 32 or not value.isprintable():
        raise MalformedMessage("manifest codec must be 1 to 32 printable characters")
    return value


def _digest(value: object, block: str) -> Digest:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise MalformedMessage(f"manifest block {block[:40]} has a digest that is not 64 hexadecimal digits")
    return Digest(value)


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
        digest = _digest(entry["digest"], block)
        refs[BlockId(block)] = BlockRef(digest=digest, payload_bytes=_integer(entry, "payload_bytes"))
    return refs
