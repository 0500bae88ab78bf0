"""Training that is real, in a simulated run: a micro mixture of experts on a synthetic language.

Decides the model, the language and where bytes lie; nothing about rounds. Training, measuring, aggregation, outer step,
validation and checkpoints are the real code (`worker.train`, `coordinator.work`,
`coordinator.store`), only time is virtual. Always: a lease that is trained again gives the same bytes, whoever was
killed on the way; submissions lie on the simulated disk, which forgets what was not synced. Blocks and progress are
files in a folder of their own: what a kill leaves of them is what was written by then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from coordinator.settings import RunSettings
from coordinator.store.artifacts import ArtifactStore
from coordinator.store.versions import Versions
from coordinator.work.port import Replay
from moe.config import config_from_json
from moe.full import initial_blocks
from moe.layout import block_tensor_specs, layout
from moe.shard import ShardModel, build_shard
from moe.stand_ins import StandIns
from protocol.codecs import codec_named
from protocol.encoded_block import EncodedBlock
from protocol.errors import LocalError
from protocol.ids import BlockId, Digest, LeaseId, RoundNumber, RunId, Version, digest_of
from protocol.lease import Lease
from protocol.manifest import Manifest
from protocol.residency import FROZEN
from protocol.submission import Blocks, encode_submission
from protocol.tensors import encoded_tensors
from simulator.arithmetic import EVERYBODYS_ARITHMETIC
from simulator.deterministic.broken import InvariantBroken
from simulator.deterministic.disk import Disk
from simulator.deterministic.language import HELDOUT_SEQUENCES, MICRO, SEQUENCE_LENGTH, Language
from simulator.deterministic.real_executor import KillableVersions, RealExecutor, mirror
from simulator.deterministic.work import Site, TrainedLease
from worker.fetched import FetchedLease
from worker.train.lease_state import LeaseStates, computation_of
from worker.train.local_state import LocalState
from worker.train.trainer import TrainingStopped, pseudo_gradient_of, train_shard

SAVE_EVERY_STEPS = 3
"""A worker writes its progress after this many inner steps: what a kill may cost."""


class RealWork:
    """One simulated run's training. `folder` holds blocks, checkpoints and progress."""

    name = "simulated"
    residency = FROZEN
    codec = "fp32"
    admission_work_bits = 0
    most_per_range = 0
    column_parts = 1
    copies = 2
    fallback_s = 30.0
    sequence_length = SEQUENCE_LENGTH
    heldout_limit = HELDOUT_SEQUENCES
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
        self.replay: Replay = self._replay
        """How the coordinator computes a lease again: as its worker does, in one go."""
        self._seed, self._folder = seed, folder
        self._files = ArtifactStore(folder)
        self._shards: dict[tuple[int, ...], ShardModel] = {}
        self._blocks: dict[Digest, EncodedBlock] = {}
        self._digests: dict[LeaseId, Digest] = {}
        self._states: dict[int, LeaseStates] = {}
        self._begun: set[LeaseId] = set()
        self.settings = RunSettings(
            preset="tiny",
            sequence_length=SEQUENCE_LENGTH,
            seed=seed,
            heldout_limit=self.heldout_limit,
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
        mirror(disk, versions, None, manifest, digest)
        return digest

    def executor(self, site: Site) -> RealExecutor:
        """As a process has it that was just started: nothing is cached."""
        return RealExecutor(self, site, self._versions())

    @property
    def texts(self) -> Language:
        """What leases name sequences of."""
        return self.language

    def served(self, disk: Disk) -> ServedFiles:
        """The files that a process finds."""
        del disk
        return ServedFiles(self._versions(), self._files)

    def _versions(self) -> Versions:
        return KillableVersions(self._folder / "versions", self._files.blocks, self.layout, self.on_write)

    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self._folder / "checkpoints"

    def _replay(
        self, lease: Lease, base: Blocks, sequences_NL: NDArray[Any], micro_batch: int, wanted: str
    ) -> tuple[Blocks, str]:
        del wanted  # one process, one thread: everybody computes alike
        shard = self._holding(lease, base)
        train_shard(shard, lease, sequences_NL, micro_batch=micro_batch or None)
        return pseudo_gradient_of(base, shard), str(EVERYBODYS_ARITHMETIC)

    # ---- the volunteers' side ------------------------------------------------------------------------------------

    def progress(self, worker: int) -> LeaseStates:
        """In real files."""
        return self._states_of(worker)

    def share_left(self, worker: int, fetched: FetchedLease) -> float:
        """The share of the inner steps that no kept progress covers."""
        lease = fetched.lease
        state = self._states_of(worker).load(computation_of(lease, fetched.digests, "cpu"))
        done = 0 if state is None else state.step
        if lease.lease_id in self._begun:
            self.taken_up += done > 0
            self.retrained += done == 0
        self._begun.add(lease.lease_id)
        return 1.0 - done / lease.inner_steps

    def trained(self, worker: int, fetched: FetchedLease) -> TrainedLease:
        """Train what is left; InvariantBroken where this lease gives other bytes than in one go, or than before."""
        lease, keeper = fetched.lease, self._keeper(worker, fetched)
        trained = self._train(fetched, keeper)
        if keeper.has_taken_up and self._train(fetched, None).payload != trained.payload:
            raise InvariantBroken(f"lease {lease.lease_id} was taken up again and gave other bytes than in one go")
        digest = digest_of(trained.payload)
        if self._digests.setdefault(lease.lease_id, digest) != digest:
            raise InvariantBroken(f"lease {lease.lease_id} was trained again and gave other bytes than before")
        self._states_of(worker).clear()
        return trained

    def _train(self, fetched: FetchedLease, keeper: _Keeper | None) -> TrainedLease:
        shard, start = self._loaded(fetched)
        metrics = train_shard(shard, fetched.lease, fetched.sequences, keeper=keeper)
        gradient = pseudo_gradient_of(start, shard)
        payload = encode_submission(gradient, codec_named(fetched.lease.codec))
        return TrainedLease(
            payload=payload,
            loss_first=metrics.loss_first,
            loss_last=metrics.loss_last,
            micro_batch=metrics.micro_batch,
        )

    def measurer(self, *, lies: bool) -> None:
        """Blocks lie in no real cache here: nobody measures."""
        del lies

    def interrupted(self, worker: int, fetched: FetchedLease, share: float) -> None:
        """Train up to where the process died, so that what it kept is on disk."""
        lease, keeper = fetched.lease, self._keeper(worker, fetched)
        kept = keeper.load()
        first = 0 if kept is None else kept.step
        died_after = first + math.floor(share * (lease.inner_steps - first))
        if died_after <= first or died_after >= lease.inner_steps:
            return
        done = first

        def on_step(step: int, _: float | None) -> None:
            nonlocal done
            done = step

        shard, _ = self._loaded(fetched)
        try:
            train_shard(
                shard,
                lease,
                fetched.sequences,
                on_step=on_step,
                should_stop=lambda: done >= died_after,
                keeper=keeper,
            )
        except TrainingStopped:
            return
        raise LocalError(f"lease {lease.lease_id} was to stop after step {died_after} and went on")

    def _loaded(self, fetched: FetchedLease) -> tuple[ShardModel, Blocks]:
        lease = fetched.lease
        start = {block: self._block(block, digest, lease) for block, digest in fetched.digests.items()}
        return self._holding(lease, start), start

    def _holding(self, lease: Lease, start: Blocks) -> ShardModel:
        shard = self._shards.get(lease.columns)
        masters, stand_ins = lease.recipe.masters, StandIns(dtype=lease.recipe.frozen_dtype)
        if shard is None or not shard.serves(lease.columns, masters, stand_ins, lease.trunk):
            shard = self._shards[lease.columns] = build_shard(
                self.layout,
                lease.columns,
                start,
                seed=lease.seed,
                masters=masters,
                stand_ins=stand_ins,
                trunk=lease.trunk,
            )
        else:
            shard.load(start)
        return shard

    def _keeper(self, worker: int, fetched: FetchedLease) -> _Keeper:
        return _Keeper(self._states_of(worker), computation_of(fetched.lease, fetched.digests, "cpu"))

    def _states_of(self, worker: int) -> LeaseStates:
        if worker not in self._states:
            self._states[worker] = LeaseStates(self._folder / f"worker-{worker}")
        return self._states[worker]

    def _block(self, block: BlockId, digest: Digest, lease: Lease) -> EncodedBlock:
        """What a worker has fetched stays with it, whatever the coordinator sweeps away."""
        if digest not in self._blocks:
            payload = self._files.blocks.read(digest)
            codec = codec_named(lease.codec_of(block))
            found = encoded_tensors(memoryview(bytearray(payload)), block_tensor_specs(self.layout, block), codec)
            self._blocks[digest] = EncodedBlock(found)
        return self._blocks[digest]


class ServedFiles:
    """Versions in real files."""

    def __init__(self, versions: Versions, files: ArtifactStore) -> None:
        self._versions, self._files = versions, files

    def manifest_digest(self, version: int) -> Digest | None:
        """Of a version that is kept."""
        return self._versions.manifest_digest(Version(version))

    def manifest_bytes(self, digest: Digest) -> bytes:
        """As they are signed."""
        return self._versions.manifest_bytes(digest)

    def block(self, digest: Digest) -> bytes | None:
        """Of a version that is kept."""
        return self._files.blocks.read(digest) if self._files.blocks.has(digest) else None

    def served(self) -> frozenset[Digest]:
        """Of all versions that are kept."""
        return self._versions.served()


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
