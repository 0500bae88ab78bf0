"""A run's credit, read from its folder: the ranking, and the signed list of what was taken back.

Decides nothing (coordinator/engine/credit.py does). Reads the journal without writing, beside a coordinator that serves
the run or none; writes the file that it is given.
"""

from __future__ import annotations

from pathlib import Path

from coordinator.engine.credit import CreditOf, CreditRow, ranking
from coordinator.engine.state import EngineState
from coordinator.run.folder import RunFolder
from coordinator.run.pump import load_engine
from coordinator.run.receipts import ReceiptBook
from coordinator.store.credit_ledger import CreditLedger
from coordinator.store.journal import Journal
from coordinator.store.people import Said, said_in
from protocol.private_files import write_private
from protocol.receipt_files import ReceiptAuthority, revocations_line
from protocol.tls import manifest_key_message


def ranked(state: EngineState, said: Said, tokens_a_sequence: int, by: CreditOf) -> tuple[CreditRow, ...]:
    """Of a run that is open."""
    return ranking(
        state.workers.values(),
        by=by,
        tokens_a_sequence=tokens_a_sequence,
        name_of=lambda worker: said.names.get(worker) or state.called(worker),
        team_of=lambda worker: said.teams.get(worker, ""),
    )


def credit_of(run: RunFolder, by: CreditOf) -> tuple[CreditRow, ...]:
    """Of a run's folder, as of the journal's last record."""
    journal = Journal.open(run.journal_path, writable=False)
    try:
        state = load_engine(journal, run.draw_secret(), only_read=True)[0].state
    finally:
        journal.close()
    return ranked(state, said_in(run.registry_path), run.settings().sequence_length, by)


def write_revocations(run: RunFolder, path: Path) -> int:
    """The whole run's list, signed, as a file for `barnraise receipt verify --revocations`; how many it names."""
    authority, identity = run.authority(), run.manifest_identity()
    ledger = CreditLedger.open(run.credit_path)
    try:
        book = ReceiptBook(run_id=run.run_id, ledger=ledger, identity=identity, tokens_a_sequence=0)
        signed, count = book.revocations(), len(ledger.revocations())
    finally:
        ledger.close()
    said_by = ReceiptAuthority(
        run_id=run.run_id,
        ca_pem=authority.cert_pem,
        manifest_key=identity.public_key,
        vouch=authority.sign(manifest_key_message(run.run_id, identity.public_key)),
    )
    write_private(path, said_by.to_line() + revocations_line(signed.content, signed.signature))
    return count
