"""A copy of a run that can go on elsewhere, taken while the run is served; and putting it back.

Decides in which order a backup is taken. Always: the settings are copied first, then the journal, at one moment
between two commits, and then everything that the engine of that moment needs (`needed.py`), found by replaying the
copy; files that the running coordinator may delete meanwhile are pinned first, and if one is gone already the journal
is copied anew. Every file's digest is taken while it is copied, content-addressed ones must match their names, and the
list is signed by the run's own authority. A backup holds the run's secrets: it is as private as the run folder.

Not in it: exported checkpoints (`barnraise coordinator export` makes them again), `events.jsonl` (never read back),
uploads that are not whole (nobody was told that they are safe), and the page's password (whoever has the folder sets
another).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from coordinator.run.changing import SETTINGS_WRITTEN
from coordinator.run.needed import Needed, needed_by
from coordinator.run.password import PASSWORD_FILE
from coordinator.run.pump import load_engine
from coordinator.store.artifacts import blob_name
from coordinator.store.journal import Journal
from coordinator.store.versions import Versions
from protocol.errors import ConfigError, LocalError, RemoteError
from protocol.folders import Kind, filled_whole
from protocol.ids import Digest
from protocol.private_files import write_private
from protocol.tls import verify_vouch

if TYPE_CHECKING:
    from coordinator.run.folder import RunFolder

RECORD = "backup.json"
SIGNATURE = "backup.sig"
BACKUP_KIND = Kind(completed_by=SIGNATURE, private=True)
_DOMAIN = b"barnraise backup v1\n"
_SETTINGS = "settings.toml"
PLAIN_FILES = ("run.json", "endpoint.json", "record.json", "sharers.json", "peers.json", "seat.json")
COPIED_FOLDERS = ("p2p", "secret", "dataset", "screening", "tokenizer")
NEVER_COPIED = frozenset({PASSWORD_FILE})
"""A copy would open the page to a password that was changed or dropped since, most likely because it was known."""
ATTEMPTS = 10
"""Copies of the journal before giving up; each lasts milliseconds, and a version is made in seconds at the least."""
_CHUNK_BYTES = 1 << 20
BytesOpener = Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupFacts:
    """What a backup holds."""

    run_id: str
    position: int
    """Of the journal's last event in it."""
    version: int
    files: int
    total_bytes: int


def back_up(run: RunFolder, out: Path) -> BackupFacts:
    """Copy `run` into the new or empty folder `out`; it is there whole or not at all."""
    with filled_whole(out, BACKUP_KIND) as building, contextlib.ExitStack() as pinned:
        position, version, blobs = take_state(run, building, pinned)
        files = _copy_all(run, building, blobs)
        return _seal(run, building, files, position, version)


def restore(backup: Path, folder: Path) -> BackupFacts:
    """Make the run folder `folder` from `backup`; ConfigError where a file is not what was backed up."""
    from coordinator.run.folder import RUN_KIND

    record = _checked_record(backup)
    with filled_whole(folder, RUN_KIND) as building:
        for name, entry in record["files"].items():
            if _copied(_opener(backup / name), building / name) != entry["sha256"]:
                raise ConfigError(f"{backup / name} is not what was backed up; use another backup")
        (building / "checkpoints").mkdir(exist_ok=True)
    return _facts(record)


def take_state(run: RunFolder, building: Path, pinned: contextlib.ExitStack) -> tuple[int, int, dict[str, BytesOpener]]:
    """Copy the journal, and pin all that its state needs: name in the backup to what opens it until `pinned` ends."""
    target = building / "journal.sqlite"
    gone: FileNotFoundError | None = None
    for _ in range(ATTEMPTS):
        for stale in (*building.glob("journal.sqlite*"), building / _SETTINGS):
            stale.unlink(missing_ok=True)
        # before the journal: a setting that is changed in between is then brought into line, as after a crash
        _copied(_opener(run.root / _SETTINGS), building / _SETTINGS)
        source = Journal.open(run.journal_path, writable=False)
        try:
            source.copy_to(target)
        finally:
            source.close()
        copy = Journal.open(target)
        try:
            engine, _ = load_engine(copy, run.draw_secret())
            copy.set_meta(SETTINGS_WRITTEN, "0")
            position, needed = copy.last_position, needed_by(engine.state)
        finally:
            copy.close()
        try:
            with contextlib.ExitStack() as attempt:
                files = _files_of(run, needed, attempt)
                pinned.push(attempt.pop_all())
                return position, needed.version, files
        except (FileNotFoundError, LocalError) as error:
            gone = error if isinstance(error, FileNotFoundError) else FileNotFoundError(str(error))
    raise ConfigError(
        f"a file that the run needs is missing or changes all the time ({gone}): "
        "look with `barnraise coordinator verify`, then try again"
    )


