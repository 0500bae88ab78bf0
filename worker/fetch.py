"""Bringing a lease's blocks and sequences to this machine, believing nothing that a signature or digest does not cover.

Decides what is fetched: only blocks that the cache lacks, and exactly the leased sequences; and, from the lease's
manifest, which blocks are of no more use. Holds always: a manifest
counts only if the run's manifest key signed it for this run and version; a block only at the size that this worker
computed itself, under the digest in that manifest, whoever gave its bytes. Touches the network through its ports, and
the block cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from moe.layout import block_tensor_specs
from protocol.codecs import FP32
from protocol.errors import MalformedMessage
from protocol.ids import BlockId, Digest
from protocol.lease import Lease
from protocol.manifest import BlockRef, Manifest, verify_manifest
from protocol.tensors import payload_size
from worker.allowance import DiskAllowance
from worker.data import AssignedData, DataSource
from worker.fetched import FetchedLease, Run
from worker.home import Enrolment
from worker.ports import Background, BlockSource, Coordinator

PARALLEL_DOWNLOADS = 4  # hides the round trip of small blocks; more would only share the same line


class Fetcher:
    """Fetches for one enrolment. Blocks come from `source`, by default the coordinator."""

    def __init__(
        self,
        coordinator: Coordinator,
        disk: DiskAllowance,
        enrolment: Enrolment,
        background: Background,
        *,
        source: BlockSource | None = None,
        data: DataSource | None = None,
        parallel: int = PARALLEL_DOWNLOADS,
    ) -> None:
        """Blocks come from `source`, sequences from `data`; where there is none, both from the coordinator."""
        self._data = AssignedData(coordinator) if data is None else data
        self._background = background
        self._coordinator = coordinator
        self._source = source or coordinator
        self._parallel = parallel
        self._disk = disk
        self._cache = disk.blocks
        self._enrolment = enrolment

    async def fetch(self, lease: Lease, run: Run, on_bytes: Callable[[int], None]) -> FetchedLease:
        """Blocks into the cache, sequences into memory."""
        manifest = await self._manifest(lease, run)
        needed = {block: checked_ref(manifest, block, run, lease) for block in run.layout.needed_blocks(lease.columns)}
        await self._download_missing(needed, manifest, on_bytes)
        digests = {block: ref.digest for block, ref in needed.items()}
        sequences_NL = await self._data.sequences(lease, run.sequences, on_bytes)
        return FetchedLease(lease=lease, run=run, digests=digests, sequences=sequences_NL)

    async def _manifest(self, lease: Lease, run: Run) -> Manifest:
        reply = await self._coordinator.get_manifest(lease.base_version)
        verify_manifest(self._enrolment.manifest_public_key, reply.manifest_json, reply.signature)
        manifest = Manifest.from_json(reply.manifest_json)
        expected = (self._enrolment.run_id, lease.base_version, run.description.residency)
        got = (manifest.run_id, manifest.version, manifest.residency)
        if got != expected:
            raise MalformedMessage(f"manifest: expected run, version, residency {expected}, got {got}")
        if dict(manifest.model) != dict(run.layout.config_json):
            raise MalformedMessage(f"manifest of version {manifest.version} describes another model than the run")
        return manifest

    async def _download_missing(
        self, needed: dict[BlockId, BlockRef], manifest: Manifest, on_bytes: Callable[[int], None]
    ) -> None:
        missing = await self._background.run(self._missing, needed, manifest)
        free = asyncio.Semaphore(self._parallel)

        async def download(ref: BlockRef) -> None:
            async with free:
                await self._coordinator.patiently(lambda: self._download(ref, on_bytes))

        tasks = [asyncio.create_task(download(ref)) for ref in missing.values()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _download(self, ref: BlockRef, on_bytes: Callable[[int], None]) -> None:
        """Go on with one block where an earlier try broke off, and believe it once its digest holds."""
        partial = self._cache.begin(ref.digest, ref.payload_bytes)
        try:
            async with aclosing(self._source.block(ref.digest, ref.payload_bytes, partial.offset)) as pieces:
                async for piece in pieces:
                    partial.add(piece)
                    on_bytes(len(piece))
        except MalformedMessage:
            partial.forget()
            raise
        partial.finish()
        self._cache.adopt(ref.digest)

    def _missing(self, needed: dict[BlockId, BlockRef], manifest: Manifest) -> dict[Digest, BlockRef]:
        """What is to be downloaded, after making room for it: old blocks go before new ones come."""
        # Hashes what an earlier process left: seconds for a large model, so not on the event loop.
        cache = self._cache
        cache.expect({ref.digest for ref in needed.values()}, {ref.digest for ref in manifest.blocks.values()})
        missing = {ref.digest: ref for ref in needed.values() if not cache.has(ref.digest, ref.payload_bytes)}
        self._disk.make_room(sum(cache.missing_bytes(ref.digest, ref.payload_bytes) for ref in missing.values()))
        return missing


def checked_ref(manifest: Manifest, block: BlockId, run: Run, lease: Lease) -> BlockRef:
    """What `manifest` says of `block`, if its size is the one that this worker computes from the layout."""
    ref = manifest.blocks.get(block)
    if ref is None:
        raise MalformedMessage(f"lease {lease.lease_id}: manifest {manifest.version} lacks block {block}")
    expected = payload_size(block_tensor_specs(run.layout, block), FP32)
    if ref.payload_bytes != expected or expected > run.description.max_block_bytes:
        bound = run.description.max_block_bytes
        raise MalformedMessage(f"block {block}: expected {expected} bytes (at most {bound}), got {ref.payload_bytes}")
    return ref
