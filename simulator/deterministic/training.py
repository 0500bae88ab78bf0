"""Training that is real, in a simulated run: a micro mixture of experts on a synthetic language.

Decides the model, the language and where bytes lie; nothing about rounds. Training, measuring, aggregation, outer step,
validation and checkpoints are the real code (`worker.train`, `coordinator.work`,
`coordinator.store`), only time is virtual. Always: a lease that is trained again gives the same bytes, whoever was
killed on the way; submissions lie on the simulated disk, which forgets what was not synced. Blocks and progress are
files in a folder of their own: what a kill leaves of them is what was written by then.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coordinator.engine.commands import AggregateRound, SlowCommand, ValidateVersion
from coordinator.engine.events import CheckpointWritten, Event, RoundAggregated, VersionValidated
from coordinator.run.opened import work_settings
from coordinator.settings import RunSettings
from coordinator.store.artifacts import ArtifactStore
from coordinator.store.ports import BlobStore
from coordinator.store.versions import Versions
from coordinator.work.executor import Executor
from moe.config import config_from_json
from moe.full import initial_blocks
from moe.layout import block_tensor_specs, layout
from moe.shard import ShardModel, build_shard
from moe.tokenizer import TOKENIZER_FILE
from protocol.codecs import FP32, codec_named
from protocol.errors import LocalError
from protocol.ids import BlockId, Digest, LeaseId, RoundNumber, RunId, Version, digest_of
from protocol.lease import Lease
from protocol.manifest import BlockRef, Manifest
from protocol.residency import FROZEN
from protocol.submission import encode_submission
from protocol.tensors import decode_tensors
from simulator.deterministic.disk import Disk, MemoryPayloads, StoredBlock, VersionEntry
from simulator.deterministic.invariants import InvariantBroken
from simulator.deterministic.language import HELDOUT_SEQUENCES, MICRO, SEQUENCE_LENGTH, Language
from simulator.deterministic.work import DISK_FULL, MissingContent, Site, Trained
from worker.train.lease_state import LeaseStates, LocalState, computation_of
from worker.train.trainer import TrainingStopped, pseudo_gradient_of, train_shard

SAVE_EVERY_STEPS = 3
"""A worker writes its progress after this many inner steps: what a kill may cost."""

Tensors = dict[str, torch.Tensor]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: a model this small gains nothing by more, and a lease must give the same bytes each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class RealWork:
    """One simulated run's training. `folder` holds blocks, checkpoints and progress."""

    codec = "fp32"
    sequence_length = SEQUENCE_LENGTH
    frame_bytes = 8 * 1024
    """A handful of frames for a submission of some 40 KB."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._config = config_from_json(MICRO)
        self.layout = layout(self._config, FROZEN)
        self.language = Language(seed)
        self.val_losses: dict[int, float] = {}
        """Held-out loss by version, nats a token."""
        self.tokens_trained = 0
        """In all outer steps so far."""
        self.retrained = self.taken_up = 0
        """Leases that were trained again from their beginning, and from kept progress."""
        self.on_write: Callable[[str], None] = lambda _: None
        """Called before each block, and each manifest, is written: raises where the process dies there."""
        self.on_validated: Callable[[int, float], None] = lambda *_: None
        self._seed, self._folder = seed, folder
        self._files = ArtifactStore(folder)
        self._shards: dict[tuple[int, ...], ShardModel] = {}
        self._blocks: dict[Digest, Tensors] = {}
        self._digests: dict[LeaseId, Digest] = {}
        self._states: dict[int, LeaseStates] = {}
        self._begun: set[LeaseId] = set()
        self.settings = RunSettings(
            preset="tiny",
            sequence_length=SEQUENCE_LENGTH,
            seed=seed,
            heldout_limit=HELDOUT_SEQUENCES,
            screening_sequences=64,
            evaluation_batch=256,
            keep_checkpoints=1,
        )

    # ---- the coordinator's side ----------------------------------------------------------------------------------

    def first_version(self, disk: Disk) -> Digest:
        """Fresh weights."""
        versions = self._versions()
        blocks = initial_blocks(self._config, self.layout, self._seed)
        manifest = Manifest(
            run_id=RunId("simulated"),
            version=Version(0),
            parent_version=None,
            round=RoundNumber(0),
            created_at_s=0.0,
            model=self.layout.config_json,
            residency=self.layout.residency,
            blocks={block: versions.put_block(tensors) for block, tensors in blocks.items()},
            momenta={},
            val_loss=None,
            tokens_trained=0,
        )
        digest = versions.publish(manifest, "created")
        _mirror(disk, versions, None, manifest, digest)
        return digest

    def executor(self, site: Site) -> RealExecutor:
        """As a process has it that was just started: nothing is cached."""
        return RealExecutor(self, site, self._versions())

    def _versions(self) -> Versions:
        return _Versions(self._folder / "versions", self._files.blocks, self.layout, self)

    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self._folder / "checkpoints"

    # ---- the volunteers' side ------------------------------------------------------------------------------------

    def share_left(self, worker: int, lease: Lease, base: Mapping[BlockId, Digest]) -> float:
        """The share of the inner steps that no kept progress covers."""
        state = self._states_of(worker).load(computation_of(lease, base, "cpu"))
        done = 0 if state is None else state.step
        if lease.lease_id in self._begun:
            self.taken_up += done > 0
            self.retrained += done == 0
        self._begun.add(lease.lease_id)
        return 1.0 - done / lease.inner_steps

    def trained(self, worker: int, lease: Lease, base: Mapping[BlockId, Digest]) -> Trained:
        """Train what is left; InvariantBroken where this lease gives other bytes than in one go, or than before."""
        keeper = self._keeper(worker, lease, base)
        trained = self._train(lease, base, keeper)
        if keeper.has_taken_up and self._train(lease, base, None).payload != trained.payload:
            raise InvariantBroken(f"lease {lease.lease_id} was taken up again and gave other bytes than in one go")
        digest = digest_of(trained.payload)
        if self._digests.setdefault(lease.lease_id, digest) != digest:
            raise InvariantBroken(f"lease {lease.lease_id} was trained again and gave other bytes than before")
        self._states_of(worker).clear()
        return trained

    def _train(self, lease: Lease, base: Mapping[BlockId, Digest], keeper: _Keeper | None) -> Trained:
        shard, start = self._loaded(lease, base)
        metrics = train_shard(shard, lease, self._sequences(lease), keeper=keeper)
        gradient = pseudo_gradient_of(start, shard.held_blocks())
        payload = encode_submission(gradient, codec_named(self.codec))
        return Trained(payload=payload, loss_first=metrics.loss_first, loss_last=metrics.loss_last)

    def interrupted(self, worker: int, lease: Lease, base: Mapping[BlockId, Digest], share: float) -> None:
        """Train up to where the process died, so that what it kept is on disk."""
        keeper = self._keeper(worker, lease, base)
        kept = keeper.load()
        first = 0 if kept is None else kept.step
        died_after = first + math.floor(share * (lease.inner_steps - first))
        if died_after <= first or died_after >= lease.inner_steps:
            return
        done = first

        def on_step(step: int, _: float | None) -> None:
            nonlocal done
            done = step

        shard, _ = self._loaded(lease, base)
        try:
            train_shard(
                shard,
                lease,
                self._sequences(lease),
                on_step=on_step,
                should_stop=lambda: done >= died_after,
                keeper=keeper,
            )
        except TrainingStopped:
            return
        raise LocalError(f"lease {lease.lease_id} was to stop after step {died_after} and went on")

    def _loaded(self, lease: Lease, base: Mapping[BlockId, Digest]) -> tuple[ShardModel, dict[BlockId, Tensors]]:
        start = {block: self._block(block, digest) for block, digest in base.items()}
        shard = self._shards.get(lease.columns)
        if shard is None:
            shard = self._shards[lease.columns] = build_shard(self.layout, lease.columns, start, seed=lease.seed)
        else:
            shard.load(start)
        return shard, start

    def _sequences(self, lease: Lease) -> NDArray[np.int64]:
        rows = self.language.sequences(lease.data.seed, lease.data.start, lease.data.count, SEQUENCE_LENGTH)
        return rows.astype(np.int64)

    def _keeper(self, worker: int, lease: Lease, base: Mapping[BlockId, Digest]) -> _Keeper:
        return _Keeper(self._states_of(worker), computation_of(lease, base, "cpu"))

    def _states_of(self, worker: int) -> LeaseStates:
        if worker not in self._states:
            self._states[worker] = LeaseStates(self._folder / f"worker-{worker}")
        return self._states[worker]

    def _block(self, block: BlockId, digest: Digest) -> Tensors:
        """What a worker has fetched stays with it, whatever the coordinator sweeps away."""
        if digest not in self._blocks:
            payload = self._files.blocks.read(digest)
            self._blocks[digest] = decode_tensors(payload, block_tensor_specs(self.layout, block), FP32)
        return self._blocks[digest]


class _Keeper:
    """`worker.train.lease_state.LeaseKeeper`, by steps in place of seconds."""

    def __init__(self, states: LeaseStates, computation: str) -> None:
        self._states, self._computation = states, computation
        self._asked = 0
        self.has_taken_up = False

    def load(self) -> LocalState | None:
        state = self._states.load(self._computation)
        self.has_taken_up = state is not None
        return state

    def due(self) -> bool:
        self._asked += 1
        return self._asked % SAVE_EVERY_STEPS == 0

    def save(self, state: LocalState) -> None:
        self._states.save(self._computation, state)


class RealExecutor:
    """The real executor; the simulated disk's books are kept beside it, for the invariants."""

    def __init__(self, work: RealWork, site: Site, versions: Versions) -> None:
        self._work, self._site, self._versions = work, site, versions
        self._executor = Executor(
            settings=work_settings(work.settings),
            layout=work.layout,
            payloads=_Payloads(site.disk),
            versions=versions,
            dataset=work.language,
            companions={TOKENIZER_FILE: work.language.tokenizer_json},
            dtype="fp32",
            checkpoints=work.checkpoints(),
            clock=site.clock,
            wall_clock=lambda: 0.0,
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
            _mirror(self._site.disk, self._versions, command.parent_manifest, manifest, event.manifest)
            self._work.tokens_trained = manifest.tokens_trained
            self._site.on_aggregated(command, event.manifest)
        if isinstance(event, CheckpointWritten):
            return replace(event, path=Path(event.path).name)  # the folder is another one each time
        if isinstance(event, VersionValidated) and isinstance(command, ValidateVersion):
            self._work.val_losses[event.version] = event.val_loss
            self._work.on_validated(event.version, event.val_loss)
        return event


def _mirror(disk: Disk, versions: Versions, parent: Digest | None, manifest: Manifest, digest: Digest) -> None:
    """Tell the simulated disk what a version is made of, and which versions are kept."""
    before = {} if parent is None else disk.manifests[parent]
    named = {block: Digest(ref.digest) for block, ref in manifest.blocks.items()}
    for block, block_digest in named.items():
        if block_digest != before.get(block):
            disk.blocks[block_digest] = StoredBlock(before.get(block), f"version {manifest.version}")
    disk.manifests[digest] = named
    disk.versions[manifest.version] = VersionEntry(digest, "real")
    kept = set(versions.kept())
    for version in [version for version in disk.versions if version not in kept]:
        disk.manifests.pop(disk.versions.pop(version).manifest, None)


class _Versions(Versions):
    """The real ones, in which a process may die between two files."""

    def __init__(self, folder: Path, blobs: BlobStore, model_layout: Any, work: RealWork) -> None:
        super().__init__(folder, blobs, model_layout)
        self._work = work

    def put_block(self, tensors: Mapping[str, torch.Tensor]) -> BlockRef:
        self._work.on_write("block")
        return super().put_block(tensors)

    def publish(self, manifest: Manifest, cause: str) -> Digest:
        self._work.on_write("manifest")
        return super().publish(manifest, cause)


class _Payloads(MemoryPayloads):
    """Submissions of the simulated disk. Nothing asks for one out of doubt: MissingContent where it is not there."""

    def stat(self, digest: Digest) -> int:
        found = super().stat(digest)
        if found is None:
            raise MissingContent(f"payload {digest[:12]} is needed and not on disk")
        return found
