"""A copy of a run that can go on elsewhere, taken while the run is served; and putting it back.

Decides what belongs into a backup and in which order it is taken. Always: the settings are copied first, then the
journal, at one moment between two commits, and then everything that the engine of that moment needs, found by
replaying the copy; files that the running coordinator may delete meanwhile are pinned by hard links first, and if one
is gone already the journal is copied anew. Every file's digest is taken while it is copied, content-addressed ones
must match their names, and the list is signed by the run's own authority. A backup holds the run's secrets: it is as
private as the run folder.

Not in it: exported checkpoints (`barnraise coordinator export` makes them again), `events.jsonl` (never read back), and
uploads that are not whole (nobody was told that they are safe).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.run.changing import SETTINGS_WRITTEN
from coordinator.run.pump import load_engine
from coordinator.run.verify import payloads_needed
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
_PINS = ".pins-"
_SETTINGS = "settings.toml"
_PLAIN_FILES = ("run.json", "endpoint.json")
_FOLDERS = ("secret", "dataset", "tokenizer")
ATTEMPTS = 10
"""Copies of the journal before giving up; each lasts milliseconds, and a version is made in seconds at the least."""
_CHUNK_BYTES = 1 << 20


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
    pins = run.root / f"{_PINS}{secrets.token_hex(4)}"
    try:
        with filled_whole(out, BACKUP_KIND) as building:
            position, version, blobs = _take_state(run, building, pins)
            files = _copy_all(run, building, blobs)
            return _seal(run, building, files, position, version)
    finally:
        shutil.rmtree(pins, ignore_errors=True)


def restore(backup: Path, folder: Path) -> BackupFacts:
    """Make the run folder `folder` from `backup`; ConfigError where a file is not what was backed up."""
    from coordinator.run.folder import RUN_KIND

    record = _checked_record(backup)
    with filled_whole(folder, RUN_KIND) as building:
        for name, entry in record["files"].items():
            if _copied(backup / name, building / name) != entry["sha256"]:
                raise ConfigError(f"{backup / name} is not what was backed up; use another backup")
        (building / "checkpoints").mkdir(exist_ok=True)
    return _facts(record)


def clear_pins(root: Path) -> None:
    """Remove what an interrupted backup left in a run folder."""
    for path in root.glob(f"{_PINS}*"):
        shutil.rmtree(path, ignore_errors=True)


def _take_state(run: RunFolder, building: Path, pins: Path) -> tuple[int, int, dict[str, Path]]:
    """Copy the journal, and pin every file that its state needs: name in the backup to a path that stays."""
    target = building / "journal.sqlite"
    gone: FileNotFoundError | None = None
    for _ in range(ATTEMPTS):
        for stale in (*building.glob("journal.sqlite*"), building / _SETTINGS):
            stale.unlink(missing_ok=True)
        shutil.rmtree(pins, ignore_errors=True)
        pins.mkdir(mode=0o700)
        # before the journal: a setting that is changed in between is then brought into line, as after a crash
        _copied(run.root / _SETTINGS, building / _SETTINGS)
        source = Journal.open(run.journal_path, writable=False)
        try:
            source.copy_to(target)
        finally:
            source.close()
        copy = Journal.open(target)
        try:
            engine, _ = load_engine(copy, run.draw_secret())
            copy.set_meta(SETTINGS_WRITTEN, "0")
            position, state = copy.last_position, engine.state
        finally:
            copy.close()
        try:
            needed = _needed(run, int(state.version), [digest for _, digest in payloads_needed(state)])
            return position, int(state.version), {name: _pinned(path, pins) for name, path in needed.items()}
        except (FileNotFoundError, LocalError) as error:
            gone = error if isinstance(error, FileNotFoundError) else FileNotFoundError(str(error))
    raise ConfigError(
        f"a file that the run needs is missing or changes all the time ({gone}): "
        "look with `barnraise coordinator verify`, then try again"
    )


def _needed(run: RunFolder, version: int, payloads: list[Digest]) -> dict[str, Path]:
    store = run.artifacts()
    versions = Versions(run.root / "versions", store, run.layout())
    paths: list[Path] = [store.payloads.path(digest) for digest in payloads]
    for kept in versions.kept():
        manifest = versions.manifest_digest(kept)
        if kept > version or manifest is None:
            continue  # written, not published: it is made again
        paths.append(run.root / "versions" / f"{kept:08d}.json")
        paths += [store.blocks.path(digest) for digest in (manifest, *versions.named_by(manifest))]
    return {str(path.relative_to(run.root)): path for path in dict.fromkeys(paths)}


def _pinned(path: Path, pins: Path) -> Path:
    """A hard link to `path`: it keeps the content when the coordinator deletes its own name for it."""
    pin = pins / secrets.token_hex(8)
    try:
        os.link(path, pin)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without links: a copy made at once does as well
        shutil.copyfile(path, pin)
    return pin


def _copy_all(run: RunFolder, building: Path, blobs: dict[str, Path]) -> dict[str, dict[str, Any]]:
    files = {name: _entry(path, building / name) for name, path in blobs.items()}
    for name, entry in files.items():
        if name.startswith("artifacts/") and entry["sha256"] != Path(name).name:
            raise ConfigError(
                f"{run.root / name} is not what its name promises; `barnraise coordinator verify` says more"
            )
    _copy_registry(run.registry_path, building / "registry.sqlite")
    plain = [run.root / name for name in _PLAIN_FILES if (run.root / name).is_file()]
    for folder in _FOLDERS:
        plain += [path for path in sorted((run.root / folder).rglob("*")) if path.is_file()]
    for path in plain:
        name = str(path.relative_to(run.root))
        files[name] = _entry(path, building / name)
    for path in (building / _SETTINGS, *sorted(building.glob("*.sqlite*"))):
        files[path.name] = {"sha256": _digest(path), "bytes": path.stat().st_size}
    return files


def _copy_registry(source: Path, target: Path) -> None:
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


def _entry(source: Path, target: Path) -> dict[str, Any]:
    return {"sha256": _copied(source, target), "bytes": target.stat().st_size}


def _copied(source: Path, target: Path) -> str:
    """Copy durably and privately; the digest of what was read."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    hasher = hashlib.sha256()
    try:
        reading = source.open("rb")
    except FileNotFoundError as error:
        raise ConfigError(f"{source} is missing: the backup is not whole") from error
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