def _files_of(run: RunFolder, needed: Needed, pinned: contextlib.ExitStack) -> dict[str, BytesOpener]:
    store = run.artifacts()
    versions = Versions(run.root / "versions", store.blocks, run.layout())
    index: dict[str, BytesOpener] = {}
    blocks: list[Digest] = []
    for version in needed.versions_among(versions.kept()):
        manifest = versions.manifest_digest(version)
        if manifest is not None:
            name = f"versions/{version:08d}.json"
            index[name] = partial(io.BytesIO, (run.root / name).read_bytes())
        elif version == needed.version:
            manifest = needed.manifest  # an opening puts the index right
        else:
            continue  # dropped since it was listed
        blocks += [manifest, *versions.named_by(manifest)]
    payloads = [*needed.payloads.values(), *(digest for _, digest in needed.residuals)]
    for folder, blobs, digests in (("payloads", store.payloads, payloads), ("blocks", store.blocks, blocks)):
        wanted = dict.fromkeys(digests)
        opened = pinned.enter_context(blobs.pin(wanted))
        index |= {f"artifacts/{folder}/{blob_name(digest)}": partial(opened, digest) for digest in wanted}
    return index


def _copy_all(run: RunFolder, building: Path, blobs: dict[str, BytesOpener]) -> dict[str, dict[str, Any]]:
    files = {name: _entry(opener, building / name) for name, opener in blobs.items()}
    for name, entry in files.items():
        if name.startswith("artifacts/") and entry["sha256"] != Path(name).name:
            raise ConfigError(
                f"{run.root / name} is not what its name promises; `barnraise coordinator verify` says more"
            )
    for database in (run.registry_path, run.audit_path, run.credit_path):
        if database.is_file():
            copy_database(database, building / database.name)
    for name, path in plain_files(run.root).items():
        files[name] = _entry(_opener(path), building / name)
    for path in (building / _SETTINGS, *sorted(building.glob("*.sqlite*"))):
        files[path.name] = {"sha256": _digest(path), "bytes": path.stat().st_size}
    return files


def plain_files(root: Path) -> dict[str, Path]:
    """What is copied as it lies there, beside what the journal needs: by its name, with `/`."""
    found = [root / name for name in PLAIN_FILES]
    for folder in COPIED_FOLDERS:
        found += sorted((root / folder).rglob("*"))
    named = {path.relative_to(root).as_posix(): path for path in found if path.is_file()}
    return {name: path for name, path in named.items() if name not in NEVER_COPIED}


def copy_database(source: Path, target: Path) -> None:
    """A database that may be written to meanwhile, as it is between two commits."""
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    original, copy = sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True), sqlite3.connect(target)
    try:
        original.backup(copy)
    finally:
        original.close()
        copy.close()


def _seal(run: RunFolder, building: Path, files: dict[str, dict[str, Any]], position: int, version: int) -> BackupFacts:
    record = {
        "run_id": run.run_id,
        "created_at_s": time.time(),
        "position": position,
        "version": version,
        "files": files,
    }
    content = json.dumps(record, indent=1, sort_keys=True).encode()
    write_private(building / RECORD, content)
    write_private(building / SIGNATURE, run.authority().sign(_DOMAIN + content))
    (building / "checkpoints").mkdir()
    return _facts(record)


def _checked_record(backup: Path) -> dict[str, Any]:
    try:
        content, signature = (backup / RECORD).read_bytes(), (backup / SIGNATURE).read_bytes()
        ca_pem = (backup / "secret" / "ca.pem").read_bytes()
        verify_vouch(ca_pem, _DOMAIN + content, signature)
        record: dict[str, Any] = json.loads(content)
    except FileNotFoundError as error:
        raise ConfigError(f"{backup} is not a whole backup: {error.filename} is missing") from error
    except (RemoteError, ValueError) as error:
        raise ConfigError(
            f"{backup / RECORD} is not what was signed when the backup was made; use another one"
        ) from error
    for name in record["files"]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ConfigError(f"{backup / RECORD} names {name!r}, which lies outside the backup")
    return record


def _facts(record: dict[str, Any]) -> BackupFacts:
    return BackupFacts(
        run_id=str(record["run_id"]),
        position=int(record["position"]),
        version=int(record["version"]),
        files=len(record["files"]),
        total_bytes=sum(int(entry["bytes"]) for entry in record["files"].values()),
    )


def _opener(path: Path) -> BytesOpener:
    return lambda: path.open("rb")


def _entry(opener: BytesOpener, target: Path) -> dict[str, Any]:
    return {"sha256": _copied(opener, target), "bytes": target.stat().st_size}


def _copied(opener: BytesOpener, target: Path) -> str:
    """Copy durably and privately; the digest of what was read."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    hasher = hashlib.sha256()
    try:
        reading = opener()
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename} is missing: the backup is not whole") from error
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with reading, os.fdopen(descriptor, "wb") as writing:
        while chunk := reading.read(_CHUNK_BYTES):
            hasher.update(chunk)
            writing.write(chunk)
        writing.flush()
        os.fsync(writing.fileno())
    return hasher.hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
