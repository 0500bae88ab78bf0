"""A batch's gradients layer by layer: a layer's are complete, over all parts of the batch, before the next one's begin.

Decides nothing about the result: on a CPU it is the same to the bit as parts that go through the whole model one after
the other (docs/decisions/0054). A part goes forward once, and of each layer its input is kept; then from the last layer
to the first each part is computed again in that layer, with the choices that its routers made the first time, and goes
back through it. What has gradients after a stage (head and last norm, each layer, embeddings) has all of them, so
whoever drives it may use them up and drop them. The balance loss is one of the whole batch's routes, which are known
when the first layer goes back: nothing is counted in a pass of its own, as decision 0021 foresaw.

Where head and embeddings are one tensor, the head's products are made again with the embeddings': both parts of a
micro-batch's gradient are added to each other before they are added to the others', as they are usually.

Touches the model: its layers stand aside while it runs (moe.layer_cut).

Shapes: M sequences of a part, T tokens, S = M*T, H hidden, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from moe.balance import RoutedCounts, balance_loss, routed_counts
from moe.head import Head
from moe.layer_cut import Forward, Given, routers_of, standing_in
from moe.recomputed import Recomputation, layers_of
from moe.routing import LogitsTap
from moe.table_rows import TableRows, is_plain_table
from protocol.errors import LocalError

Context = AbstractContextManager[Any]


class _Call(NamedTuple):
    """One layer's first time."""

    given: Given
    """Its hidden states being where they are kept."""
    again: Callable[[], Context]
    """While it is open, experts get the choices of that time."""


@dataclass(slots=True, kw_only=True)
class LayerwisePart:
    """A part of a batch on its way up and down through the model."""

    tokens: Tensor
    """[M, T+1]."""
    share: float
    """Of the batch's sequences."""
    nll: Tensor | None = None
    """Mean next-token loss, nats a token, once it has gone through the head."""
    chosen: Tensor | None = None
    """As `LossParts.chosen`."""
    calls: list[_Call | None] = field(default_factory=list)
    top: Tensor | None = None
    """What the last layer answered: [M, T, H]."""
    below_head: Tensor | None = None
    """What the head was given, where it is needed once more."""
    logits: dict[int, Tensor] = field(default_factory=dict)
    """Each router's, [S, E]; once the balance loss is known, their gradients."""
    is_balanced: bool = False
    grad: Tensor | None = None
    """Of the hidden states above the layer that comes next."""


