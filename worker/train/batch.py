"""The gradients of one inner step's batch, in parts that fit the machine, as if it had been taken at once.

Decides nothing about the result: what is computed is a function of the batch, not of how it is cut. The balance loss is
one of the whole batch's routes, so where a batch is cut they are counted first, in a pass without gradients over all
parts (docs/decisions/0021). Loss and gradients are then means over sequences, and sums of parts.

Shapes: B sequences a step, M sequences a part, L tokens a stored sequence (one more than it trains on).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

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


class HasLoss(Protocol):
    """What a batch needs of `moe.shard.ShardModel`."""

    @property
    def balance_coefficient(self) -> float:
        """The balance loss's share in `total`."""

    def loss(self, tokens_ML: Tensor, counts: RoutedCounts | None = None, /) -> LossTerms:
        """Loss on sequences whose last token is only a target; `counts` are those of their whole batch."""

    def count_routes(self, tokens_ML: Tensor, /) -> RoutedCounts:
        """Where the routers send these sequences' tokens."""


def add_gradients(
    shard: HasLoss, tokens_BL: Tensor, micro_batch: int, before_part: Callable[[], None] = lambda: None
) -> Tensor:
    """Add the batch's gradients to the shard's, `micro_batch` sequences at a time; mean next-token loss, nats a token.

    `before_part` is called before each pass over a part, and may end it all by raising.
    """
    parts = torch.split(tokens_BL, micro_batch)
    counts = None
    if len(parts) > 1 and shard.balance_coefficient != 0.0:
        counts = _counted(shard, parts, before_part)
    mean_nll: Tensor | None = None
    for tokens_ML in parts:
        before_part()
        terms = shard.loss(tokens_ML, counts)
        share = tokens_ML.shape[0] / tokens_BL.shape[0]
        (terms.total if share == 1.0 else terms.total * share).backward()  # type: ignore[no-untyped-call]
        nll = terms.nll.detach() * share
        mean_nll = nll if mean_nll is None else mean_nll + nll
    assert mean_nll is not None
    return mean_nll


def _counted(shard: HasLoss, parts: tuple[Tensor, ...], before_part: Callable[[], None]) -> RoutedCounts:
    counts: RoutedCounts | None = None
    for tokens_ML in parts:
        before_part()
        found = shard.count_routes(tokens_ML)
        counts = found if counts is None else counts + found
    assert counts is not None
    return counts
