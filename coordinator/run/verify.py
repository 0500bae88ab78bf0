"""Is everything here that the journal speaks of, and is it what it was?

Decides what counts as damage; what a run needs is in `needed.py`. Reads only; changes nothing. The journal is the
truth: files that it does not name are never missed, and a version that was written but not published is no damage.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from coordinator.run.lock import folder_lock
from coordinator.run.needed import Needed, needed_by
from coordinator.run.pump import load_engine
from coordinator.store.artifacts import ArtifactStore
from coordinator.store.journal import Journal
from coordinator.store.ports import BlobStore
from coordinator.store.versions import Versions
from protocol.errors import BarnraiseError, ConfigError
from protocol.ids import Digest, stream_digest
from protocol.manifest import sign_manifest, verify_manifest
from protocol.tls import manifest_key_message, verify_vouch

if TYPE_CHECKING:
    from coordinator.engine.engine import Engine
    from coordinator.run.folder import RunFolder

_RESTORE = "put back a backup with `barnraise coordinator restore`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    checked: int
    """Records, files or keys."""
    problems: tuple[str, ...]


def require_version(versions: Versions, store: ArtifactStore, needed: Needed) -> None:
    """The run's present version must be whole; ConfigError names what is missing. The index is put right."""
    version, manifest = needed.version, needed.manifest
    if not store.blocks.has(manifest):
        raise ConfigError(f"the manifest {manifest} of version {version} is missing from artifacts/blocks: {_RESTORE}")
    missing = [digest for digest in versions.named_by(manifest) if not store.blocks.has(digest)]
    if missing:
        raise ConfigError(
            f"version {version} names {len(missing)} files that are missing from artifacts/blocks, "
            f"the first is {missing[0]}: {_RESTORE}"
        )
    versions.restore_entry(version, manifest)


def lost_payloads(needed: Needed, store: ArtifactStore) -> list[str]:
    """A sentence for each submission that the engine counts on and whose bytes are gone."""
    return [
        f"the submission for lease {lease_id} was received, but {store.payloads.place(digest)} is missing: "
        "put that file back from a backup, or its lease counts for nothing"
        for lease_id, digest in needed.payloads.items()
        if not store.payloads.has(digest)
    ]


def verify_run(run: RunFolder) -> list[Check]:
    """Look at everything. May be called while the run is served."""
    engines: list[Engine] = []
    checks = [_checked("journal", lambda: _journal(run, engines))]
    checks.append(_checked("registry", lambda: _registry(run)))
    checks.append(_checked("keys and signatures", lambda: _signatures(run)))
    if engines:
        needed = needed_by(engines[0].state)
        checks.append(_checked("versions", lambda: _versions(run, needed)))
        checks.append(_checked("submissions", lambda: _payloads(run, needed)))
    checks.append(_checked("dataset", lambda: _dataset(run)))
    return checks


def _checked(name: str, look: Callable[[], tuple[int, list[str]]]) -> Check:
    try:
        checked, problems = look()
    except (BarnraiseError, OSError, ValueError, InvalidSignature) as error:
        checked, problems = 0, [str(error) or repr(error)]
    return Check(name=name, checked=checked, problems=tuple(problems))


def _journal(run: RunFolder, engines: list[Engine]) -> tuple[int, list[str]]:
    journal = Journal.open(run.journal_path, writable=False)
    try:
        said = journal.integrity()
        problems = [] if said == "ok" else [f"{run.journal_path}: SQLite finds {said}; {_RESTORE}"]
        with _nobody_serves(run.root) as alone:
            if alone:  # while it is written to, the mark may be ahead of what this connection sees
                journal.check_mark()
        engines.append(load_engine(journal, run.draw_secret(), only_read=True)[0])
        return journal.last_position, problems
    finally:
        journal.close()


def _registry(run: RunFolder) -> tuple[int, list[str]]:
    connection = sqlite3.connect(f"{run.registry_path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        (said,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        (members,) = connection.execute("SELECT count(*) FROM members").fetchone()
    except sqlite3.DatabaseError as error:
        said, members = str(error), 0
    finally:
        connection.close()
    return members, [] if said == "ok" else [f"{run.registry_path}: SQLite finds {said}; {_RESTORE}"]


def _signatures(run: RunFolder) -> tuple[int, list[str]]:
    """The chain by which a worker believes this coordinator, from the certificate in its link to a manifest."""
    authority, manifest_key = run.authority(), run.manifest_identity()
    chain, _ = run.leaf()
    certificate = x509.load_pem_x509_certificate(authority.cert_pem)
    x509.load_pem_x509_certificate(chain).verify_directly_issued_by(certificate)
    message = manifest_key_message(run.run_id, manifest_key.public_key)
    verify_vouch(authority.cert_pem, message, authority.sign(message))
    content = b"{}"
    verify_manifest(manifest_key.public_key, content, sign_manifest(manifest_key, content))
    run.operator_identity()
    return 4, []


def _dataset(run: RunFolder) -> tuple[int, list[str]]:
    run.dataset()  # raises unless it is the one that the run began with
    return 1, []


def _versions(run: RunFolder, needed: Needed) -> tuple[int, list[str]]:
    store = run.artifacts()
    versions = Versions(run.root / "versions", store.blocks, run.layout())
    present = versions.manifest_digest(needed.version)
    problems = []
    if present != needed.manifest:
        problems.append(f"version {needed.version} is {needed.manifest} in the journal and {present} in versions/")
    seen: set[Digest] = set()
    manifests = {version: versions.manifest_digest(version) for version in needed.versions_among(versions.kept())}
    for version, digest in {**manifests, needed.version: needed.manifest}.items():
        assert digest is not None
        found = _damage(store.blocks, digest, seen)
        problems += found
        if found:
            continue
        manifest = versions.manifest(digest)
        if (manifest.run_id, manifest.version) != (run.run_id, version):
            problems.append(f"manifest {digest} is of {manifest.run_id} version {manifest.version}, not {version}")
        for named in versions.named_by(digest):
            problems += _damage(store.blocks, named, seen)
    return len(seen), problems


def _payloads(run: RunFolder, needed: Needed) -> tuple[int, list[str]]:
    store, seen, problems = run.artifacts(), set[Digest](), list[str]()
    for digest in (*needed.payloads.values(), *(residual for _, residual in needed.residuals)):
        if store.payloads.has(digest):
            problems += _damage(store.payloads, digest, seen)
    return len(seen), [*problems, *lost_payloads(needed, store)]


def _damage(store: BlobStore, digest: Digest, seen: set[Digest]) -> list[str]:
    """What is wrong with one file; each is read once."""
    if digest in seen:
        return []
    seen.add(digest)
    place = store.place(digest)
    if not store.has(digest):
        return [f"{place} is missing: {_RESTORE}"]
    with store.open(digest) as file:
        return [] if stream_digest(file) == digest else [f"{place} is not what its name promises: {_RESTORE}"]


@contextlib.contextmanager
def _nobody_serves(root: Path) -> Iterator[bool]:
    """Whether no coordinator serves `root`, for as long as one is inside."""
    lock = folder_lock(root)
    try:
        lock.acquire()
    except ConfigError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
