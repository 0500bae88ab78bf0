"""Training, measuring and outer steps, each replaced by a hash of exactly what the real one depends on.

Decides what a submission and a block "contain". A payload is the hash of its lease, its sequences and the base blocks
that it was trained from, so one that was trained from anything else, or mixed with another's bytes, is found when it is
measured. A block's bytes follow from its parent's digest and the contributions that changed it, so descent can be
followed. Manifests, sizes and digests are real: a worker's fetcher checks them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe.config import config_from_json, config_to_json
from moe.layout import Layout, block_tensor_specs, layout, submission_specs
from moe.presets import preset
from protocol.codecs import FP32, codec_named
from protocol.ids import TRUNK, BlockId, Digest, LeaseId, RoundNumber, RunId, Version, column_block, digest_of
from protocol.manifest import BlockRef, Manifest
from protocol.residency import FROZEN
from protocol.tensor_headers import payload_size
from simulator.deterministic.cheap_executor import CheapExecutor, trained_payload
from simulator.deterministic.disk import Disk, StoredBlock, VersionEntry, stretched
from simulator.deterministic.measuring import HashMeasurer
from simulator.deterministic.work import Site, TrainedLease
from worker.fetched import FetchedLease
from worker.ports import LeaseProgress


class HashWork:
    """No training at all: thousands of runs a minute."""

    name = "simulated"
    residency = FROZEN
    codec = "fp32"
    admission_work_bits = 0
    most_per_range = 0
    column_parts = 1
    fallback_s = 30.0
    sequence_length = 8
    heldout_limit = 4
    frame_bytes = 512
    """A few frames for a submission or a block of a KB or two."""

    def __init__(self, columns: int, copies: int = 2) -> None:
        self.copies = copies
        self.layout = _layout(columns)
        self.texts = HashTexts()
        self._manifests: dict[Digest, bytes] = {}

    def first_version(self, disk: Disk) -> Digest:
        """Blocks that come from nothing."""
        blocks = {name: StoredBlock(None, name, self.size_of(name)) for name in self.layout.blocks}
        return self.write_version(disk, 0, blocks, "created")

    def executor(self, site: Site) -> CheapExecutor:
        """On hashes."""
        return CheapExecutor(site, self.texts, self.sequence_length, self.heldout_limit, self.write_version)

    def served(self, disk: Disk) -> ServedHashes:
        """What the disk keeps."""
        return ServedHashes(disk, self._manifests)

    def progress(self, worker: int) -> LeaseProgress:
        """Nothing is kept of a lease that was interrupted."""
        del worker
        return NOTHING_KEPT

    def share_left(self, worker: int, fetched: FetchedLease) -> float:
        """All of it."""
        del worker, fetched
        return 1.0

    def trained(self, worker: int, fetched: FetchedLease) -> TrainedLease:
        """The hash of what it depends on."""
        del worker
        lease = fetched.lease
        size_bytes = _submission_bytes(self.layout.columns, tuple(lease.columns), lease.codec)
        return TrainedLease(payload=trained_payload(lease, fetched.digests, fetched.sequences, size_bytes))

    def measurer(self, *, lies: bool) -> HashMeasurer:
        """On hashes."""
        return HashMeasurer(lies=lies)

    def interrupted(self, worker: int, fetched: FetchedLease, share: float) -> None:
        """Nothing is left of it."""

    def size_of(self, block: BlockId) -> int:
        """Bytes of a block, as a worker reckons them."""
        return _block_bytes(self.layout.columns, block == TRUNK)

    def write_version(self, disk: Disk, version: int, blocks: Mapping[BlockId, StoredBlock], cause: str) -> Digest:
        """Put a version on the disk; the digest of its manifest."""
        digests = {name: block.digest for name, block in blocks.items()}
        disk.blocks.update({digests[name]: block for name, block in blocks.items()})
        content = Manifest(
            run_id=RunId(self.name),
            version=Version(version),
            parent_version=Version(version - 1) if version else None,
            round=RoundNumber(version),
            created_at_s=0.0,
            model=self.layout.config_json,
            residency=self.residency,
            blocks={
                name: BlockRef(digest=digest, payload_bytes=self.size_of(name)) for name, digest in digests.items()
            },
            momenta={},
            val_loss=None,
            tokens_trained=0,
        ).to_json()
        manifest = digest_of(content)
        self._manifests[manifest] = content
        disk.manifests[manifest] = digests
        disk.versions[Version(version)] = VersionEntry(manifest, cause)
        return manifest


class ServedHashes:
    """The versions on a disk."""

    def __init__(self, disk: Disk, manifests: Mapping[Digest, bytes]) -> None:
        self._disk, self._manifests = disk, manifests

    def manifest_digest(self, version: int) -> Digest | None:
        """Of a version that is kept."""
        entry = self._disk.versions.get(version)
        return None if entry is None else entry.manifest

    def manifest_bytes(self, digest: Digest) -> bytes:
        """As they are signed."""
        return self._manifests[digest]

    def served(self) -> frozenset[Digest]:
        """Of all versions that are kept."""
        return frozenset(digest for blocks in self._disk.manifests.values() for digest in blocks.values())

    def block(self, digest: Digest) -> bytes | None:
        """Of a version that is kept."""
        kept = any(digest in blocks.values() for blocks in self._disk.manifests.values())
        return self._disk.blocks[digest].payload if kept else None


class HashTexts:
    """Sequences that say where in which permutation they stand."""

    digest = Digest("0" * 64)
    licence = "unknown"

    def sequences(self, seed: int, start: int, count: int, seq_len: int) -> NDArray[np.uint8]:
        """Tokens below the vocabulary's size."""
        content = stretched(f"{seed} {start}", count * (seq_len + 1))
        rows: NDArray[np.uint8] = np.frombuffer(content, dtype=np.uint8).reshape(count, seq_len + 1) % VOCABULARY
        return rows

    def heldout_sequences(self, seq_len: int) -> int:
        """More than anybody is validated on."""
        del seq_len
        return 2 * HashWork.heldout_limit

    def heldout_all(self, seq_len: int, limit: int | None = None) -> NDArray[np.uint8]:
        """Sequences of no permutation."""
        return self.sequences(-1, 0, self.heldout_sequences(seq_len) if limit is None else limit, seq_len)


class _NothingKept:
    """No progress of any lease."""

    used_bytes = 0

    def save(self, computation: str, state: Any) -> None:
        """It is lost."""

    def load(self, computation: str) -> None:
        """There is none."""

    def keep_only(self, lease_id: LeaseId) -> None:
        """There is nothing."""

    def clear(self) -> None:
        """There is nothing."""


NOTHING_KEPT = _NothingKept()
VOCABULARY = 16
TINIEST: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 1,
    "max_position_embeddings": 16,
}
"""The tiny preset's family, as small as it gets."""


@functools.cache
def _layout(columns: int) -> Layout:
    values = {**config_to_json(preset("tiny", vocab_size=VOCABULARY)), **TINIEST, "num_experts": columns}
    return layout(config_from_json(values), FROZEN)


@functools.cache
def _block_bytes(columns: int, is_trunk: bool) -> int:
    return payload_size(block_tensor_specs(_layout(columns), TRUNK if is_trunk else column_block(0)), FP32)


@functools.cache
def _submission_bytes(columns: int, held: tuple[int, ...], codec: str) -> int:
    return payload_size(submission_specs(_layout(columns), held), codec_named(codec))
