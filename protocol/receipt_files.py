"""A file of receipts: what a volunteer keeps, hands on, and anybody checks without asking anybody.

    {"authority": PEM, "manifest_key": HEX, "run_id": TEXT, "vouch": HEX}     the first line: by whom all else is signed
    {"receipt": CANONICAL JSON AS TEXT, "signature": HEX}                      one for each lease
    {"revocations": CANONICAL JSON AS TEXT, "signature": HEX}                  of several the latest counts

Decides what of a file holds. Always: nothing is believed but by the run's authority, whose fingerprint is told, since
that alone says whose receipts these are; a line that does not hold spoils no other. Lines may be added at the end; a
last line without its end is not there yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from protocol.errors import BarnraiseError, MalformedMessage
from protocol.ids import RunId
from protocol.receipts import Receipt, Revocations, verified_receipt, verified_revocations
from protocol.tls import fingerprint_of, manifest_key_message, verify_vouch

MAX_FILE_BYTES = 64 << 20
MAX_LINE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptAuthority:
    """Who signs: the run's manifest key, and the certificate that vouches for it."""

    run_id: RunId
    ca_pem: bytes
    manifest_key: bytes
    vouch: bytes

    def check(self) -> str:
        """The fingerprint of the certificate, which vouches for the key; RemoteError where it does not."""
        fingerprint = fingerprint_of(self.ca_pem)
        verify_vouch(self.ca_pem, manifest_key_message(self.run_id, self.manifest_key), self.vouch)
        return fingerprint

    def to_line(self) -> bytes:
        """The first line of a file."""
        return _line(
            {
                "authority": self.ca_pem.decode("ascii"),
                "manifest_key": self.manifest_key.hex(),
                "run_id": self.run_id,
                "vouch": self.vouch.hex(),
            }
        )

    @classmethod
    def from_line(cls, line: bytes) -> ReceiptAuthority:
        """Read untrusted bytes; MalformedMessage."""
        found = _parsed(line)
        texts = {name: found.get(name) for name in ("authority", "manifest_key", "run_id", "vouch")}
        try:
            return cls(
                run_id=RunId(_text(texts["run_id"])),
                ca_pem=_text(texts["authority"]).encode("ascii"),
                manifest_key=bytes.fromhex(_text(texts["manifest_key"])),
                vouch=bytes.fromhex(_text(texts["vouch"])),
            )
        except ValueError as error:
            raise MalformedMessage("the first line does not say by whom the receipts are signed") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedReceipts:
    """What of one file holds."""

    fingerprint: str
    """Of the authority: compare it with the one in a join link of the run."""
    run_id: RunId
    receipts: tuple[Receipt, ...]
    revocations: Revocations | None
    """The latest; None: the file has none."""
    wrong: tuple[str, ...]
    """What does not hold, each with its line and why."""


def receipt_line(content: bytes, signature: bytes) -> bytes:
    """One receipt, as it came."""
    return _line({"receipt": content.decode("ascii"), "signature": signature.hex()})


def revocations_line(content: bytes, signature: bytes) -> bytes:
    """A list of revocations, as it came."""
    return _line({"revocations": content.decode("ascii"), "signature": signature.hex()})


def whole_lines(content: bytes) -> list[bytes]:
    """The lines that were written to their end."""
    return content.split(b"\n")[:-1]


def checked_receipts(content: bytes) -> CheckedReceipts:
    """What of a file holds. RemoteError where not even its first line does: then nothing can be said of the rest."""
    if len(content) > MAX_FILE_BYTES:
        raise MalformedMessage(f"the file has {len(content)} bytes; at most {MAX_FILE_BYTES} are read")
    lines = whole_lines(content)
    if not lines:
        raise MalformedMessage("this is not a file of receipts: it has no line")
    authority = ReceiptAuthority.from_line(lines[0])
    fingerprint = authority.check()
    receipts: dict[str, Receipt] = {}
    revocations: Revocations | None = None
    wrong: list[str] = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            found = _believed(authority, line)
        except BarnraiseError as error:
            wrong.append(f"line {number}: {error}")
            continue
        if isinstance(found, Receipt):
            receipts[found.lease_id] = found
        elif revocations is None or found.issued_at_s >= revocations.issued_at_s:
            revocations = found
    return CheckedReceipts(
        fingerprint=fingerprint,
        run_id=authority.run_id,
        receipts=tuple(receipts.values()),
        revocations=revocations,
        wrong=tuple(wrong),
    )


def keys_in(receipts: tuple[Receipt, ...]) -> Iterator[str]:
    """The workers' keys, each once, in the order in which they come up."""
    return iter(dict.fromkeys(one.worker_key for one in receipts))


def _believed(authority: ReceiptAuthority, line: bytes) -> Receipt | Revocations:
    found = _parsed(line)
    try:
        signature = bytes.fromhex(_text(found.get("signature")))
        kind = "receipt" if "receipt" in found else "revocations"
        content = _text(found.get(kind)).encode("ascii")
    except ValueError as error:
        raise MalformedMessage("neither a receipt nor a list of revocations") from error
    checked: Receipt | Revocations
    if kind == "receipt":
        checked = verified_receipt(authority.manifest_key, content, signature)
    else:
        checked = verified_revocations(authority.manifest_key, content, signature)
    if checked.run_id != authority.run_id:
        raise MalformedMessage(f"it is of run {checked.run_id}, the file of {authority.run_id}")
    return checked


def _line(fields: dict[str, str]) -> bytes:
    return json.dumps(fields, sort_keys=True).encode("ascii") + b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise MalformedMessage(f"a line has {len(line)} bytes; at most {MAX_LINE_BYTES} are read")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("it is not JSON") from error
    if not isinstance(found, dict):
        raise MalformedMessage("it is not a JSON object")
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    return value
