"""A lease: one shard and one range of the data, to be trained by one recipe. A pure function of what is written in it.

Holds no behaviour beyond reading its own fields. Who has it and until when is each side's own to keep, by its own
clock: `coordinator.engine.lease.GrantedLease`, `worker.lease.ReceivedLease`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from protocol.codecs import BF16, FP32
from protocol.ids import TRUNK, BlockId, Digest, LeaseId, RoundNumber, Version, column_block
from protocol.recipe import FROZEN_TRUNK, LORA_TRUNK, WHOLE_TRUNK, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRange:
    """Positions [start, start + count) of the training sequences, permuted by `seed`. Counts once in a run."""

    seed: int
    start: int
    count: int


_NO_VERSION: Final = Version(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenColumns:
    """What stands in for the columns that a lease does not hold: those of a version, in an encoding."""

    version: Version = _NO_VERSION
    codec: str = ""
    """A name of protocol/codecs.py; empty: they are the base version's own, and `version` says nothing."""


AS_PUBLISHED: Final = FrozenColumns()
"""Columns that are not held are the base version's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkPart:
    """What of the trunk a lease trains, and so what a submission of it holds (docs/decisions/0055)."""

    mode: str = WHOLE_TRUNK
    """One of protocol/recipe.py's `TRUNKS`."""
    rank: int = 0
    """Of the factors of a `lora` trunk, and what the fixed ones are drawn from; nothing of another."""
    seed: int = 0


ALL_OF_TRUNK: Final = TrunkPart()
"""As where nothing is said."""


def trunk_part(recipe: Recipe, lora_seed: int = 0) -> TrunkPart:
    """What leases of this recipe train of the trunk; what they send of it, and its size, follow without the seed."""
    if recipe.trunk != LORA_TRUNK:
        return TrunkPart(mode=recipe.trunk)
    return TrunkPart(mode=LORA_TRUNK, rank=recipe.lora_rank, seed=lora_seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a worker is asked to compute; the fields of `message Lease`."""

    lease_id: LeaseId
    round: RoundNumber
    base_version: Version
    columns: tuple[int, ...]
    """Held expert columns, ascending."""
    data: DataRange
    seed: int
    inner_steps: int
    batch_sequences: int
    """Sequences an inner step."""
    recipe: Recipe
    frozen: FrozenColumns = AS_PUBLISHED
    """Held blocks are always the base version's."""
    codec: str = BF16.name
    """What the submission is encoded in."""
    residuals: tuple[Digest, ...] = ()
    """What the encoding of each of `blocks` begins with, which an earlier one left; "": nothing. (): nothing for any.
    What is computed does not depend on it, only how it is sent."""
    lora_seed: int = 0
    """What the fixed factors of a `lora` trunk are drawn from; the same for all leases of some rounds."""

    @property
    def sequences(self) -> int:
        """Sequences assigned by the coordinator: what the submission's weight is made of."""
        return self.inner_steps * self.batch_sequences

    @property
    def blocks(self) -> tuple[BlockId, ...]:
        """Blocks that a submission for this lease must hold: the trunk, unless it is frozen, then its columns."""
        return blocks_of(self.columns, self.trunk)

    @property
    def own(self) -> tuple[BlockId, ...]:
        """Blocks that it begins with as its base version has them, trained or not: the trunk, then its columns."""
        return blocks_of(self.columns)

    @property
    def trunk(self) -> TrunkPart:
        """What of the trunk it trains."""
        return trunk_part(self.recipe, self.lora_seed)

    def codec_of(self, block: BlockId) -> str:
        """What the file of `block` that it is trained with is encoded in."""
        return self.frozen.codec if self.frozen.codec and block not in self.own else FP32.name


def blocks_of(columns: tuple[int, ...], trunk: TrunkPart = ALL_OF_TRUNK) -> tuple[BlockId, ...]:
    """The trunk, where something of it is trained, then these columns."""
    held = tuple(column_block(column) for column in columns)
    return held if trunk.mode == FROZEN_TRUNK else (TRUNK, *held)
