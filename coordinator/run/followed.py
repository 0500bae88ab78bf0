"""The run in a follower's folder: kept as its leader has it, and applied as the leader applied it.

Decides what is done with records that come: checked against the leader's chain, made durable, applied to an engine
of its own, whose commands let go of what the run needs no more and tell the logs of judgements and of credit. No slow
work is done, and nobody is answered. Always: files come before the records that name them; a folder that is being
filled anew is no run (`Seat.whole`). Touches the folder.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from coordinator.engine.commands import AggregateRound, DropPayload
from coordinator.engine.engine import Engine
from coordinator.engine.events import Event
from coordinator.engine.records import event_from_json
from coordinator.engine.snapshots import SnapshotText
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.audit_trail import AuditTrail, Observers
from coordinator.run.base import BASE_FOLDER
from coordinator.run.credit_trail import CreditTrail
from coordinator.run.folder import RunFolder
from coordinator.run.lock import LOCK_FILE
from coordinator.run.pump import load_engine
from coordinator.run.seats import SEAT_FILE
from coordinator.store.artifacts import ArtifactStore
from coordinator.store.audit_log import AuditLog
from coordinator.store.credit_ledger import CreditLedger
from coordinator.store.journal import Journal
from coordinator.store.journal_file import chained
from coordinator.store.ports import Snapshot
from coordinator.store.versions import Versions
from protocol.errors import IllegalEvent, MalformedMessage
from protocol.folders import sync_folder, sync_tree

SNAPSHOT_EVERY = 2000
INCOMING = f"{BASE_FOLDER}incoming"
FOLLOWER_FILES = "standby"
"""What is the follower's own in its folder: its key, and the link."""
_STAYS = frozenset({SEAT_FILE, FOLLOWER_FILES, INCOMING, LOCK_FILE, "control", "lost+found"})


class FollowedRun:
    """One whole run, from `open` to `close`."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._journal = Journal.open(folder.journal_path)
        self._engine, _ = load_engine(self._journal, folder.draw_secret())
        self._store: ArtifactStore = folder.artifacts()
        self._versions = Versions(folder.root / "versions", self._store.blocks, folder.layout())
        self._audit_log, self._ledger = AuditLog.open(folder.audit_path), CreditLedger.open(folder.credit_path)
        self._trails = Observers(
            AuditTrail(self._audit_log, lambda: self._engine.state, self._wall_at_s),
            CreditTrail(self._ledger, lambda: self._engine.state, self._wall_at_s),
        )
        self._text = SnapshotText()
        self._since_snapshot = 0

    @property
    def position(self) -> int:
        """Everything up to there is durable here."""
        return self._journal.last_position

    @property
    def chain(self) -> bytes:
        """Over it."""
        return self._journal.chain

    @property
    def engine(self) -> Engine:
        """The run as it is here."""
        return self._engine

    def append(self, after: int, records: Sequence[str], chain: bytes) -> None:
        """Keep and apply `records`; MalformedMessage, and nothing is kept, where they do not go on from here."""
        if after != self.position:
            raise MalformedMessage(f"records after {after} came, and {self.position} is the last one here")
        expected = self._journal.chain
        for record in records:
            expected = chained(expected, record)
        if expected != chain:
            raise MalformedMessage(f"the records after {after} are not the leader's: their chain is another one")
        events = [event_from_json(record) for record in records]
        self._journal.append(records)
        for event in events:
            self._apply(event)
        self._since_snapshot += len(records)
        if self._since_snapshot >= max(SNAPSHOT_EVERY, self._engine.state.records // 2):
            self.snapshot()

    def snapshot(self) -> None:
        """Cut the journal as a coordinator does."""
        state = "".join(self._text.pieces(self._engine.state))
        self._journal.save_snapshot(Snapshot(position=self.position, engine_version=ENGINE_VERSION, state=state))
        self._since_snapshot = 0

    def close(self) -> None:
        """Release the files."""
        self._journal.close()
        self._audit_log.close()
        self._ledger.close()

    def _apply(self, event: Event) -> None:
        done = self._engine.state.pending.get(getattr(event, "command_id", ""))
        try:
            commands = self._engine.handle(event)
        except IllegalEvent:
            return  # the leader's engine found the same
        self._trails.event(event)
        for command in commands:
            self._trails.command(command, event.at_s)
            if isinstance(command, DropPayload):
                self._store.drop_payload(command.digest)
        if isinstance(done, AggregateRound) and done.command_id not in self._engine.state.pending:
            self._versions.keep_from(done.oldest_needed)

    def _wall_at_s(self, at_s: float) -> float | None:
        return self._engine.state.wall_at_s(at_s)


def begin_incoming(root: Path) -> Path:
    """A folder for the files of a base: of an earlier try it has what is kept under its digest, and nothing else."""
    incoming = root / INCOMING
    incoming.mkdir(mode=0o700, exist_ok=True)
    for path in incoming.iterdir():
        if path.name != "artifacts":
            _removed(path)
    return incoming


def move_in(root: Path) -> None:
    """Put what has come in the place of what was here; the file that makes it a run folder is the last."""
    incoming = root / INCOMING
    for folder in ("checkpoints", "artifacts/uploads"):
        (incoming / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    sync_tree(incoming)
    for path in root.iterdir():
        if path.name not in _STAYS:
            _removed(path)
    for path in sorted(incoming.iterdir(), key=lambda one: one.name == "run.json"):
        path.rename(root / path.name)
    incoming.rmdir()
    sync_folder(root)


def _removed(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def place_of(root: Path, name: str) -> Path:
    """Where a file that the leader names goes; MalformedMessage where that is outside of the folder."""
    parts = name.split("/")
    if not name or len(name) > 400 or any(part in {"", ".", ".."} or "\\" in part for part in parts):
        raise MalformedMessage(f"the leader names a file {name[:80]!r}, which has no place in a run's folder")
    if parts[0] in _STAYS or parts[0].startswith("."):
        raise MalformedMessage(f"the leader names a file {name[:80]!r}, which is the follower's own")
    return root.joinpath(*parts)


def put_in_place(temporary: Path, target: Path) -> None:
    """Move a synced file under its name, durably; of a database, what an older one left beside it goes."""
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            target.with_name(target.name + suffix).unlink()
    temporary.replace(target)
    sync_folder(target.parent)
