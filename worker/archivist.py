"""Keeps the newest version of the run whole, where its volunteer said `--archive`: the run can go on from it.

Decides what is fetched next: the version that the coordinator names, if it is newer than the one that is here, which
stays until all of the new one is; what both have in common, and blocks that the cache has, are not fetched again.
Always: the folder `archive/` of the run is at each moment an archive as `barnraise coordinator fork` reads them, or has
no index; nothing is in its index that the run's certificate does not cover, and no file that is not under its digest,
of the size that this worker computed itself; a lease has the room that it needs beside it. Touches the network through
its ports, and that folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from moe.layout import Layout, block_tensor_specs
from protocol.archives import BLOBS_FOLDER, INDEX_FILE, MAX_INDEX_BYTES, ArchiveIndex
from protocol.codecs import FP32
from protocol.errors import BarnraiseError, MalformedMessage
from protocol.ids import Digest, Version, digest_of
from protocol.manifest import BlockRef, Manifest
from protocol.private_files import write_private
from protocol.tensor_headers import payload_size
from protocol.text import human_bytes
from protocol.v1 import barnraise_pb2 as pb
from worker.allowance import DiskAllowance, lease_bytes
from worker.blocks import BlockCache
from worker.fetch import Fetcher
from worker.joining import Joining
from worker.lease import printable
from worker.progress import Reporter
from worker.repeats import Repeats
from worker.swarm import BlockSwarm
from worker.wire import SessionEnded
from worker.words import Words, foreign, say

ARCHIVE_FOLDER: Final = "archive"
AGAIN_S: Final = 60.0
"""After something went wrong, or there was no room."""


class Archivist:
    """One run's."""

    def __init__(self, joining: Joining, reporter: Reporter) -> None:
        self._joining, self._reporter = joining, reporter
        self._clock = joining.timing.clock
        self._folder = joining.home.folder / ARCHIVE_FOLDER
        self._files: BlockCache | None = None
        self._held: ArchiveIndex | None = None
        """What is here whole, each file checked by this process."""
        self._told_in = -1
        """The session in which the coordinator was told that last."""
        self._not_before_s = float("-inf")
        self._said = Repeats(self._clock)
        self._keeping: asyncio.Task[None] | None = None

    def on_beat(self, session: int, reply: pb.HeartbeatReply, swarm: BlockSwarm | None, *, allowed: bool) -> None:
        """The coordinator answered, with its newest version. `allowed`: by the volunteer's rules."""
        latest = reply.latest_version
        is_busy = self._keeping is not None and not self._keeping.done()
        if not allowed:
            if is_busy and self._keeping is not None:
                self._keeping.cancel()  # what has come stays, and is gone on with
            return
        is_told = self._told_in == session and self._held is not None and self._held.record.version >= latest
        if is_busy or is_told or self._clock() < self._not_before_s:
            return
        if not reply.archives:
            self._later("archive_none", say("archive.none", why=Words(say("archive.not_given"))))
            return
        self._keeping = asyncio.create_task(self._keep(session, latest, swarm))

    async def close(self) -> None:
        """What has come stays."""
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping

    async def _keep(self, session: int, latest: int, swarm: BlockSwarm | None) -> None:
        try:
            if self._files is None:
                self._files = await asyncio.to_thread(self._opened)
            reply = await self._ask()
            while not reply.notice and (self._held is None or reply.version > self._held.record.version):
                if not await self._fetch(reply, self._files, swarm):
                    return
                reply = await self._ask()
            self._told_in = session
            if reply.notice:
                self._later("archive_none", say("archive.none", why=foreign(printable(reply.notice))))
        except SessionEnded:
            return
        except (BarnraiseError, OSError) as error:
            why = foreign(printable(str(error), 200))
            self._later("archive_later", say("archive.later", version=latest, why=why))

    def _later(self, event: str, text: str) -> None:
        """Said once, and again from time to time, while it stays so."""
        self._not_before_s = self._clock() + AGAIN_S
        if self._said.lasting_s(text) is not None:
            self._reporter.say(event, text)

    async def _ask(self) -> pb.ArchiveReply:
        request = pb.ArchiveRequest()
        if self._held is not None:
            request.held_version = self._held.record.version
            request.held_manifest = bytes.fromhex(digest_of(self._held.manifest_json))
        return await self._joining.client.archive(request)

    async def _fetch(self, reply: pb.ArchiveReply, files: BlockCache, swarm: BlockSwarm | None) -> bool:
        """All of the version that `reply` is about; whether it is here."""
        index = await self._index(reply)
        version, named = index.record.version, index.named()
        missing = await asyncio.to_thread(self._missing, named.values(), files)
        coming_bytes = sum(ref.payload_bytes for ref in missing)
        if not await asyncio.to_thread(self._has_room, files, set(named), coming_bytes):
            text = say("archive.no_room", version=version, amount=human_bytes(coming_bytes))
            self._later("archive_no_room", text)
            return False
        self._reporter.say("archiving", say("archive.begun", version=version, amount=human_bytes(coming_bytes)))
        served = {ref.digest for ref in index.manifest.blocks.values()}
        alone, together = self._fetcher(files, None), self._fetcher(files, swarm)
        # what others have may come from them, or into the cache meanwhile: it comes last
        for ref in sorted(missing, key=lambda one: one.digest in served):
            is_block = ref.digest in served
            if not (is_block and await asyncio.to_thread(self._linked, ref, files)):
                await (together if is_block else alone).come(ref, lambda _count: None)
        await asyncio.to_thread(self._settle, index, files)
        self._said.over()
        text = say("archived", version=version, folder=str(self._folder))
        self._reporter.say("archived", text, version=version, folder=str(self._folder))
        return True

    def _fetcher(self, files: BlockCache, swarm: BlockSwarm | None) -> Fetcher:
        joining, home = self._joining, self._joining.home
        disk = DiskAllowance(home.folder, files, home.progress, None)
        return Fetcher(joining.client, disk, joining.enrolment, joining.background, swarm=swarm)

    async def _index(self, reply: pb.ArchiveReply) -> ArchiveIndex:
        """What the coordinator names, believed."""
        enrolment, run = self._joining.enrolment, self._joining.run
        signed = await self._joining.client.get_manifest(reply.version)
        index = ArchiveIndex(
            ca_pem=enrolment.ca_pem.encode(),
            manifest_key=enrolment.manifest_public_key,
            vouch=bytes.fromhex(enrolment.manifest_key_vouch_hex),
            manifest_json=signed.manifest_json,
            manifest_signature=signed.signature,
            record_json=reply.record_json,
            record_signature=reply.record_signature,
        )
        index.check()
        manifest, expected = index.manifest, (enrolment.run_id, Version(reply.version))
        if (manifest.run_id, manifest.version) != expected or dict(manifest.model) != dict(run.layout.config_json):
            raise MalformedMessage(f"archive: expected {expected}, got {manifest.run_id}, version {manifest.version}")
        check_sizes(manifest, run.layout)
        return index

    # ---- the folder -------------------------------------------------------------------------------------------------

    def _opened(self) -> BlockCache:
        """What an earlier process left, hashed once: seconds for each gigabyte."""
        files = BlockCache(self._folder / BLOBS_FOLDER)
        index = kept_index(self._folder)
        if index is not None and not self._missing(index.named().values(), files):
            self._held = index
        return files

    def _missing(self, refs: Iterable[BlockRef], files: BlockCache) -> list[BlockRef]:
        return [ref for ref in refs if not files.has(ref.digest, ref.payload_bytes)]

    def _has_room(self, files: BlockCache, named: set[Digest], coming_bytes: int) -> bool:
        # what an earlier try left of a version that is not taken any more goes first
        _remove_all_but(named.union(() if self._held is None else self._held.named()), files, self._folder)
        run, columns = self._joining.run, self._joining.columns
        told = run.description
        lease = sum(lease_bytes(run.layout, told.codec, columns, told.frozen_codec or FP32.name))
        return self._joining.home.disk.has_room_for_archive(files.used_bytes, coming_bytes, lease)

    def _linked(self, ref: BlockRef, files: BlockCache) -> bool:
        """Whether the block cache has it, and now the archive has, too, in the same place on the disk."""
        cache = self._joining.home.disk.blocks
        if ref.digest not in cache.checked:
            return False
        with contextlib.suppress(OSError):  # gone meanwhile, or a file system without links
            os.link(cache.path(ref.digest), files.path(ref.digest))
        return files.has(ref.digest, ref.payload_bytes)

    def _settle(self, index: ArchiveIndex, files: BlockCache) -> None:
        """The new version is what the folder is an archive of; what only the old one had goes."""
        write_private(self._folder / INDEX_FILE, index.to_json())
        self._held = index  # here, since a thread goes on when whoever waits for it is cancelled
        _remove_all_but(set(index.named()), files, self._folder)


