"""The coordinator's slow work of a simulated run, really done: the real executor, on files and the simulated disk.

Decides nothing about rounds. Submissions lie on the simulated disk, which forgets what was not synced; blocks,
manifests and checkpoints are files, between any two of which the process may die.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from coordinator.engine.commands import AggregateRound, RebuildVersion, SlowCommand, ValidateVersion
from coordinator.engine.events import CheckpointWritten, Event, RoundAggregated, VersionRebuilt, VersionValidated
from coordinator.run.opened import work_settings
from coordinator.settings import RunSettings
from coordinator.store.ports import BlobStore, PutParts
from coordinator.store.versions import Versions
from coordinator.work.executor import Executor
from coordinator.work.port import Replay
from moe.layout import Layout
from moe.tokenizer import TOKENIZER_FILE
from protocol.errors import LocalError
from protocol.ids import Digest
from protocol.manifest import BlockRef, Manifest
from protocol.specs import Spanned
from simulator.deterministic.disk import Disk, MemoryPayloads, StoredBlock, VersionEntry
from simulator.deterministic.language import Language
from simulator.deterministic.work import DISK_FULL, MissingContent, Site


class ReallyDone(Protocol):
    """What the executor is told of the run, and what it tells: `training.RealWork`."""

    settings: RunSettings
    layout: Layout
    language: Language
    tokens_trained: int
    val_losses: dict[int, float]
    on_validated: Callable[[int, float], None]
    replay: Replay

    def checkpoints(self) -> Path:
        """Where checkpoints go."""


class RealExecutor:
    """The real executor; the simulated disk's books are kept beside it, for the invariants."""

    def __init__(self, work: ReallyDone, site: Site, versions: Versions) -> None:
        self._work, self._site, self._versions = work, site, versions
        self._executor = Executor(
            settings=work_settings(work.settings),
            layout=work.layout,
            payloads=SimulatedPayloads(site.disk),
            versions=versions,
            dataset=work.language,
            companions={TOKENIZER_FILE: work.language.tokenizer_json},
            dtype="fp32",
            checkpoints=work.checkpoints(),
            clock=site.clock,
            wall_clock=lambda: 0.0,
            replay=work.replay,
        )

    def execute(self, command: SlowCommand) -> Event:
        """Carry out `command`, or fail as a full disk does. Content that is wanted and gone ends the simulation."""
        if self._site.fails(command):
            raise DISK_FULL
        try:
            event = self._executor.execute(command)
        except (MissingContent, LocalError) as error:
            if self._site.is_wanted(command):
                raise MissingContent(f"{command.command_id}: {error}") from error
            raise LocalError(str(error)) from error
        if isinstance(event, RoundAggregated):
            assert isinstance(command, AggregateRound)
            manifest = self._versions.manifest(event.manifest)
            mirror(self._site.disk, self._versions, command.parent_manifest, manifest, event.manifest)
            self._work.tokens_trained = manifest.tokens_trained
            self._site.on_aggregated(command, event.manifest)
        if isinstance(event, VersionRebuilt):
            assert isinstance(command, RebuildVersion)
            manifest = self._versions.manifest(event.manifest)
            mirror(self._site.disk, self._versions, command.parent_manifest, manifest, event.manifest)
        if isinstance(event, CheckpointWritten):
            return replace(event, path=Path(event.path).name)  # the folder is another one each time
        if isinstance(event, VersionValidated) and isinstance(command, ValidateVersion):
            self._work.val_losses[event.version] = event.val_loss
            self._work.on_validated(event.version, event.val_loss)
        return event


def mirror(disk: Disk, versions: Versions, parent: Digest | None, manifest: Manifest, digest: Digest) -> None:
    """Tell the simulated disk what a version is made of, and which versions are kept."""
    before = {} if parent is None else disk.manifests[parent]
    named = {block: Digest(ref.digest) for block, ref in manifest.blocks.items()}
    for block, block_digest in named.items():
        if block_digest != before.get(block):
            disk.blocks[block_digest] = StoredBlock(before.get(block), f"version {manifest.version}")
    disk.manifests[digest] = named
    if manifest.frozen is not None:
        disk.frozen[manifest.frozen.version] = {block: ref.digest for block, ref in manifest.frozen.blocks.items()}
    disk.versions[manifest.version] = VersionEntry(digest, "real")
    kept = set(versions.kept())
    for version in [version for version in disk.versions if version not in kept]:
        disk.manifests.pop(disk.versions.pop(version).manifest, None)


class KillableVersions(Versions):
    """The real ones, in which a process may die between two files."""

    def __init__(self, folder: Path, blobs: BlobStore, model_layout: Any, on_write: Callable[[str], None]) -> None:
        super().__init__(folder, blobs, model_layout)
        self._on_write = on_write

    def put_block(self, tensors: Mapping[str, torch.Tensor | Spanned], keep: PutParts | None = None) -> BlockRef:
        """As the real ones."""
        self._on_write("block")
        return super().put_block(tensors, keep)

    def publish(self, manifest: Manifest, cause: str) -> Digest:
        """As the real ones."""
        self._on_write("manifest")
        return super().publish(manifest, cause)


class SimulatedPayloads(MemoryPayloads):
    """Submissions of the simulated disk. Nothing asks for one out of doubt: MissingContent where it is not there."""

    def stat(self, digest: Digest) -> int:
        """As the real ones."""
        found = super().stat(digest)
        if found is None:
            raise MissingContent(f"payload {digest[:12]} is needed and not on disk")
        return found
