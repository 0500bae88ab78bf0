"""An archive: all that is needed to train a run on without those who began it, and why it is to be believed.

A folder that holds `archive.json` and, beside it, `blobs/` with a file for each digest that the index names: of one
version the blocks as they are published, what the coordinator goes on from, and its momentum; and what stands beside
the weights in exports. The index carries the version's signed manifest, a signed record of the run (its recipe, its
data's card), and the chain by which both are believed: the run's certificate, and its word for the signing key. No key
and no secret is in it. Decides what of an index is believed: nothing that the chain does not cover. Touches nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from protocol.canonical import length_prefixed
from protocol.errors import MalformedMessage
from protocol.identity import PUBLIC_KEY_BYTES, PrivateIdentity, verify
from protocol.ids import Digest, RunId, Version, digest_of
from protocol.limits import MAX_CONTROL_BYTES
from protocol.manifest import BlockRef, Manifest, verify_manifest
from protocol.tls import fingerprint_of, manifest_key_message, verify_vouch

INDEX_FILE: Final = "archive.json"
BLOBS_FOLDER: Final = "blobs"
MAX_RECORD_BYTES: Final = 1 << 20
MAX_INDEX_BYTES: Final = 3 * MAX_CONTROL_BYTES + 2 * MAX_RECORD_BYTES
MAX_COMPANIONS: Final = 16
MAX_COMPANION_BYTES: Final = 256 << 20
"""A tokenizer's largest."""
_DOMAIN = b"barnraise-archive-v1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RECORD = {"run_id", "version", "manifest", "settings", "goes_on", "dtype", "data", "companions"}
_INDEX = {"ca_pem", "manifest_key", "vouch", "manifest", "manifest_signature", "record", "record_signature"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveRecord:
    """What a run says of itself, beside the manifest of one version."""

    run_id: RunId
    version: Version
    manifest: Digest
    settings: Mapping[str, Any]
    """The recipe: settings of the run that name no place and no person."""
    goes_on: bool
    """Whether the run began with a checkpoint."""
    dtype: str
    """What exports are kept in."""
    data: Mapping[str, Any]
    """The card of its data, the digest among it."""
    companions: Mapping[str, BlockRef]
    """What stands beside the weights in exports, by file name."""

    def to_json(self) -> bytes:
        """The one byte string of this record."""
        refs = {
            name: {"digest": one.digest, "payload_bytes": one.payload_bytes} for name, one in self.companions.items()
        }
        named = {name: getattr(self, name) for name in _RECORD - {"companions"}}
        return _canonical({**named, "companions": refs})

    @classmethod
    def from_json(cls, content: bytes) -> ArchiveRecord:
        """Read untrusted bytes; MalformedMessage says what is wrong."""
        found = _parsed(content, _RECORD, MAX_RECORD_BYTES, "an archive's record")
        kinds = {"run_id": str, "version": int, "manifest": str, "goes_on": bool, "dtype": str}
        wrong = [name for name, kind in kinds.items() if type(found[name]) is not kind]
        wrong += [name for name in ("settings", "data", "companions") if not isinstance(found[name], dict)]
        if wrong or not _DIGEST.fullmatch(found["manifest"]):
            raise MalformedMessage(f"an archive's record has fields of another kind: {', '.join(wrong) or 'manifest'}")
        if found["dtype"] not in ("fp32", "bf16", "fp16"):
            raise MalformedMessage(f"an archive's record has the dtype {found['dtype']!r:.20}")
        if len(found["companions"]) > MAX_COMPANIONS:
            raise MalformedMessage(f"an archive's record names {len(found['companions'])} companions")
        companions = {name: _companion(name, one) for name, one in found["companions"].items()}
        return cls(**{**found, "companions": companions})


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveIndex:
    """One archived version, checked."""

    ca_pem: bytes
    manifest_key: bytes
    vouch: bytes
    manifest_json: bytes
    manifest_signature: bytes
    record_json: bytes
    record_signature: bytes

    @property
    def record(self) -> ArchiveRecord:
        """Of the run."""
        return ArchiveRecord.from_json(self.record_json)

    @property
    def manifest(self) -> Manifest:
        """Of the version."""
        return Manifest.from_json(self.manifest_json)

    @property
    def fingerprint(self) -> str:
        """Of the run's certificate: what stands in its join links."""
        return fingerprint_of(self.ca_pem)

    def to_json(self) -> bytes:
        """As `archive.json`."""
        return _canonical(
            {
                "ca_pem": self.ca_pem.decode("ascii"),
                "manifest_key": self.manifest_key.hex(),
                "vouch": self.vouch.hex(),
                "manifest": self.manifest_json.decode("ascii"),
                "manifest_signature": self.manifest_signature.hex(),
                "record": self.record_json.decode("ascii"),
                "record_signature": self.record_signature.hex(),
            }
        )

    @classmethod
    def from_json(cls, content: bytes) -> ArchiveIndex:
        """Read and check untrusted bytes; MalformedMessage or Unauthenticated says what is wrong."""
        found = _parsed(content, _INDEX, MAX_INDEX_BYTES, "archive.json")
        if not all(isinstance(one, str) for one in found.values()):
            raise MalformedMessage("archive.json has fields that are no text")
        try:
            index = cls(
                ca_pem=found["ca_pem"].encode("ascii"),
                manifest_key=bytes.fromhex(found["manifest_key"]),
                vouch=bytes.fromhex(found["vouch"]),
                manifest_json=found["manifest"].encode("ascii"),
                manifest_signature=bytes.fromhex(found["manifest_signature"]),
                record_json=found["record"].encode("ascii"),
                record_signature=bytes.fromhex(found["record_signature"]),
            )
        except ValueError as error:
            raise MalformedMessage("archive.json has keys or signatures that are not hexadecimal") from error
        index.check()
        return index

    def check(self) -> None:
        """Unauthenticated unless the certificate's owner vouches for all of it; MalformedMessage."""
        if len(self.manifest_key) != PUBLIC_KEY_BYTES:
            raise MalformedMessage(f"a signing key has {PUBLIC_KEY_BYTES} bytes, got {len(self.manifest_key)}")
        verify_manifest(self.manifest_key, self.manifest_json, self.manifest_signature)
        verify(self.manifest_key, self.record_signature, length_prefixed(_DOMAIN, self.record_json))
        record, manifest = self.record, self.manifest
        verify_vouch(self.ca_pem, manifest_key_message(record.run_id, self.manifest_key), self.vouch)
        told = (record.run_id, record.version, record.manifest)
        got = (manifest.run_id, manifest.version, digest_of(self.manifest_json))
        if told != got:
            raise MalformedMessage(f"archive.json: its record is of {told}, its manifest of {got}")

    def named(self) -> dict[Digest, BlockRef]:
        """Every file of `blobs/`."""
        return {ref.digest: ref for ref in (*archived(self.manifest), *self.record.companions.values())}


def archived(manifest: Manifest) -> Iterator[BlockRef]:
    """What an archive holds of a version: all that nobody could make of the rest."""
    yield from manifest.blocks.values()
    yield from manifest.masters.values()
    yield from manifest.momenta.values()


def sign_record(identity: PrivateIdentity, content: bytes) -> bytes:
    """Signature of the manifest key over exactly these bytes of a record."""
    return identity.sign(length_prefixed(_DOMAIN, content))


def _companion(name: str, entry: Any) -> BlockRef:
    if not _NAME.fullmatch(name) or not isinstance(entry, dict) or set(entry) != {"digest", "payload_bytes"}:
        raise MalformedMessage(f"an archive's companion {name!r:.40} is no file with digest and payload_bytes")
    digest, size = entry["digest"], entry["payload_bytes"]
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise MalformedMessage(f"an archive's companion {name} has no digest")
    if type(size) is not int or not 0 <= size <= MAX_COMPANION_BYTES:
        raise MalformedMessage(f"an archive's companion {name} has {size!r:.20} bytes, at most {MAX_COMPANION_BYTES}")
    return BlockRef(digest=Digest(digest), payload_bytes=size)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _parsed(content: bytes, wanted: set[str], most: int, what: str) -> dict[str, Any]:
    if len(content) > most:
        raise MalformedMessage(f"{what} has {len(content)} bytes, at most {most} are read")
    try:
        found = json.loads(content.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"{what} is not JSON") from error
    if not isinstance(found, dict) or set(found) != wanted:
        raise MalformedMessage(f"{what} must have exactly {', '.join(sorted(wanted))}")
    return found
