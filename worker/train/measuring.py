"""Losses of sequences under a version, and under that version with some of a submission taken from it: on the device.

Decides nothing that an item does not name, but how many sequences go through the model at a time. Everything is
computed in fp32, whatever this machine trains in. The model of the last item is kept, and of the next one's version
only what differs is loaded; so are its losses, since the items of one round have version and sequences in common. It
goes when something is to be trained: a whole model in fp32 beside a shard is what no plan counts on.
Touches the block cache (reading) and the device.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moe.factors import Product, as_products
from moe.full import block_parameters, full_model, sequence_losses
from moe.layout import block_tensor_specs, submission_specs
from protocol.codecs import FP32, codec_named
from protocol.ids import BlockId, Digest
from protocol.lease import blocks_of
from protocol.submission import decode_submission
from worker.fetched import FetchedItem, Run
from worker.ports import BlockPlaces
from worker.train.freeing import free_caches
from worker.train.mapped import mapped_block

AT_A_TIME = 4
"""Sequences; their logits are the largest thing that measuring makes."""

Losses = list[float]


class LossMeasurer:
    """Measures items, one at a time."""

    def __init__(self, blocks: BlockPlaces, device: str) -> None:
        self._blocks, self._device = blocks, device
        self._model: Any = None
        self._held: dict[BlockId, Digest] = {}
        """Blocks as they are in some version; what is missing was changed."""
        self._before: tuple[str, Losses] | None = None
        self._at_work = threading.Lock()

    def let_go(self) -> None:
        """Keep no model, once the present item is measured: waits for that."""
        with self._at_work:
            self._drop()

    def measure(self, item: FetchedItem) -> tuple[Losses, Losses]:
        """Losses before, of all N sequences, and after, of each part's (none of a version): nats a token."""
        with self._at_work:
            return self._measured(item)

    def _measured(self, item: FetchedItem) -> tuple[Losses, Losses]:
        try:
            before = self._losses_before(item)
            if not item.parts:
                return before, []
            with io.BytesIO(item.payload) as file:
                blocks = blocks_of(item.columns, item.trunk)
                specs = submission_specs(item.run.layout, item.columns, item.trunk)
                sent = decode_submission(file, specs, codec_named(item.codec), blocks)
                taken = {block: as_products(item.run.layout, item.trunk, block, sent[block]) for block in blocks}
            after: Losses = []
            tokens_NL = torch.from_numpy(item.sequences)
            for part in item.parts:
                self._take(item, taken, part.share)
                after += sequence_losses(self._model, tokens_NL[part.start : part.stop], AT_A_TIME).tolist()
        except BaseException:
            self._drop()  # nobody knows what is in it, or it did not fit
            raise
        return before, after

    def _drop(self) -> None:
        if self._model is not None:
            self._model, self._held, self._before = None, {}, None
            free_caches(self._device)

    def _losses_before(self, item: FetchedItem) -> Losses:
        key = hashlib.sha256(repr(sorted(item.digests.items())).encode() + item.sequences.tobytes()).hexdigest()
        if self._before is None or self._before[0] != key:
            self._load(item)
            self._before = key, sequence_losses(self._model, torch.from_numpy(item.sequences), AT_A_TIME).tolist()
        return self._before[1]

    @torch.no_grad()
    def _take(self, item: FetchedItem, taken: dict[BlockId, dict[str, Tensor | Product]], share: float) -> None:
        """The base less `share` of the submission."""
        whole = {block for block, tensors in taken.items() if len(tensors) == len(item.run.layout.block_specs(block))}
        self._load(item, but=whole)
        for block, tensors in taken.items():
            self._held.pop(block, None)
            base, parameters = self._base(item.run, block, item.digests[block]), self._parameters(item.run, block)
            for name, sent in tensors.items():
                tensor = sent if isinstance(sent, Tensor) else sent.whole()
                parameters[name].copy_(torch.sub(base[name], tensor, alpha=share))

    @torch.no_grad()
    def _load(self, item: FetchedItem, but: set[BlockId] | frozenset[BlockId] = frozenset()) -> None:
        """The item's version, all but blocks that the caller overwrites whole."""
        if self._model is None:
            every = {block: self._base(item.run, block, digest) for block, digest in item.digests.items()}
            self._model = full_model(item.run.layout, every)
            self._model.to(self._device)
            self._held = dict(item.digests)
        for block, digest in item.digests.items():
            if block in but or self._held.get(block) == digest:
                continue
            self._held.pop(block, None)
            parameters = self._parameters(item.run, block)
            for name, tensor in self._base(item.run, block, digest).items():
                parameters[name].copy_(tensor)
            self._held[block] = digest

    def _base(self, run: Run, block: BlockId, digest: Digest) -> Mapping[str, Tensor]:
        return mapped_block(self._blocks.path(digest), block_tensor_specs(run.layout, block), FP32)

    def _parameters(self, run: Run, block: BlockId) -> dict[str, Tensor]:
        return block_parameters(self._model, run.layout, block)
