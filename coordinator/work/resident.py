"""The one full model that measures: it holds a version, or that version with something done to some of its blocks.

Decides which blocks must be copied anew when it is asked for something else. Touches no files of its own: versions come
as blocks that lie on disk, mapped. Always: what it holds is, bit for bit, what was asked for last, since a block that
was changed is never changed back but copied again; beside the model it takes the memory of a granule.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from aggregation.norms import block_norm
from aggregation.pieces import Piece, granules, span_of
from coordinator.store.versions import Versions
from moe.full import block_parameters, full_model, load_blocks
from moe.layout import Layout
from protocol.ids import BlockId, Digest

Tensors = dict[str, torch.Tensor]


@dataclass(slots=True)
class MappedVersion:
    """A version's blocks, mapped, and what is known of them."""

    manifest: Digest
    blocks: Mapping[BlockId, Tensors]
    digests: Mapping[BlockId, Digest]
    """Of each block's content."""
    _norms: dict[BlockId, float] = field(default_factory=dict)

    @classmethod
    def of(cls, versions: Versions, manifest: Digest, like: Iterable[MappedVersion] = ()) -> MappedVersion:
        """The version that `manifest` describes; what it has in common with others of the run is theirs."""
        refs = versions.manifest(manifest).blocks
        known = {digest: (base, block) for base in like for block, digest in base.digests.items()}
        blocks: dict[BlockId, Tensors] = {}
        norms: dict[BlockId, float] = {}
        for block, ref in refs.items():
            other, same = known.get(ref.digest, (None, block))
            blocks[block] = versions.load_block(block, ref) if other is None else other.blocks[same]
            if other is not None and same in other._norms:
                norms[block] = other._norms[same]
        return cls(manifest, blocks, {block: ref.digest for block, ref in refs.items()}, norms)

    def norm_l2(self, block: BlockId) -> float:
        """Computed once."""
        if block not in self._norms:
            self._norms[block] = block_norm(self.blocks[block])
        return self._norms[block]


class ResidentModel:
    """Built when it is first asked for: that costs far more than copying into it."""

    def __init__(self, layout: Layout, device: str) -> None:
        self._layout = layout
        self._device = device
        self._model: Any = None
        self._held: dict[BlockId, Digest] = {}
        """Blocks as they are in some version; those that are missing were changed."""

    def at(self, base: MappedVersion) -> Any:
        """The model of a version."""
        return self._restored(base, ())

    @torch.no_grad()
    def less(self, base: MappedVersion, taken: Mapping[BlockId, Mapping[str, Piece]], share: float) -> Any:
        """The model of a version less `share` of a pseudo-gradient, which is decoded as it is taken."""
        whole = {block for block, pieces in taken.items() if len(pieces) == len(self._layout.block_specs(block))}
        model = self._restored(base, whole)
        for block, pieces in taken.items():
            self._held.pop(block, None)
            parameters = block_parameters(model, self._layout, block)
            for name, piece in pieces.items():
                before_P, after_P = base.blocks[block][name].view(-1), parameters[name].view(-1)
                for start, stop in granules(before_P.numel()):
                    moved_C = torch.sub(before_P[start:stop], span_of(piece, start, stop), alpha=share)
                    after_P[start:stop].copy_(moved_C)
        return model

    def replaced(self, base: MappedVersion, blocks: Iterable[tuple[BlockId, Tensors]]) -> Any:
        """The model of a version with some blocks put in place of its own, which are asked for one at a time."""
        model = self.at(base)
        for block, tensors in blocks:
            self._held.pop(block, None)
            load_blocks(model, self._layout, {block: tensors})
            del tensors  # before the next are made
        return model

    def _restored(self, base: MappedVersion, but: Collection[BlockId]) -> Any:
        """The model with a version's blocks, all but some that the caller overwrites whole."""
        if self._model is None:
            self._model = full_model(self._layout, base.blocks)
            self._model.to(self._device)
            self._held = dict(base.digests)
        for block, digest in base.digests.items():
            if block not in but and self._held.get(block) != digest:
                self._held.pop(block, None)  # until it is whole: copying may fail half-way
                load_blocks(self._model, self._layout, {block: base.blocks[block]})
                self._held[block] = digest
        return self._model
