"""How a block comes here: whole, or by steps from an earlier one that is here already.

Decides by bytes alone, those counted that are here already. Believes only digests: a step that is not what was signed,
or does not lead to the block that was signed, is forgotten, and the block comes whole. Whichever way it came, it is the
same, bit for bit (protocol/deltas.py). Touches the block cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moe.layout import Layout, block_tensor_specs
from protocol.codecs import CODECS
from protocol.ids import BlockId, Digest
from protocol.manifest import BlockRef, DeltaRef, Manifest
from protocol.tensor_headers import payload_size
from worker.blocks import BlockCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What has to come for one block that is not here."""

    block: BlockId
    ref: BlockRef
    steps: tuple[DeltaRef, ...] = ()
    """From the block that is here, the earliest first; none: it comes whole."""

    @property
    def downloads(self) -> tuple[BlockRef, ...]:
        """What is fetched, in this order."""
        if not self.steps:
            return (self.ref,)
        return tuple(BlockRef(digest=step.digest, payload_bytes=step.payload_bytes) for step in self.steps)

    @property
    def kept(self) -> frozenset[Digest]:
        """What must not go until the block is here."""
        return frozenset({one.digest for one in self.downloads} | {step.base for step in self.steps[:1]})

    @property
    def whole(self) -> Way:
        """The other way."""
        return Way(block=self.block, ref=self.ref)


def way_to(block: BlockId, ref: BlockRef, manifest: Manifest, layout: Layout, cache: BlockCache) -> Way:
    """The way of fewest bytes to a block that is not here, fp32, in the version of `manifest`."""
    whole = Way(block=block, ref=ref)
    left_bytes = cache.missing_bytes(ref.digest, ref.payload_bytes)
    taken: list[DeltaRef] = []
    for step in manifest.deltas.get(block, ()):
        if step.codec not in CODECS or step.payload_bytes != _delta_bytes(layout, block, step):
            break
        left_bytes -= 0 if cache.is_here(step.digest) else cache.missing_bytes(step.digest, step.payload_bytes)
        if left_bytes <= 0:
            break
        taken.append(step)
        if cache.has(step.base, ref.payload_bytes):
            return Way(block=block, ref=ref, steps=tuple(reversed(taken)))
    return whole


def starts(manifest: Manifest, cache: BlockCache) -> Iterator[Digest]:
    """Of each block that is not here, the latest of before that is: what its steps start from."""
    for block, chain in manifest.deltas.items():
        if not cache.is_here(manifest.blocks[block].digest):
            yield from [step.base for step in chain if cache.is_here(step.base)][:1]


def take_steps(way: Way, layout: Layout, cache: BlockCache) -> None:
    """Make the block of what has come. MalformedMessage or DigestMismatch where it comes to another one.

    It lies there whole then, under its digest; a cache of another process has to be told (`BlockCache.learn`).
    """
    from protocol.deltas import stepped_parts

    specs = block_tensor_specs(layout, way.block)
    base = cache.reading(way.steps[0].base)
    deltas = [(cache.reading(step.digest), CODECS[step.codec]) for step in way.steps]
    cache.begin(way.ref.digest, way.ref.payload_bytes).forget()
    made = cache.begin(way.ref.digest, way.ref.payload_bytes)
    for piece in stepped_parts(base, deltas, specs):
        made.add(piece)
    made.finish()
    cache.adopt(way.ref.digest)


def _delta_bytes(layout: Layout, block: BlockId, step: DeltaRef) -> int:
    return payload_size(block_tensor_specs(layout, block), CODECS[step.codec])
