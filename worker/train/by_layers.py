"""One inner step whose gradients are used up layer by layer: never more of them at once than one layer's.

Decides nothing about the result: it is the usual step's (worker/train/batch.py, worker/train/optimizer.py), on a CPU to
the bit. Gradients are clipped by the norm of all of them, which is known when all have been there: so all parts go down
through the layers twice, first for the norms, then to step what is complete (docs/decisions/0054). Holds always: until
the second way down nothing has moved, and `InnerOptimizer.has_moved` says whether something has.

Shapes: B sequences a step, M sequences a part, L tokens a stored sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from worker.train.batch import Batch
from worker.train.optimizer import InnerOptimizer


class WayDown(Protocol):
    """What is read of a part: `moe.layerwise.LayerwisePart`."""

    @property
    def nll(self) -> Tensor | None:
        """Mean next-token loss, nats a token, once it has gone through the head."""

    @property
    def chosen(self) -> Tensor | None:
        """As `LossTerms.chosen`."""

    @property
    def share(self) -> float:
        """Of the batch's sequences."""


Part = TypeVar("Part", bound=WayDown)


class GoesByLayers(Protocol[Part]):
    """`moe.layerwise.Layerwise`."""

    def forward(self, tokens_ML: Tensor, share: float, /) -> Part:
        """A part's way up."""

    def backward(self, parts: Sequence[Part], before_each: Callable[[], None], /, *, is_last: bool) -> Iterator[None]:
        """All parts' ways down; yields whenever what has gradients has all of them."""


def step_by_layers(
    model: GoesByLayers[Part],
    tokens_BL: Tensor,
    micro_batch: int,
    optimizer: InnerOptimizer,
    before_part: Callable[[], None] = lambda: None,
) -> Batch:
    """Take the step that `optimizer` has begun; `before_part` as in `add_gradients`."""
    parts = []
    for tokens_ML in torch.split(tokens_BL, micro_batch):
        before_part()
        parts.append(model.forward(tokens_ML, tokens_ML.shape[0] / tokens_BL.shape[0]))
    if optimizer.clips_whole:
        for _ in model.backward(parts, before_part, is_last=False):
            optimizer.take_norms()
            optimizer.drop_gradients()
    for _ in model.backward(parts, before_part, is_last=True):
        if not optimizer.clips_whole:
            optimizer.take_norms()
        optimizer.step_complete()
    return _summed(parts)


def _summed(parts: Sequence[WayDown]) -> Batch:
    mean_nll: Tensor | None = None
    chosen: Tensor | None = None
    for part in parts:
        assert part.nll is not None
        nll = part.nll * part.share
        mean_nll = nll if mean_nll is None else mean_nll + nll
        if part.chosen is not None:
            chosen = part.chosen if chosen is None else chosen + part.chosen
    assert mean_nll is not None
    return Batch(mean_nll, chosen)
