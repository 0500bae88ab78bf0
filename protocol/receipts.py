"""Receipts: what a run says of a lease whose work it took, for the volunteer to keep and for anybody to check.

A receipt is canonical JSON (keys sorted, no blanks, ASCII), signed by the key that signs the run's manifests, for which
the run's authority vouches; so are lists of revocations. It names run, round, lease, the worker's key and tokens, and
nobody. Decides the bytes, what is refused, and which badges receipts come to. Holds always: the same fact has the same
bytes and signature whenever it is asked for; badges are a pure function of receipts less revocations. Touches nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from protocol.canonical import length_prefixed
from protocol.errors import MalformedMessage
from protocol.identity import PUBLIC_KEY_BYTES, PrivateIdentity, verify
from protocol.ids import LeaseId, RoundNumber, RunId
from protocol.limits import MAX_CONTROL_BYTES

_RECEIPT_DOMAIN, _REVOCATIONS_DOMAIN = b"barnraise-receipt-v1", b"barnraise-revocations-v1"
MAX_RECEIPT_BYTES = 1024
MAX_NAME = 128
_MAX_INTEGER = 2**53
"""Above it, JSON readers in other languages begin to round."""
_KEY = re.compile(f"[0-9a-f]{{{2 * PUBLIC_KEY_BYTES}}}")

Signed = TypeVar("Signed", bound="Receipt | Revocations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The work of one lease was taken."""

    run_id: RunId
    round: RoundNumber
    lease_id: LeaseId
    worker_key: str
    """Ed25519 public key, in hexadecimal."""
    tokens: int
    """Validated: as the coordinator assigned them."""

    def to_json(self) -> bytes:
        """The one byte string of this receipt."""
        return _canonical(asdict(self))

    @classmethod
    def from_json(cls, content: bytes) -> Receipt:
        """Read untrusted bytes; MalformedMessage says what is wrong."""
        found = _parsed(content, {one.name for one in fields(cls)}, MAX_RECEIPT_BYTES)
        key = found["worker_key"]
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise MalformedMessage("a receipt's worker_key is a public key in hexadecimal")
        receipt = cls(
            run_id=RunId(_name(found, "run_id")),
            round=RoundNumber(_integer(found, "round")),
            lease_id=LeaseId(_name(found, "lease_id")),
            worker_key=key,
            tokens=_integer(found, "tokens"),
        )
        return _checked(receipt, content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocations:
    """Leases whose receipts do not stand any more: an audit, or a rollback, undid their work."""

    run_id: RunId
    issued_at_s: int
    """Calendar time of the newest entry, in seconds since the epoch: of two lists the later one says more."""
    lease_ids: tuple[LeaseId, ...]
    """In ascending order."""

    def to_json(self) -> bytes:
        """The one byte string of this list."""
        return _canonical(asdict(self))

    @classmethod
    def from_json(cls, content: bytes) -> Revocations:
        """Read untrusted bytes; MalformedMessage says what is wrong."""
        found = _parsed(content, {one.name for one in fields(cls)}, MAX_CONTROL_BYTES)
        names = found["lease_ids"]
        if not isinstance(names, list) or not all(isinstance(one, str) and len(one) <= MAX_NAME for one in names):
            raise MalformedMessage("revocations name leases, each a short text")
        revocations = cls(
            run_id=RunId(_name(found, "run_id")),
            issued_at_s=_integer(found, "issued_at_s"),
            lease_ids=tuple(map(LeaseId, names)),
        )
        return _checked(revocations, content)


def sign_receipt(identity: PrivateIdentity, content: bytes) -> bytes:
    """Signature of the manifest key over exactly these bytes of a receipt."""
    return identity.sign(length_prefixed(_RECEIPT_DOMAIN, content))


def sign_revocations(identity: PrivateIdentity, content: bytes) -> bytes:
    """Likewise, of a list of revocations."""
    return identity.sign(length_prefixed(_REVOCATIONS_DOMAIN, content))


def verified_receipt(manifest_key: bytes, content: bytes, signature: bytes) -> Receipt:
    """The receipt that these bytes are. Unauthenticated unless the run signed them; MalformedMessage."""
    if len(content) > MAX_RECEIPT_BYTES:
        raise MalformedMessage(f"a receipt has at most {MAX_RECEIPT_BYTES} bytes, got {len(content)}")
    verify(manifest_key, signature, length_prefixed(_RECEIPT_DOMAIN, content))
    return Receipt.from_json(content)


def verified_revocations(manifest_key: bytes, content: bytes, signature: bytes) -> Revocations:
    """The list that these bytes are. Unauthenticated unless the run signed them; MalformedMessage."""
    verify(manifest_key, signature, length_prefixed(_REVOCATIONS_DOMAIN, content))
    return Revocations.from_json(content)


# ---- what they come to ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Earned:
    """What receipts less revocations come to, within one run."""

    tokens: int
    leases: int
    rounds: int
    revoked: int
    """Receipts that do not stand."""
    badges: tuple[str, ...]


_BADGES: tuple[tuple[str, str, int], ...] = (
    ("first plank", "leases", 1),
    ("ten rounds", "rounds", 10),
    ("a hundred rounds", "rounds", 100),
    ("a thousand rounds", "rounds", 1_000),
    ("a million tokens", "tokens", 10**6),
    ("a hundred million tokens", "tokens", 10**8),
    ("ten billion tokens", "tokens", 10**10),
)
"""Badge, what it counts, and from how many on."""


def earned(receipts: Iterable[Receipt], revoked: Iterable[LeaseId]) -> Earned:
    """The sum, each lease once, and the badges that it is worth. A pure function; order does not matter."""
    gone = set(revoked)
    known = {one.lease_id: one for one in receipts}
    stand = [one for lease_id, one in known.items() if lease_id not in gone]
    counts = {
        "tokens": sum(one.tokens for one in stand),
        "leases": len(stand),
        "rounds": len({one.round for one in stand}),
    }
    badges = tuple(name for name, what, least in _BADGES if counts[what] >= least)
    return Earned(**counts, revoked=len(known) - len(stand), badges=badges)


# ---- bytes ----------------------------------------------------------------------------------------------------------


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _parsed(content: bytes, names: set[str], most_bytes: int) -> dict[str, Any]:
    if len(content) > most_bytes:
        raise MalformedMessage(f"this has {len(content)} bytes, at most {most_bytes} are read")
    try:
        found = json.loads(content.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"this is not JSON: {str(error)[:120]}") from error
    if not isinstance(found, dict) or set(found) != names:
        raise MalformedMessage(f"this must be an object with {', '.join(sorted(names))}, and nothing else")
    return found


def _checked(value: Signed, content: bytes) -> Signed:
    if value.to_json() != content:
        raise MalformedMessage("this is not in canonical form: keys sorted and once, no blanks, ASCII")
    return value


def _name(found: dict[str, Any], name: str) -> str:
    value = found[name]
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME or not value.isprintable():
        raise MalformedMessage(f"{name} must be 1 to {MAX_NAME} printable characters")
    return value


def _integer(found: dict[str, Any], name: str) -> int:
    value = found[name]
    if type(value) is not int or not 0 <= value < _MAX_INTEGER:
        raise MalformedMessage(f"{name} must be a whole number, 0 or more")
    return value
