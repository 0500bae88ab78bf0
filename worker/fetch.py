"""Bringing a lease's blocks and sequences to this machine, believing nothing that a signature or digest does not cover.

Decides what is fetched: only blocks that the cache lacks, whole or by steps from those that it has (worker/steps.py),
and beside them exactly the leased sequences; and, from the lease's manifest, which blocks are of no more use. Holds
always: a manifest counts only if the run's manifest key signed it for this run and version; a block only at the size
that this worker computed itself, under the digest in that manifest, whoever gave its bytes and however it was come to.
Touches the network through its ports, and the block cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from functools import partial

from moe.layout import block_tensor_specs
from protocol.allocator import give_back_all
from protocol.codecs import FP32, codec_named
from protocol.errors import DigestMismatch, MalformedMessage, Refused
from protocol.ids import BlockId, Digest, LeaseId, RoundNumber, Version
from protocol.lease import DataRange, Lease
from protocol.manifest import BlockRef, Manifest, verify_manifest
from protocol.recipe import Recipe
from protocol.tensor_headers import payload_size
from worker.allowance import DiskAllowance
from worker.data import AssignedData, DataSource
from worker.fetched import FetchedLease, Run
from worker.handiwork import HERE, Handiwork
from worker.home import Enrolment
from worker.lease import printable
from worker.ports import Background, BlockSource, Coordinator
from worker.steps import Way, starts, way_to
from worker.swarm import BlockSwarm

PARALLEL_DOWNLOADS = 4  # hides the round trip of small blocks; more would only share the same line
GIVE_BACK_EVERY_BYTES = 64 << 20
"""What gRPC drops of a stream lies in the C library's arenas, between what is still used: 240 MB after 640 MB came, 490
after 1.2 GB. Given back so often it is some 20."""


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
        swarm: BlockSwarm | None = None,
        data: DataSource | None = None,
        parallel: int = PARALLEL_DOWNLOADS,
        told: Callable[[str], None] = lambda _reason: None,
        handiwork: Handiwork = HERE,
    ) -> None:
        """Blocks come from `source`, sequences from `data`; where there is none, both from the coordinator. With a
        `swarm`, blocks come from whoever it finds.

        `told` hears why a block comes whole though there was a shorter way.
        """
        self._told, self.handiwork = told, handiwork
        self._coming: dict[Digest, asyncio.Lock] = {}
        self._stepping = asyncio.Semaphore(parallel)
        self._not_given_back_bytes = 0
        self._data = AssignedData(coordinator) if data is None else data
        self._background = background
        self._coordinator = coordinator
        self._source = source or coordinator
        self._swarm = swarm
        self._parallel = parallel
        self._disk = disk
        self._cache = disk.blocks
        self._enrolment = enrolment

    async def fetch(self, lease: Lease, run: Run, on_bytes: Callable[[int], None]) -> FetchedLease:
        """Blocks into the cache, sequences into memory."""
        manifest = await self._manifest(lease, run)
        needed = {block: checked_ref(manifest, block, run, lease) for block in run.layout.needed_blocks(lease.columns)}
        digests = {block: ref.digest for block, ref in needed.items()}
        bringing = asyncio.create_task(self._bring_missing(needed, manifest, run, lease, on_bytes))
        fetching = asyncio.ensure_future(self._data.sequences(lease, run.sequences, on_bytes))
        try:
            _, sequences_NL = await asyncio.gather(bringing, fetching)
        finally:  # where one fails the other is given up, before anybody tries again
            bringing.cancel()
            fetching.cancel()
            await asyncio.gather(bringing, fetching, return_exceptions=True)
        await self._give_back(GIVE_BACK_EVERY_BYTES // 8)
        return FetchedLease(lease=lease, run=run, digests=digests, sequences=sequences_NL)

    async def whole_version(
        self, version: int, item_id: str, run: Run, on_bytes: Callable[[int], None]
    ) -> dict[BlockId, Digest]:
        """Every block of a version into the cache, as a lease on all columns needs them."""
        lease = Lease(
            lease_id=LeaseId(item_id),
            round=RoundNumber(0),
            base_version=Version(version),
            columns=tuple(range(run.layout.columns)),
            data=DataRange(seed=0, start=0, count=0),
            seed=0,
            inner_steps=0,
            batch_sequences=0,
            recipe=Recipe(),
        )
        manifest = await self._manifest(lease, run)
        needed = {block: checked_ref(manifest, block, run, lease) for block in run.layout.blocks}
        await self._bring_missing(needed, manifest, run, lease, on_bytes)
        return {block: ref.digest for block, ref in needed.items()}

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

    async def _bring_missing(
        self,
        needed: dict[BlockId, BlockRef],
        manifest: Manifest,
        run: Run,
        lease: Lease,
        on_bytes: Callable[[int], None],
    ) -> None:
        self._coming = {}  # of this lease alone: digests of a whole run would add up
        ways = await self._background.run(self._ways, needed, manifest, run, lease)
        # a swarm is asked about all of them at once: it knows which are rare
        free = asyncio.Semaphore(self._parallel if self._swarm is None else max(1, len(ways)))

        async def bring(way: Way) -> None:
            async with free:
                await self._bring(way, run, on_bytes)

        tasks = [asyncio.create_task(bring(way)) for way in ways]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        shares = self._swarm is not None and self._swarm.sharing is not None
        for way in () if shares else ways:  # to others they are of use until the next lease begins
            for step in way.steps:
                self._cache.forget(step.digest)
        # what steps started from may make room from here on
        self._cache.need({ref.digest for ref in needed.values()})

    async def _bring(self, way: Way, run: Run, on_bytes: Callable[[int], None]) -> None:
        """By the way that was chosen; whole where that leads nowhere."""
        try:
            for ref in way.downloads:
                await self.come(ref, on_bytes)
            if way.steps:
                async with self._stepping:
                    await self._background.run(self.handiwork.take_steps, way, run, self._cache)
        except (MalformedMessage, DigestMismatch, Refused) as error:
            if not way.steps:
                raise
            self._told(
                f"{way.block} comes whole: its steps from an earlier version are no use ({printable(str(error))})"
            )
            await self._bring(way.whole, run, on_bytes)

    async def come(self, ref: BlockRef, on_bytes: Callable[[int], None]) -> None:
        """Once, though two blocks take the same step."""
        async with self._coming.setdefault(ref.digest, asyncio.Lock()):
            if self._cache.has(ref.digest, ref.payload_bytes):
                return
            if self._swarm is not None:
                await self._swarm.bring(ref, lambda source: self._download(ref, source, on_bytes))
            else:
                await self._coordinator.patiently(partial(self._download, ref, self._source, on_bytes))

    async def _download(self, ref: BlockRef, source: BlockSource, on_bytes: Callable[[int], None]) -> None:
        """Go on with one block where an earlier try broke off, and believe it once its digest holds."""
        partial = self._cache.begin(ref.digest, ref.payload_bytes)
        try:
            async with aclosing(source.block(ref.digest, ref.payload_bytes, partial.offset)) as pieces:
                async for piece in pieces:
                    partial.add(piece)
                    on_bytes(len(piece))
                    self._not_given_back_bytes += len(piece)
                    await self._give_back(GIVE_BACK_EVERY_BYTES)
        except MalformedMessage:
            partial.forget()
            raise
        partial.finish()
        self._cache.adopt(ref.digest)

    async def _give_back(self, least_bytes: int) -> None:
        """What was taken for the last so many bytes or more, or nothing; training is planned on what is free then."""
        if self._not_given_back_bytes >= least_bytes:
            self._not_given_back_bytes = 0
            await self._background.run(give_back_all)

    def _ways(self, needed: dict[BlockId, BlockRef], manifest: Manifest, run: Run, lease: Lease) -> list[Way]:
        """How what is missing comes, after making room for it: old blocks go before new ones come."""
        # Hashes what an earlier process left: seconds for a large model, so not on the event loop.
        cache, digests = self._cache, {ref.digest for ref in needed.values()}
        missing = {
            ref.digest: (block, ref) for block, ref in needed.items() if not cache.has(ref.digest, ref.payload_bytes)
        }
        ways = [
            way_to(block, ref, manifest, run.layout, cache)
            if lease.codec_of(block) == FP32.name
            else Way(block=block, ref=ref)
            for block, ref in missing.values()
        ]
        useful = {ref.digest for ref in manifest.blocks.values()} | set(starts(manifest, cache))
        cache.expect(digests.union(*(way.kept for way in ways)), useful)
        if not self._disk.make_room(sum(self._coming_bytes(way) for way in ways)):
            ways = [way.whole for way in ways]  # steps need room for what they start from
            cache.expect(digests, {ref.digest for ref in manifest.blocks.values()})
            self._disk.make_room(sum(self._coming_bytes(way) for way in ways))
        return ways

    def _coming_bytes(self, way: Way) -> int:
        made_bytes = way.ref.payload_bytes if way.steps else 0
        return made_bytes + sum(self._cache.missing_bytes(ref.digest, ref.payload_bytes) for ref in way.downloads)


def checked_ref(manifest: Manifest, block: BlockId, run: Run, lease: Lease) -> BlockRef:
    """What `manifest` says of `block`, if its size is the one that this worker computes from the layout."""
    codec = lease.codec_of(block)
    ref = _frozen_ref(manifest, block, lease) if codec != FP32.name else manifest.blocks.get(block)
    if ref is None:
        raise MalformedMessage(f"lease {lease.lease_id}: manifest {manifest.version} lacks block {block}")
    expected = payload_size(block_tensor_specs(run.layout, block), codec_named(codec))
    if ref.payload_bytes != expected or expected > run.description.max_block_bytes:
        bound = run.description.max_block_bytes
        raise MalformedMessage(f"block {block}: expected {expected} bytes (at most {bound}), got {ref.payload_bytes}")
    return ref


def _frozen_ref(manifest: Manifest, block: BlockId, lease: Lease) -> BlockRef | None:
    found, wanted = manifest.frozen, lease.frozen
    if found is None or (found.version, found.codec) != (wanted.version, wanted.codec):
        raise MalformedMessage(
            f"lease {lease.lease_id}: manifest {manifest.version} has no columns of version {wanted.version} in "
            f"{wanted.codec} for those that are not held"
        )
    return found.blocks.get(block)
