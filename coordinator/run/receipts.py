"""Receipts and lists of revocations, signed: for the worker that asks, and, of the whole run, for its operator.

Decides how many are signed at a time. Reads the ledger of credit; a receipt is written anew from it whenever it is
asked for, and is the same each time, for the key that the worker has at present.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.store.credit_ledger import CreditLedger, RevocationEntry
from protocol.identity import PrivateIdentity
from protocol.ids import RunId, WorkerId
from protocol.receipts import Receipt, Revocations, sign_receipt, sign_revocations

PAGE_RECEIPTS = 64
"""A few milliseconds of signing, in which nobody else is answered."""
MOST_REVOKED = 20_000
"""Named in one list, the latest: as many as fit into a control message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedBytes:
    """Canonical JSON and the manifest key's signature over it."""

    content: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptBook:
    """One run's."""

    run_id: RunId
    ledger: CreditLedger
    identity: PrivateIdentity
    """Which signs the manifests, too."""
    tokens_a_sequence: int

    def receipts(self, worker: WorkerId, public_key: bytes, after: int) -> tuple[list[SignedBytes], int]:
        """The worker's next ones, and the number to ask after next time."""
        entries = self.ledger.credits_of(worker, after=after, most=PAGE_RECEIPTS)
        found: list[SignedBytes] = []
        for entry in entries:
            content = Receipt(
                run_id=self.run_id,
                round=entry.round,
                lease_id=entry.lease_id,
                worker_key=public_key.hex(),
                tokens=entry.sequences * self.tokens_a_sequence,
            ).to_json()
            found.append(SignedBytes(content=content, signature=sign_receipt(self.identity, content)))
        return found, entries[-1].number if entries else after

    def revocations(self, worker: WorkerId | None = None) -> SignedBytes:
        """Of this worker, or of everybody."""
        content = revocations_of(self.run_id, self.ledger.revocations(worker)).to_json()
        return SignedBytes(content=content, signature=sign_revocations(self.identity, content))


def revocations_of(run_id: RunId, entries: Iterable[RevocationEntry]) -> Revocations:
    """The list that says so."""
    latest = sorted(entries, key=lambda one: one.wall_s or 0.0)[-MOST_REVOKED:]
    return Revocations(
        run_id=run_id,
        issued_at_s=int(max((one.wall_s or 0.0 for one in latest), default=0.0)),
        lease_ids=tuple(sorted(one.lease_id for one in latest)),
    )