class Layerwise:
    """One shard's model, layer by layer. `on_host`: layers' inputs are kept in the host's memory."""

    def __init__(
        self,
        model: PreTrainedModel,
        head: Head,
        recomputation: Recomputation,
        *,
        autocast: Callable[[], Context],
        dtype: torch.dtype,
        chosen: Callable[[], Tensor | None],
        coefficient: float | None,
        top_k: int,
        on_host: bool,
    ) -> None:
        self._model, self._head, self._recomputation = model, head, recomputation
        self._autocast, self._dtype, self._chosen = autocast, dtype, chosen
        self._coefficient, self._top_k, self._on_host = coefficient, top_k, on_host
        self._layers = layers_of(model)
        routers = routers_of(model, self._layers)
        if not self._layers or routers is None or not head.is_chunked:
            raise LocalError(f"{type(model).__name__} does not go layer by layer")
        self._routers = routers if coefficient is not None else [[] for _ in self._layers]
        table: Any = model.get_input_embeddings()
        self._is_tied = table.weight is head.weight
        self._table = table if is_plain_table(table) and not self._is_tied else None

    def forward(self, tokens_MT1: Tensor, share: float) -> LayerwisePart:
        """A part's way up; of it is kept what its way down needs."""
        self._recomputation.switch(on=False)
        part = LayerwisePart(tokens=tokens_MT1.to(self._device, torch.long), share=share)
        # what lies above the layers runs too, and is not looked at: its stage has its own turn
        with torch.no_grad(), self._tap() as tap, standing_in(self._layers, partial(self._first_time, part, tap)):
            self._run_base(part)
        part.chosen = self._chosen()
        return part

    def backward(
        self, parts: Sequence[LayerwisePart], before_each: Callable[[], None], *, is_last: bool = True
    ) -> Iterator[None]:
        """All parts' ways down, together; yields whenever what has gradients has all of them.

        With `is_last` false, they can go down once more.
        """
        if self._coefficient is not None and not parts[0].is_balanced:
            self._balance(parts)
        for stage in range(len(self._layers), -2, -1):
            for part in parts:
                before_each()
                if stage == len(self._layers):
                    self._through_head(part, is_last=is_last)
                elif stage >= 0:
                    self._through_layer(part, stage, is_last=is_last)
                else:
                    self._through_embeddings(part, is_last=is_last)
            yield

    def _run_base(self, part: LayerwisePart) -> None:
        with self._autocast():
            cast(Any, self._model.base_model)(input_ids=part.tokens[:, :-1], use_cache=False)

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _tap(self) -> AbstractContextManager[LogitsTap | None]:
        return nullcontext() if self._coefficient is None else LogitsTap(self._model)

    def _kept(self, hidden: Tensor) -> Tensor:
        hidden = hidden.detach()
        if not self._on_host or hidden.device.type == "cpu":
            return hidden
        there = torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=hidden.device.type == "cuda")
        return there.copy_(hidden, non_blocking=True)

    def _leaf(self, kept: Tensor) -> Tensor:
        return kept.to(self._device, non_blocking=True).detach().requires_grad_()

    def _first_time(
        self, part: LayerwisePart, tap: LogitsTap | None, number: int, own: Forward, given: Given
    ) -> Tensor:
        if number != len(part.calls) or (number and given.hidden is not part.top):
            raise LocalError(f"{type(self._model).__name__}: layer {number} is not given what the one before answered")
        first, again = self._recomputation.contexts()
        part.calls.append(_Call(given._replace(hidden=self._kept(given.hidden)), again))
        # with gradients, as the second time: without, a device may have other kernels
        with torch.enable_grad(), first():
            answer = given.of(own, given.hidden.detach().requires_grad_()).detach()
        for router in self._routers[number]:
            part.logits[router] = cast(LogitsTap, tap).take(router).detach()
        part.top = answer if number + 1 < len(self._layers) else self._kept(answer)
        return answer

    def _balance(self, parts: Sequence[LayerwisePart]) -> None:
        """Router logits become what the balance loss of all parts together makes of them: their gradients."""
        whole: RoutedCounts | None = None
        for part in parts:
            counts = routed_counts(_in_order(part.logits), self._top_k)
            whole = counts if whole is None else whole + counts
        for part in parts:
            leaves = {router: logits_SE.requires_grad_() for router, logits_SE in sorted(part.logits.items())}
            with torch.enable_grad():
                balance = balance_loss(tuple(leaves.values()), cast(RoutedCounts, whole))
                loss = cast(float, self._coefficient) * balance
            _back([_times(loss, part.share)], [None])
            part.logits, part.is_balanced = {router: cast(Tensor, leaf.grad) for router, leaf in leaves.items()}, True

    def _through_head(self, part: LayerwisePart, *, is_last: bool) -> None:
        leaf = self._leaf(cast(Tensor, part.top))
        with self._autocast(), standing_in(self._layers, lambda number, _, given: given.hidden if number else leaf):
            hidden_MTH = self._head.hidden(part.tokens[:, :-1])
        self._head.adds_up = not self._is_tied
        try:
            loss = self._loss(part, hidden_MTH, is_head_trained=not self._is_tied)
            part.nll, part.below_head = loss.detach(), hidden_MTH.detach() if self._is_tied else None
            _back([_times(loss, part.share)], [None])
        finally:
            self._head.adds_up = False
        part.grad = leaf.grad
        if is_last:
            part.top = None

    def _loss(self, part: LayerwisePart, hidden_MTH: Tensor, *, is_head_trained: bool) -> Tensor:
        targets_S = part.tokens[:, 1:].flatten()
        with self._autocast():
            return self._head.mean_loss(hidden_MTH, targets_S, self._dtype, is_head_trained=is_head_trained)

    def _through_layer(self, part: LayerwisePart, number: int, *, is_last: bool) -> None:
        given, again = cast(_Call, part.calls[number])
        leaf = self._leaf(given.hidden)
        with self._autocast(), self._tap() as tap, again():
            roots = [given.of(self._layers[number], leaf)]
        gradients = [part.grad]
        for router in self._routers[number]:
            logits_SE = cast(LogitsTap, tap).take(router)
            if logits_SE.requires_grad:
                roots.append(logits_SE)
                gradients.append(part.logits[router])
        _back(roots, gradients)
        part.grad = leaf.grad
        if is_last:
            part.calls[number] = None

    def _through_embeddings(self, part: LayerwisePart, *, is_last: bool) -> None:
        entered: list[Tensor] = []

        def enter(number: int, _own: Forward, given: Given) -> Tensor:
            if not number:
                entered.append(given.hidden)
            return given.hidden.detach()

        rows = None if self._table is None or not self._table.weight.requires_grad else TableRows(self._table)
        with standing_in(self._layers, enter), nullcontext() if rows is None else rows.standing_between():
            self._run_base(part)
        roots, gradients = [entered[0]], [part.grad]
        if self._is_tied:
            loss = self._loss(part, cast(Tensor, part.below_head), is_head_trained=True)
            roots.append(_times(loss, part.share))
            gradients.append(None)
        trained = [place for place, root in enumerate(roots) if root.requires_grad]
        if trained:
            _back([roots[place] for place in trained], [gradients[place] for place in trained])
        if rows is not None:
            rows.add()
        part.grad = None


def _in_order(logits: dict[int, Tensor]) -> list[Tensor]:
    return [logits_SE for _, logits_SE in sorted(logits.items())]


def _times(loss: Tensor, share: float) -> Tensor:
    return loss if share == 1.0 else loss * share


def _back(roots: list[Tensor], gradients: list[Tensor | None]) -> None:
    torch.autograd.backward(roots, gradients)
