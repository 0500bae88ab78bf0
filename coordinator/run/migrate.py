"""A run of an earlier release is brought to this one on purpose: looked at first, kept as it was, then changed.

Decides nothing that opening a run does not decide, too (coordinator/run/migrations.py, and each store's own); it does
that alone, and says what it found. Always: before anything is changed there is a whole copy of the folder, which the
release before opens; nobody serves the run meanwhile; a follower's folder is its follower's alone; a dry run writes
nothing. Touches the run folder and the copy.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.folder import RUN_KIND, RunFolder
from coordinator.run.lock import LOCK_FILE, folder_lock
from coordinator.run.pump import load_engine
from coordinator.run.seats import require_leads
from coordinator.store.audit_log import AuditLog
from coordinator.store.credit_ledger import CreditLedger
from coordinator.store.journal import Journal
from protocol.folders import filled_whole

_NOT_COPIED = {LOCK_FILE, "control", "checkpoints", "events.jsonl", "log"}
"""Of this process, or made anew, or never read back."""
_NEVER_REWRITTEN = "artifacts"
"""Named by what is in them: a second name for the same file is as good as a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """What was found, and what was done."""

    found: int
    """The engine version that wrote the journal."""
    now: int
    run_id: str
    round: int
    version: int
    backup: str | None
    migrated: bool


def migrate(run: RunFolder, *, backup: Path | None, dry_run: bool) -> Migrated:
    """Bring `run` to this release, with a copy of it in the new folder `backup` before; ConfigError where it cannot be.

    `dry_run`: in memory alone.
    """
    if dry_run:
        return _looked_at(run)
    lock = folder_lock(run.root)
    lock.acquire()
    try:
        require_leads(run.root)
        told = _looked_at(run)  # so that nothing is copied, or changed, of a run that cannot go on
        if told.found == ENGINE_VERSION:
            return told
        if backup is not None:
            _copy(run, backup)
        _change(run)
    finally:
        lock.release()
    kept = None if backup is None else str(backup)
    return Migrated(
        found=told.found, now=told.now, run_id=told.run_id, round=told.round, version=told.version,
        backup=kept, migrated=True,
    )  # fmt: skip


def _looked_at(run: RunFolder) -> Migrated:
    """From a copy: SQLite makes files beside a database that it only reads."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in run.root.glob(f"{run.journal_path.name}*"):
            shutil.copyfile(path, Path(scratch) / path.name)
        journal = Journal.open(Path(scratch) / run.journal_path.name)
        try:
            found = journal.engine_version
            state = load_engine(journal, run.draw_secret(), only_read=True)[0].state
        finally:
            journal.close()
    return Migrated(
        found=found,
        now=ENGINE_VERSION,
        run_id=run.run_id,
        round=int(state.round.round),
        version=int(state.version),
        backup=None,
        migrated=False,
    )


def _copy(run: RunFolder, backup: Path) -> None:
    with filled_whole(backup, RUN_KIND, way_out="a backup goes into a new or an empty folder") as building:
        for path in sorted(run.root.rglob("*")):
            name = path.relative_to(run.root)
            if name.parts[0] in _NOT_COPIED or path.is_symlink():
                continue
            target = building / name
            if path.is_dir():
                target.mkdir(mode=0o700, exist_ok=True)
            elif name.parts[0] != _NEVER_REWRITTEN or not _linked(path, target):
                shutil.copyfile(path, target)
                target.chmod(0o600)
        (building / "checkpoints").mkdir()


def _linked(path: Path, target: Path) -> bool:
    with contextlib.suppress(OSError):  # another disk, or a file system without
        os.link(path, target)
        return True
    return False


def _change(run: RunFolder) -> None:
    """Each store brings itself to this release when it is opened to be written."""
    journal = Journal.open(run.journal_path)
    try:
        load_engine(journal, run.draw_secret())
    finally:
        journal.close()
    run.registry().close()
    AuditLog.open(run.audit_path).close()
    CreditLedger.open(run.credit_path).close()
