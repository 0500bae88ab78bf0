"""How much of the disk one run may take, and what gives way when that, or the disk itself, runs short.

Decides the order: blocks that the present lease does not need go first, oldest use first; progress of a lease is not
kept where it would not leave room for the finished work; blocks of the present lease and finished work stay. Holds
always: a cap under what one lease needs is refused before anything is leased. Touches the run's folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from moe.layout import Layout, block_tensor_specs, submission_specs
from protocol.codecs import FP32, codec_named
from protocol.errors import ConfigError
from protocol.lease import ALL_OF_TRUNK, TrunkPart
from protocol.residency import ABSENT
from protocol.tensor_headers import payload_size
from protocol.text import human_bytes
from worker.blocks import BlockCache
from worker.files import DISK, Files
from worker.ports import LeaseProgress

UNASKED_BLOCKS_BYTES = 8 << 30
"""Without a cap: blocks are kept up to so much, or up to what the present lease needs."""


RECORDS_BYTES = 64 << 10
"""Key, enrolment and the records beside payloads: a few KiB each."""


MOST_RESIDUALS = 7
"""Of a codec that keeps some: five of the last two submissions lie there while two of the next are written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskCap:
    """What a run's folder may take."""

    most_bytes: int | None = None
    """None: nothing is said."""
    name: str = "--disk"
    """What says so."""

    def columns_that_fit(
        self,
        layout: Layout,
        codec: str,
        columns: int,
        frozen_codec: str = FP32.name,
        trunk: TrunkPart = ALL_OF_TRUNK,
    ) -> int:
        """At most `columns`: as many as a lease can have on this disk. ConfigError when not even the fewest fit."""
        if self.most_bytes is None:
            return columns
        fewest = min(columns, layout.top_k if layout.residency == ABSENT else 1)
        for count in range(columns, fewest - 1, -1):
            if sum(lease_bytes(layout, codec, count, frozen_codec, trunk)) + RECORDS_BYTES <= self.most_bytes:
                return count
        blocks_bytes, work_bytes = lease_bytes(layout, codec, fewest, frozen_codec, trunk)
        needed_mib = -(-(blocks_bytes + work_bytes + RECORDS_BYTES) // 2**20)
        parts = f"{human_bytes(blocks_bytes)} of the model and {human_bytes(work_bytes)} of finished work"
        raise ConfigError(
            f"{self.name} {human_bytes(self.most_bytes)} is too little: one lease of this run needs {parts},"
            f" so it must be {needed_mib}MB or more"
        )


class DiskAllowance:
    """The room that one run's folder has."""

    def __init__(
        self, folder: Path, blocks: BlockCache, progress: LeaseProgress, max_bytes: int | None, files: Files = DISK
    ) -> None:
        self._folder, self._files = folder, files
        self.blocks = blocks
        self.progress = progress
        self._asked_bytes = max_bytes
        self.ruled: Callable[[], int | None] = lambda: None
        """What the volunteer's rules allow at the moment; None: nothing is ruled."""
        self.short: Callable[[int], int] = lambda _coming: 0
        """Bytes that are missing, once so many more are written, of what the disk is to keep free."""

    @property
    def cap(self) -> DiskCap:
        """What holds at the moment."""
        asked, ruled = self._asked_bytes, self.ruled()
        if ruled is not None and (asked is None or ruled < asked):
            return DiskCap(most_bytes=ruled, name="the rule disk.most of")
        return DiskCap(most_bytes=asked)

    def make_room(self, coming_bytes: int) -> bool:
        """Whether `coming_bytes` more may be written; blocks that the present lease does not need give way to them, and
        to what the disk is to keep free. That alone refuses nothing: work that fits the disk is done."""
        if (short_bytes := self.short(0)) > 0:
            self.blocks.trim(max(0, self.blocks.used_bytes - short_bytes - coming_bytes))
        most_bytes = self.cap.most_bytes
        if most_bytes is None:
            self.blocks.trim(max(0, UNASKED_BLOCKS_BYTES - coming_bytes))
            return True
        over_bytes = self._files.used_bytes(self._folder) + coming_bytes - most_bytes
        if over_bytes > 0:
            over_bytes -= self.blocks.trim(max(0, self.blocks.used_bytes - over_bytes))
        return over_bytes <= 0

    def has_room_for_archive(self, archive_bytes: int, coming_bytes: int, lease_bytes: int) -> bool:
        """Whether an archive that has `archive_bytes` may grow by so much, and a lease has what it needs beside it."""
        most_bytes = self.cap.most_bytes
        if most_bytes is not None and archive_bytes + coming_bytes + lease_bytes + RECORDS_BYTES > most_bytes:
            return False
        if self.short(coming_bytes) > 0:
            return False
        return most_bytes is None or self.make_room(coming_bytes)

    def has_room_for_progress(self, state_bytes: int, submission_bytes: int) -> bool:
        """Whether a lease's progress may be kept: twice, as the new one is written before the old one goes, and with
        room left for the lease's finished work."""
        return self.make_room(2 * state_bytes - self.progress.used_bytes + submission_bytes)

    def give_way(self) -> bool:
        """The disk is full: delete all that the present lease can do without. Whether that freed anything."""
        return self.blocks.trim(0) > 0

    def columns_that_fit(
        self,
        layout: Layout,
        codec: str,
        columns: int,
        frozen_codec: str = FP32.name,
        trunk: TrunkPart = ALL_OF_TRUNK,
    ) -> int:
        """As `DiskCap.columns_that_fit`, under the cap of now."""
        return self.cap.columns_that_fit(layout, codec, columns, frozen_codec, trunk)


def lease_bytes(
    layout: Layout, codec: str, columns: int, frozen_codec: str = FP32.name, trunk: TrunkPart = ALL_OF_TRUNK
) -> tuple[int, int]:
    """Bytes on disk of a lease of so many columns: its blocks, those that it does not hold in `frozen_codec`, and
    finished work (its own, and what is being sent) with the residuals of it.
    """
    held = range(columns)
    own, frozen = set(layout.shard_blocks(held)), codec_named(frozen_codec)
    blocks_bytes = sum(
        payload_size(block_tensor_specs(layout, block), FP32 if block in own else frozen)
        for block in layout.needed_blocks(held)
    )
    specs, kept = submission_specs(layout, held, trunk), codec_named(codec)
    residuals = MOST_RESIDUALS * payload_size(specs, FP32) if kept.has_state else 0
    return blocks_bytes, 2 * payload_size(specs, kept) + residuals
