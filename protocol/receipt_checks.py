"""Several files of receipts, and lists of revocations, together: what they come to, run by run, and what does not hold.

Decides what is added up: each lease once, whoever shows it; of a run only what one authority signed; less what any list
says was taken back. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.ids import LeaseId
from protocol.receipt_files import CheckedReceipts, keys_in
from protocol.receipts import Earned, Receipt, earned

LEAST_FINGERPRINT = 12
"""Characters of one that may stand for it: as much as a way back into a run has."""

Read = tuple[str, CheckedReceipts | str]
"""A file's name, and what of it holds or why nothing does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReceipts:
    """What one run's receipts come to."""

    run_id: str
    fingerprint: str
    """Of the authority under which they were signed."""
    worker_keys: tuple[str, ...]
    earned: Earned


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptReport:
    """What a verification found."""

    holds: bool
    runs: tuple[RunReceipts, ...]
    wrong: tuple[str, ...]


def checked_together(files: Sequence[Read], lists: Sequence[Read], authority: str = "") -> ReceiptReport:
    """`authority`: a fingerprint, or how it begins; whatever another signed does not hold then."""
    wrong: list[str] = []
    wanted = authority.lower()
    if wanted and len(wanted) < LEAST_FINGERPRINT:
        wrong.append(f"--authority has {len(wanted)} characters; give at least {LEAST_FINGERPRINT} of the fingerprint")
    receipts: dict[tuple[str, str], list[Receipt]] = {}
    revoked: dict[tuple[str, str], set[LeaseId]] = {}
    for place, (name, found) in enumerate((*files, *lists)):
        if isinstance(found, str):
            wrong.append(f"{name}: {found}")
            continue
        if not found.fingerprint.startswith(wanted):
            wrong.append(f"{name}: signed under {found.fingerprint[:16]}…, not under {authority}")
            continue
        wrong += [f"{name}: {one}" for one in found.wrong]
        run = (found.run_id, found.fingerprint)
        if place < len(files):
            receipts.setdefault(run, []).extend(found.receipts)
        if found.revocations is not None:
            revoked.setdefault(run, set()).update(found.revocations.lease_ids)
    runs = tuple(
        RunReceipts(
            run_id=run_id,
            fingerprint=fingerprint,
            worker_keys=tuple(keys_in(tuple(found))),
            earned=earned(found, revoked.get((run_id, fingerprint), ())),
        )
        for (run_id, fingerprint), found in receipts.items()
    )
    return ReceiptReport(holds=not wrong, runs=runs, wrong=tuple(wrong))
