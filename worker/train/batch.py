"""The gradients of one inner step's batch, in parts that fit the machine, as if it had been taken at once.

Decides nothing about the result: what is computed is a function of the batch, not of how it is cut. The balance loss is
one of the whole batch's routes, so where a batch is cut they are counted first, in a pass without gradients over all
parts (docs/decisions/0021). Loss and gradients are then means over sequences, and sums of parts; so are the choices
that move selection biases (docs/decisions/0038), which wait until the step is done.

Shapes: B sequences a step, M sequences a part, L tokens a stored sequence (one more than it trains on).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from moe.balance import RoutedCounts


class LossTerms(Protocol):
    """What `HasLoss.loss` gives: the sum that is trained on, and next-token loss in nats alone."""

    @property
    def total(self) -> Tensor:
        """What gradients are taken of."""

    @property
    def nll(self) -> Tensor:
        """Mean next-token loss, nats a token."""

    @property
    def chosen(self) -> Tensor | None:
        """Where selection biases are, how often each expert of each such layer was chosen: [L, E] int64."""


class Batch(NamedTuple):
    """What a batch came to, besides its gradients."""

    nll: Tensor
    """Mean next-token loss, nats a token."""
    chosen: Tensor | None
    """The sum of its parts' `LossTerms.chosen`."""


class HasLoss(Protocol):
    """What a batch needs of `moe.shard.ShardModel`."""

    @property
    def balance_coefficient(self) -> float:
        """The balance loss's share in `total`."""

    def loss(self, tokens_ML: Tensor, counts: RoutedCounts | None = None, /) -> LossTerms:
        """Loss on sequences whose last token is only a target; `counts` are those of their whole batch."""

    def count_routes(self, tokens_ML: Tensor, /) -> RoutedCounts:
        """Where the routers send these sequences' tokens."""

    def move_selection_biases(self, chosen: Tensor, rate: float, /) -> None:
        """After a step: from what the whole batch chose."""


def add_gradients(
    shard: HasLoss, tokens_BL: Tensor, micro_batch: int, before_part: Callable[[], None] = lambda: None
) -> Batch:
    """Add the batch's gradients to the shard's, `micro_batch` sequences at a time.

    `before_part` is called before each pass over a part, and may end it all by raising.
    """
    parts = torch.split(tokens_BL, micro_batch)
    counts = None
    if len(parts) > 1 and shard.balance_coefficient != 0.0:
        counts = _counted(shard, parts, before_part)
    mean_nll: Tensor | None = None
    chosen: Tensor | None = None
    for tokens_ML in parts:
        before_part()
        terms = shard.loss(tokens_ML, counts)
        share = tokens_ML.shape[0] / tokens_BL.shape[0]
        (terms.total if share == 1.0 else terms.total * share).backward()  # type: ignore[no-untyped-call]
        nll = terms.nll.detach() * share
        mean_nll = nll if mean_nll is None else mean_nll + nll
        if terms.chosen is not None:
            chosen = terms.chosen if chosen is None else chosen + terms.chosen
    assert mean_nll is not None
    return Batch(mean_nll, chosen)


def _counted(shard: HasLoss, parts: tuple[Tensor, ...], before_part: Callable[[], None]) -> RoutedCounts:
    counts: RoutedCounts | None = None
    for tokens_ML in parts:
        before_part()
        found = shard.count_routes(tokens_ML)
        counts = found if counts is None else counts + found
    assert counts is not None
    return counts
