"""A run that goes on without those who began it: a new run of what an archive holds, with an authority of its own.

Decides what the new run takes over: one version with its momentum and what the coordinator went on from, the recipe,
and the round it had come to. What it does not: keys, members, trust, credit, the journal, and which data were trained
on (its own draw begins anew). Always: every file is checked against the old run's signed index before the new run is
there; the new one has keys and a name of its own, so no worker is in it that was not invited to it. Reads the archive;
makes a run folder, whole or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import ValidationError

from coordinator.engine.events import RunCreated
from coordinator.engine.records import event_to_json
from coordinator.engine.version import ENGINE_VERSION
from coordinator.run.beginning import planned_engine
from coordinator.run.carving import first_data
from coordinator.run.folder import RUN_KIND, RunFolder
from coordinator.run.secret_files import write_secrets
from coordinator.settings import RunSettings, describe
from coordinator.store.journal import Journal
from coordinator.store.registry import Registry
from coordinator.store.versions import Versions, frozen_columns
from moe.companions import COMPANIONS_FOLDER, write_companions
from moe.config import config_from_json
from moe.layout import Layout, block_tensor_specs, layout
from protocol.archives import BLOBS_FOLDER, INDEX_FILE, MAX_INDEX_BYTES, ArchiveIndex
from protocol.codecs import FP32, codec_named
from protocol.errors import ConfigError, RemoteError
from protocol.folders import filled_whole, require_fillable
from protocol.ids import RunId, digest_of
from protocol.manifest import BlockRef, Manifest
from protocol.private_files import write_private
from protocol.residency import FROZEN
from protocol.tensor_headers import payload_size

_CHUNK_BYTES = 1 << 20
_WAY_OUT = "a run begins in a new or an empty folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """What became of an archive."""

    run_id: str
    version: int
    round: int
    from_run: str
    from_fingerprint: str
    files: int


def read_archive(source: Path) -> ArchiveIndex:
    """The index of the archive in `source`, believed; ConfigError says why it is not."""
    path = source / INDEX_FILE
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ConfigError(f"{path} has more than {MAX_INDEX_BYTES} bytes: it is no archive's index")
        return ArchiveIndex.from_json(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{source} is no archive, or one that is not whole: there is no {INDEX_FILE} in it") from None
    except RemoteError as error:
        raise ConfigError(f"{path} is not what a run has signed: {error}") from error


def fork_run(
    source: Path,
    folder: Path,
    *,
    data: str | None = None,
    given: Mapping[str, Any] | None = None,
    rounds: int | None = None,
    fingerprint: str | None = None,
    note: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] | None = None,
    told: Callable[[str], object] = lambda _: None,
) -> Forked:
    """Make a run in `folder` that goes on where the archive in `source` ends. ConfigError says why it cannot.

    `data` is the text that the run trains on, prepared or not: it must be that of the old run. `given` are settings of
    this machine, as host and port; `rounds` when it ends; `fingerprint` that of the run which the archive must be of.
    """
    require_fillable(folder, RUN_KIND, way_out=_WAY_OUT)
    index = read_archive(source)
    if fingerprint is not None and index.fingerprint != fingerprint.lower():
        raise ConfigError(
            f"{source} is of a run whose certificate has the fingerprint {index.fingerprint}, not {fingerprint}"
        )
    settings = _settings(index, source, data, dict(given or {}), rounds)
    cut = layout(config_from_json(dict(index.manifest.model)), settings.residency, settings.column_parts)
    _check_sizes(index.manifest, cut)
    with filled_whole(folder, RUN_KIND, way_out=_WAY_OUT) as building:
        run_id = write_secrets(building, settings)
        files = _fill(building, index, source, settings, cut, run_id, note, progress, told)
    manifest = index.manifest
    return Forked(
        run_id=run_id,
        version=manifest.version,
        round=manifest.round,
        from_run=manifest.run_id,
        from_fingerprint=index.fingerprint,
        files=files,
    )


def _settings(
    index: ArchiveIndex, source: Path, data: str | None, given: dict[str, Any], rounds: int | None
) -> RunSettings:
    record = index.record
    table = {**record.settings, **given}
    if data is not None:
        table["data"] = data
    if "data" not in table:
        raise ConfigError(
            f"run {record.run_id} did not say where its text is from: give it with --data, the prepared folder or the "
            f"text itself (its digest is {record.data.get('digest')})"
        )
    if record.goes_on:
        table["checkpoint"] = str(source)
    engine = dict(table.get("engine", {}))
    if rounds is not None:
        engine["max_rounds"] = rounds
    try:
        settings = RunSettings.model_validate({**table, "engine": engine})
    except ValidationError as error:
        raise ConfigError(f"{source}: its recipe is not one of this program's: {describe(error)}") from error
    if settings.residency != index.manifest.residency:
        raise ConfigError(f"{source}: its recipe says residency {settings.residency}, its manifest another")
    return settings


def _check_sizes(manifest: Manifest, cut: Layout) -> None:
    """ConfigError unless every file is of the size that its block has: before a byte is read."""
    if set(manifest.blocks) != set(cut.blocks):
        raise ConfigError(f"the archive's manifest of version {manifest.version} has other blocks than its model")
    for refs in (manifest.blocks, manifest.masters, manifest.momenta):
        for block, ref in refs.items():
            expected = payload_size(block_tensor_specs(cut, block), FP32)
            if ref.payload_bytes != expected:
                raise ConfigError(f"block {block}: expected {expected} bytes, the archive says {ref.payload_bytes}")


def _fill(
    root: Path,
    index: ArchiveIndex,
    source: Path,
    settings: RunSettings,
    cut: Layout,
    run_id: RunId,
    note: Callable[[str], None],
    progress: Callable[[int, int], None] | None,
    told: Callable[[str], object],
) -> int:
    run, record, old = RunFolder(root), index.record, index.manifest
    begun = settings.model_copy(update={"checkpoint": None, "preset": "tiny"})  # whose tokenizer is nobody's question
    own = first_data(root, begun, None, secret=run.draw_secret(), note=note, progress=progress)
    if own.facts["dataset_digest"] != record.data.get("digest"):
        raise ConfigError(
            f"{settings.data} is other text, or was prepared otherwise, than what run {record.run_id} was trained on "
            f"(digest {own.facts['dataset_digest'][:12]}…, expected {str(record.data.get('digest'))[:12]}…)"
        )
    settings = settings.model_copy(update={"screening_share": own.share})
    config = planned_engine(settings, cut, own.dataset, run_id)
    if config.max_rounds <= old.round:
        raise ConfigError(
            f"run {record.run_id} had come to the end of its {config.max_rounds} rounds: say with --rounds when this "
            "one ends"
        )
    versions = Versions(root / "versions", run.artifacts().blocks, cut)
    files = _take_files(versions, index, source, told)
    companions = {name: _small(source, ref) for name, ref in record.companions.items()}
    write_companions(companions, root / COMPANIONS_FOLDER)
    codec = config.down.frozen_codec
    is_encoded = settings.residency == FROZEN and codec_named(codec) is not FP32
    manifest = dataclasses.replace(
        old,
        run_id=run_id,
        created_at_s=time.time(),
        deltas={},
        frozen=versions.put_frozen(old.version, codec, old.blocks) if is_encoded else None,
    )
    digest = versions.publish(manifest, "fork")
    origin = {"run_id": old.run_id, "manifest": record.manifest, "fingerprint": index.fingerprint}
    facts = {"run_id": run_id, **own.facts, "model": dict(old.model), "dtype": record.dtype, "forked_from": origin}
    write_private(root / "run.json", json.dumps(facts, indent=2).encode())
    write_private(root / "settings.toml", settings.to_toml().encode())
    created = RunCreated(
        at_s=0.0,
        engine_version=ENGINE_VERSION,
        config=config,
        base_manifest=digest,
        wall_s=time.time(),
        settings=run.fixed_settings(settings),
        frozen=frozen_columns(manifest),
        version=old.version,
        round=old.round,
    )
    journal = Journal.create(root / "journal.sqlite", engine_version=ENGINE_VERSION)
    journal.append([event_to_json(created)])
    journal.close()
    Registry.open(root / "registry.sqlite").close()
    (root / "checkpoints").mkdir()
    return files


def _take_files(versions: Versions, index: ArchiveIndex, source: Path, told: Callable[[str], object]) -> int:
    """Every file of the version, hashed on its way into the run."""
    beside = {ref.digest for ref in index.record.companions.values()}
    named = {digest: ref for digest, ref in index.named().items() if digest not in beside}
    with versions.keeping() as keep:
        for count, (digest, ref) in enumerate(named.items()):
            told(f"checking: {count} of {len(named)} files")
            path = source / BLOBS_FOLDER / digest
            with _opened(path, ref) as file:
                got = keep(_pieces(file))
            if got != digest:
                raise ConfigError(f"{path} is not what its name promises (it has digest {got}): take another archive")
    return len(named)


def _small(source: Path, ref: BlockRef) -> bytes:
    path = source / BLOBS_FOLDER / ref.digest
    with _opened(path, ref) as file:
        content = file.read(ref.payload_bytes)
    if digest_of(content) != ref.digest:
        raise ConfigError(f"{path} is not what its name promises: take another archive")
    return content


def _opened(path: Path, ref: BlockRef) -> BinaryIO:
    try:
        if path.stat().st_size != ref.payload_bytes:
            raise ConfigError(
                f"{path} has {path.stat().st_size} bytes, expected {ref.payload_bytes}: take another archive"
            )
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"the archive lacks {path}: take another one, or one more ({error.strerror})") from error


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_CHUNK_BYTES):
        yield piece
