"""A new version on its way: of each block what is published, the step to it, and what the next outer step goes on from.

Decides how far back a block can be come to by steps, and when columns are encoded anew for those who do not hold them.
Touches versions. Always: what is leased, screened, replayed and exported is what is published; what that rounds away of
the master is kept beside it, so that it is not lost (protocol/deltas.py). The same outer steps give the same manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from coordinator.engine.down_config import DownConfig
from coordinator.store.ports import PutParts
from coordinator.store.versions import Tensors, Versions
from moe.layout import Layout
from protocol.codecs import FP32, codec_named
from protocol.deltas import Publication, published
from protocol.ids import BlockId, Digest, RoundNumber, RunId, Version
from protocol.manifest import MAX_STEPS, DeltaRef, FrozenRefs, Manifest
from protocol.residency import FROZEN
from protocol.specs import Spanned

FIRST_VERSION = Version(0)
MOST_STEPS = 4
"""A worker that missed more versions takes the block whole: each step makes every manifest longer for everybody."""


class NextVersion:
    """What comes of the version `parent`, block by block."""

    def __init__(self, versions: Versions, parent: Manifest, down: DownConfig, keep: PutParts | None = None) -> None:
        """`keep` as `versions.keeping` gives it: what is put is then durable when that has ended."""
        self._versions, self._parent, self._down, self._keep = versions, parent, down, keep
        self._codec = codec_named(down.codec)
        self.blocks, self.momenta = dict(parent.blocks), dict(parent.momenta)
        self.masters, self.deltas = dict(parent.masters), dict(parent.deltas)

    def published(self, base: Mapping[str, Tensor], master: Mapping[str, Tensor]) -> Publication:
        """What is published of `master` where `base` was before."""
        return published(base, master, self._codec)

    def put(self, block: BlockId, base: Mapping[str, Tensor], master: Tensors, momentum: Tensors | None) -> Tensors:
        """Keep what an outer step made of `block`; what is published of it."""
        publication = self.published(base, master)
        self.blocks[block] = self._versions.put_block(publication.block, self._keep)
        if publication.is_exact:
            self.masters.pop(block, None)
        else:
            self.masters[block] = self._versions.put_block(master, self._keep)
        if momentum is not None:
            self.momenta[block] = self._versions.put_block(momentum, self._keep)
        else:  # set to 0 in the middle of the run: should it come back, it begins anew
            self.momenta.pop(block, None)
        self._chain(block, publication.delta)
        return publication.block

    def frozen(self, version: Version) -> FrozenRefs | None:
        """What `version` has for columns that are not held: the last one's, until they are encoded anew."""
        codec, old = self._down.frozen_codec, self._parent.frozen
        if self._parent.residency != FROZEN or codec == FP32.name:
            return None
        if old is not None and old.codec == codec and version - old.version < self._down.frozen_every:
            return old
        return self._versions.put_frozen(version, codec, self.blocks)

    def _chain(self, block: BlockId, delta: bytes | None) -> None:
        before, after = self._parent.blocks[block], self.blocks[block]
        if after.digest == before.digest:
            return
        self.deltas.pop(block, None)
        if delta is None:
            return
        ref = self._versions.put_payload(delta, self._keep)
        first = DeltaRef(base=before.digest, digest=ref.digest, payload_bytes=ref.payload_bytes, codec=self._down.codec)
        most = max(1, min(MOST_STEPS, MAX_STEPS // len(self.blocks)))
        chain, left_bytes = [], after.payload_bytes
        for step in (first, *self._parent.deltas.get(block, ()))[:most]:
            left_bytes -= step.payload_bytes
            if left_bytes <= 0:
                break
            chain.append(step)
        if chain:
            self.deltas[block] = tuple(chain)


def first_version(
    versions: Versions,
    layout: Layout,
    blocks: Iterable[tuple[BlockId, Mapping[str, Tensor | Spanned]]],
    run_id: RunId,
    down: DownConfig,
    *,
    created_at_s: float,
    told: Callable[[int, int], object] = lambda _done, _all: None,
) -> Digest:
    """Keep `blocks`, fp32, taken one at a time, as what a run begins with; its manifest.

    `told` hears how many columns are encoded for those who do not hold them, of how many.
    """
    refs = {block: versions.put_block(tensors) for block, tensors in blocks}
    is_encoded = layout.residency == FROZEN and down.frozen_codec != FP32.name
    manifest = Manifest(
        run_id=run_id,
        version=FIRST_VERSION,
        parent_version=None,
        round=RoundNumber(0),
        created_at_s=created_at_s,
        model=dict(layout.config_json),
        residency=layout.residency,
        blocks=refs,
        momenta={},
        val_loss=None,
        tokens_trained=0,
        frozen=versions.put_frozen(FIRST_VERSION, down.frozen_codec, refs, told) if is_encoded else None,
    )
    return versions.publish(manifest, "init")
