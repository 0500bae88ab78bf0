"""What a run tells archives of itself: the index of a version, signed, and every file that it names.

Decides which settings are told: those that say how is trained, and none that names a place, a person or this machine.
Reads the run folder; `write_archive` fills a folder. Always: nothing of `secret/` is in an index, and nothing that
somebody trained on is: of the data, the card alone.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.datasets.sources import STDLIB
from coordinator.settings import RunSettings
from coordinator.store.versions import Versions
from protocol.archives import (
    BLOBS_FOLDER,
    INDEX_FILE,
    ArchiveIndex,
    ArchiveRecord,
    sign_record,
)
from protocol.errors import ConfigError
from protocol.folders import Kind, filled_whole
from protocol.identity import PrivateIdentity
from protocol.ids import Digest, RunId, digest_of
from protocol.manifest import BlockRef, sign_manifest
from protocol.private_files import write_private
from protocol.tls import CertificateAuthority, manifest_key_message

if TYPE_CHECKING:
    from coordinator.run.folder import RunFolder

TOLD = (
    *("name", "preset", "residency", "column_parts", "codec", "sequence_length", "line", "seed", "engine"),
    *("heldout_limit", "screening_sequences", "screening_share", "evaluation_batch"),
)
ARCHIVE_KIND = Kind(completed_by=INDEX_FILE)


def told_settings(settings: RunSettings) -> dict[str, Any]:
    """The recipe, as plain JSON."""
    plain = settings.model_dump(mode="json", exclude_none=True, include=set(TOLD))
    if settings.data == STDLIB:  # others may be places on this machine
        plain["data"] = settings.data
    return plain


def archive_index(
    *,
    run_id: RunId,
    settings: RunSettings,
    manifest_json: bytes,
    version: Any,
    card: Any,
    dtype: str,
    companions: Mapping[str, bytes],
    authority: CertificateAuthority,
    signing: PrivateIdentity,
) -> ArchiveIndex:
    """The index of one version of a run that has these."""
    record = ArchiveRecord(
        run_id=run_id,
        version=version,
        manifest=digest_of(manifest_json),
        settings=told_settings(settings),
        goes_on=settings.checkpoint is not None,
        dtype=dtype,
        data=json.loads(json.dumps(dataclasses.asdict(card))),
        companions={
            name: BlockRef(digest=digest_of(content), payload_bytes=len(content))
            for name, content in companions.items()
        },
    ).to_json()
    return ArchiveIndex(
        ca_pem=authority.cert_pem,
        manifest_key=signing.public_key,
        vouch=authority.sign(manifest_key_message(run_id, signing.public_key)),
        manifest_json=manifest_json,
        manifest_signature=sign_manifest(signing, manifest_json),
        record_json=record,
        record_signature=sign_record(signing, record),
    )


def write_archive(run: RunFolder, out: Path, told: Callable[[str], object] = lambda _: None) -> ArchiveIndex:
    """The present version of `run`, served or not, as an archive in the new or empty folder `out`."""
    store = run.artifacts()
    versions = Versions(run.root / "versions", store.blocks, run.layout())
    version = run.published_version()
    digest = versions.manifest_digest(version)
    if digest is None:
        raise ConfigError(f"version {version} of {run.root} is not here: look with `barnraise coordinator verify`")
    dataset = run.dataset()
    companions = run.companions(dataset)
    index = archive_index(
        run_id=run.run_id,
        settings=run.settings(),
        manifest_json=versions.manifest_bytes(digest),
        version=version,
        card=dataset.card,
        dtype=run.export_dtype,
        companions=companions,
        authority=run.authority(),
        signing=run.manifest_identity(),
    )
    beside = {digest_of(content): content for content in companions.values()}
    with filled_whole(out, ARCHIVE_KIND) as building:
        (building / BLOBS_FOLDER).mkdir()
        named = index.named()
        for count, one in enumerate(named):
            told(f"copying: {count} of {len(named)} files")
            _put(building / BLOBS_FOLDER / one, one, beside, store.blocks)
        write_private(building / INDEX_FILE, index.to_json())
    return index


def _put(path: Path, digest: Digest, beside: Mapping[Digest, bytes], blobs: Any) -> None:
    if digest in beside:
        path.write_bytes(beside[digest])
        return
    with blobs.open(digest) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
