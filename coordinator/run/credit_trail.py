"""Writes the ledger of credit while the run goes on: which leases were credited, and which were not after all.

Decides when the engine's state is looked at: at the leases that an audit or a verdict is about, and at all of them
after a rollback, at the start, and where the disk took nothing before. Always: a disk that takes nothing costs the run
nothing, and the ledger nothing that the state still knows by the time it takes something again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable

import structlog

from coordinator.engine.commands import AnnounceVerdict, Command
from coordinator.engine.events import Event, LeaseReplayed, VersionRebuilt
from coordinator.engine.reasons import told
from coordinator.engine.rows import LeaseRecord
from coordinator.engine.state import EngineState
from coordinator.store.credit_ledger import CreditEntry, CreditLedger, RevocationEntry
from protocol.ids import LeaseId

_log = structlog.get_logger("coordinator")


class CreditTrail:
    """One run's. An observer of the pump; used in one thread."""

    def __init__(
        self, ledger: CreditLedger, state: Callable[[], EngineState], wall_at_s: Callable[[float], float | None]
    ) -> None:
        self._ledger = ledger
        self._state = state
        self._wall_at_s = wall_at_s
        self._is_behind = False

    def catch_up(self) -> None:
        """Write whatever the state knows and the ledger does not."""
        self._write(self._state().leases.values())

    def event(self, event: Event) -> None:
        """`event` was applied."""
        if self._is_behind or isinstance(event, VersionRebuilt):
            self.catch_up()
            return
        if isinstance(event, LeaseReplayed):
            self._look_at(event.lease_id)

    def command(self, command: Command, at_s: float) -> None:
        """`command` follows from it."""
        if isinstance(command, AnnounceVerdict):
            self._look_at(command.lease_id)

    def _look_at(self, lease_id: LeaseId) -> None:
        record = self._state().leases.get(lease_id)
        if record is not None:
            self._write([record])

    def _write(self, records: Iterable[LeaseRecord]) -> None:
        wall_s = self._wall_at_s(self._state().now_s)
        credited, revoked = [], []
        for one in records:
            lease = one.lease
            if one.credited:
                credited.append(
                    CreditEntry(
                        lease_id=lease.lease_id,
                        worker=lease.worker,
                        round=lease.round,
                        sequences=one.credited,
                        wall_s=wall_s,
                    )
                )
            elif one.uncredited is not None:
                why = told(one.uncredited)
                revoked.append(RevocationEntry(lease_id=lease.lease_id, worker=lease.worker, why=why, wall_s=wall_s))
        try:
            self._ledger.write(credited, revoked)
            self._is_behind = False
        except sqlite3.Error as error:
            if not self._is_behind:
                _log.warning("credit_ledger_not_written", reason=str(error))
            self._is_behind = True