def kept_index(folder: Path) -> ArchiveIndex | None:
    """The index of the archive in `folder`, believed; None where there is none."""
    try:
        path = folder / INDEX_FILE
        if path.stat().st_size > MAX_INDEX_BYTES:
            return None
        return ArchiveIndex.from_json(path.read_bytes())
    except (OSError, BarnraiseError):
        return None


def check_sizes(manifest: Manifest, layout: Layout) -> None:
    """MalformedMessage unless every file is of the size that its block has: before a byte of it is fetched."""
    for refs in (manifest.blocks, manifest.masters, manifest.momenta):
        for block, ref in refs.items():
            if block not in layout.blocks:
                raise MalformedMessage(f"archive: version {manifest.version} has a block {block} that its model lacks")
            expected = payload_size(block_tensor_specs(layout, block), FP32)
            if ref.payload_bytes != expected:
                raise MalformedMessage(f"archive: block {block}: expected {expected} bytes, got {ref.payload_bytes}")
    if set(manifest.blocks) != set(layout.blocks):
        raise MalformedMessage(f"archive: version {manifest.version} lacks blocks of its model")


def _remove_all_but(stays: set[Digest], files: BlockCache, folder: Path) -> None:
    for path in (folder / BLOBS_FOLDER).iterdir():
        digest = Digest(path.name.partition(".")[0])
        if digest not in stays:
            files.forget(digest)
            path.unlink(missing_ok=True)
