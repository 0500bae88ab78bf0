"""The gradient of a table of embeddings, of those rows alone that a part of a batch has: no second one of its size.

Decides nothing about the result: a row's gradient is summed as `torch` sums it, and added to the table's once, so the
values are those of whole tables that are added to each other. Touches the table's gradient, and its forward hooks while
it looks on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_DENSE_BACKWARD = torch.ops.aten.embedding_dense_backward


def is_plain_table(module: object) -> bool:
    """Whether a table answers rows of its weight and nothing else; some classes scale or norm them."""
    if not isinstance(module, nn.Embedding) or type(module).forward is not nn.Embedding.forward:
        return False
    return not module.scale_grad_by_freq and not module.sparse and module.max_norm is None


class TableRows:
    """One part's way through the table."""

    def __init__(self, table: nn.Embedding) -> None:
        self._table = table
        self._given: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def standing_between(self) -> Iterator[None]:
        """What the table answers meanwhile is a leaf: gradients end there, and not at the table."""

        def on_answer(_: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> Tensor:
            leaf = answer.detach().requires_grad_()
            self._given.append((given[0], leaf))
            return leaf

        handle = self._table.register_forward_hook(on_answer)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def add(self) -> None:
        """What came back to the leaves is added to the table's gradient, fp32."""
        weight: Any = self._table.weight
        padding = self._table.padding_idx
        for tokens, leaf in self._given:
            if leaf.grad is None:
                continue
            rows_R, places = tokens.unique(return_inverse=True)
            at = -1 if padding is None else _place_of(padding, rows_R)
            grad_RH = _DENSE_BACKWARD(leaf.grad.float().contiguous(), places, len(rows_R), at, False)
            if weight.grad is None:
                weight.grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
            weight.grad.index_add_(0, rows_R, grad_RH)
        self._given.clear()


def _place_of(row: int, rows_R: Tensor) -> int:
    found = (rows_R == row).nonzero()
    return int(found[0, 0]) if len(found) else -1
