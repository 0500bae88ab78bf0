"""From the last hidden states to the loss, some tokens at a time: a batch's logits are never there whole.

Decides how many tokens' logits are in memory at once: that follows from the vocabulary alone, so two machines that cut
their batches alike add up alike (docs/decisions/0047). What a class does to its logits (a scale, a soft cap) stays its
own: its `forward` runs on each chunk, given the hidden states and the head's products. Gradients are taken chunk by
chunk in the same pass, so nothing is computed twice (Hsu et al. 2024, "Liger Kernel", arXiv:2410.10989), and the head's
is added up in fp32 in one place.

Shapes: S tokens, C of them at a time, H hidden, V vocabulary, R rows of the head at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

LOGITS_AT_ONCE: Final = 1 << 24
"""64 MiB in fp32, of which three copies are made: little beside a shard that is worth training, and of the largest
vocabularies (260,000) still 64 tokens, below which a matrix product is slow."""
_ROWS: Final = 8192
"""Rows of a head that are cast at once, where it is kept in another dtype than it is multiplied in."""


def tokens_at_once(vocabulary: int) -> int:
    """How many tokens' logits are made together."""
    return max(1, LOGITS_AT_ONCE // vocabulary)


def adds_in_slices(tokens: int, hidden: int, compute_bytes: int, *, is_sliced: bool) -> bool:
    """Whether so many tokens' logits take less while they are kept than a head's gradient in fp32."""
    return is_sliced and tokens * compute_bytes <= hidden * torch.float32.itemsize


class Head:
    """The head of one model and its loss. Always: the model's own modules are back in their places after each call."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._below = model.base_model_prefix
        linear: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        names = [name for name, module in model.named_children() if module is linear]
        self._name = names[0] if names else ""
        self.is_chunked = bool(names) and type(linear) is nn.Linear and self._below in model._modules
        """False of a model whose head is none of the usual: its logits are made whole."""
        self.adds_up = False
        """Whether a part's gradient of the head is added to what is there a slice of rows at a time, in the backward
        pass itself: no second one of its size, but its logits' gradients are kept until then."""

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """What lies below the head: [B, T, H]; or, where it is not chunked, the logits themselves."""
        if not self.is_chunked:
            return cast(Tensor, self._model(input_ids=tokens_BT, use_cache=False).logits)
        return cast(Tensor, self._model.base_model(input_ids=tokens_BT, use_cache=False)[0])

    @property
    def weight(self) -> Tensor | None:
        """The head's own, where it is chunked."""
        return self._linear.weight if self.is_chunked else None

    def mean_loss(
        self, hidden: Tensor, targets_S: Tensor, dtype: torch.dtype, *, is_head_trained: bool = True
    ) -> Tensor:
        """Mean cross-entropy in nats a token, of what `hidden` gave; products are taken in `dtype`.

        With `is_head_trained` false no gradient goes to a chunked head, only through it.
        """
        if not self.is_chunked:
            return nn.functional.cross_entropy(hidden.float().flatten(0, 1), targets_S)
        own = [self._linear.weight, self._linear.bias]
        if not is_head_trained:
            own = [None if one is None else one.detach() for one in own]
        trained = torch.is_grad_enabled()
        return cast(Tensor, cast(Any, _MeanLoss).apply(self, hidden.flatten(0, 1), targets_S, dtype, trained, *own))

    @torch.no_grad()
    def losses(self, hidden: Tensor, targets_S: Tensor, dtype: torch.dtype) -> Tensor:
        """Cross-entropy of each token: [S], fp32."""
        if not self.is_chunked:
            return nn.functional.cross_entropy(hidden.float().flatten(0, 1), targets_S, reduction="none")
        hidden_SH, found = hidden.flatten(0, 1), []
        for rows in self._chunks(hidden_SH.shape[0]):
            logits_CV = _Chunk(self, hidden_SH[rows].to(dtype)).logits
            found.append(nn.functional.cross_entropy(logits_CV.float(), targets_S[rows], reduction="none"))
        return torch.cat(found)

    @property
    def _linear(self) -> nn.Linear:
        return cast(nn.Linear, self._model._modules[self._name])

    def _chunks(self, tokens: int) -> Iterator[slice]:
        size = tokens_at_once(self._linear.weight.shape[0])
        return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))

    def logits_of(self, hidden_CH: Tensor, product: Any) -> Tensor:
        """[C, V]: what the class makes of these hidden states, `product` being called in the place of its head."""
        modules = cast("dict[str, Any]", self._model._modules)
        below, linear = modules[self._below], modules[self._name]
        modules[self._below], modules[self._name] = _Given(below, hidden_CH[None]), _Standing(linear, product)
        try:
            tokens_1C = torch.zeros((1, hidden_CH.shape[0]), dtype=torch.long, device=hidden_CH.device)
            return cast(Tensor, self._model.forward(input_ids=tokens_1C, use_cache=False).logits)[0]
        finally:
            modules[self._below], modules[self._name] = below, linear


class _Standing:
    """Called in the place of a module, with whose attributes it answers for the rest."""

    def __init__(self, module: nn.Module, called: Any) -> None:
        self._module, self._called = module, called

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._called(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class _Given(_Standing):
    """What lies below the head, having answered already."""

    def __init__(self, module: nn.Module, hidden_1CH: Tensor) -> None:
        super().__init__(module, lambda *_, **__: _Answer(hidden_1CH))


class _Answer:
    """The one thing that a head reads of what lies below it; anything else is None."""

    def __init__(self, hidden_1CH: Tensor) -> None:
        self.last_hidden_state = hidden_1CH

    def __getitem__(self, place: int | slice) -> Any:
        return (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        return None


class _Chunk:
    """Some tokens on their way through the head: forward, and back by hand."""

    def __init__(self, head: Head, hidden_CH: Tensor) -> None:
        self._linear, self._given_CH = head._linear, hidden_CH
        self._into_CH = self._products_CV = hidden_CH
        self.logits = head.logits_of(hidden_CH, self._product)

    def _product(self, hidden_1CH: Tensor) -> Tensor:
        self._into_CH = hidden_1CH[0]
        with torch.no_grad():
            self._products_CV = _times(self._into_CH.detach().to(self._given_CH.dtype), self._linear)
        return self._products_CV.requires_grad_(hidden_1CH.requires_grad)[None]

    def back(self, grad_logits_CV: Tensor, sinks: _Sinks) -> Tensor:
        """The hidden states' gradient; the head's own is added to `sinks`."""
        grad_CV = grad_logits_CV.to(self._products_CV.dtype)
        if self.logits.grad_fn is not None and not _is_view_of(self.logits, self._products_CV):
            (grad_CV,) = torch.autograd.grad(self.logits, self._products_CV, grad_logits_CV.to(self.logits.dtype))
        into_CH = self._into_CH
        del self.logits
        self._products_CV = grad_CV
        with torch.no_grad():
            grad_CH = sinks.add(grad_CV, into_CH.detach().to(grad_CV.dtype))
        if into_CH.grad_fn is not None and not _is_view_of(into_CH, self._given_CH):
            (grad_CH,) = torch.autograd.grad(into_CH, self._given_CH, grad_CH.to(into_CH.dtype))
        return grad_CH


def _is_view_of(one: Tensor, other: Tensor) -> bool:
    """Whether nothing was computed between the two."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape and one.dtype == other.dtype


class _Sinks:
    """Where the gradients of a head's weight and bias are added up, in fp32."""

    def __init__(self, linear: nn.Linear, *, weight: bool, bias: bool, later: bool) -> None:
        self._linear = linear
        self._later: list[tuple[Tensor, Tensor]] | None = [] if weight and later else None
        whole = weight and not later
        self.weight_VH = torch.zeros_like(linear.weight, dtype=torch.float32) if whole else None
        self.bias_V = torch.zeros_like(linear.bias, dtype=torch.float32) if bias else None

    def add(self, grad_CV: Tensor, into_CH: Tensor) -> Tensor:
        """What of C tokens goes to the head stays here; what goes on, [C, H], is given back."""
        grad_CH = torch.zeros_like(into_CH)
        weight_VH = self._linear.weight.detach()
        if self.bias_V is not None:
            self.bias_V += grad_CV.sum(dim=0)
        for rows in _slices(weight_VH, grad_CV.dtype):
            part_CR = grad_CV[:, rows]
            grad_CH.addmm_(part_CR, weight_VH[rows].to(grad_CV.dtype))
            if self.weight_VH is not None:
                _add_product(self.weight_VH[rows], part_CR, into_CH)
        if self._later is not None:
            self._later.append((grad_CV, into_CH))
        return grad_CH

    @torch.no_grad()
    def add_up(self, times: Tensor) -> None:
        """Add what was put off, so many times, to the weight's gradient: what whole ones would come to, bit for bit."""
        if self._later is None:
            return
        weight: Any = self._linear.weight
        is_first = weight.grad is None
        total_VH = torch.empty(weight.shape, dtype=torch.float32, device=weight.device) if is_first else weight.grad
        for rows in _slices(weight, self._later[0][0].dtype):
            part_RH = torch.zeros_like(total_VH[rows])
            for grad_CV, into_CH in self._later:
                _add_product(part_RH, grad_CV[:, rows], into_CH)
            part_RH.mul_(times)
            total_VH[rows] = part_RH if is_first else total_VH[rows].add_(part_RH)
        weight.grad = total_VH
        self._later = None


def _add_product(sum_RH: Tensor, grad_CR: Tensor, into_CH: Tensor) -> None:
    if grad_CR.dtype == torch.float32:
        sum_RH.addmm_(grad_CR.t(), into_CH)
    else:
        sum_RH += grad_CR.t() @ into_CH


def _is_sliced(weight_VH: Tensor, dtype: torch.dtype) -> bool:
    return not weight_VH.dtype == dtype == torch.float32


def _slices(weight_VH: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    rows = weight_VH.shape[0]
    size = _ROWS if _is_sliced(weight_VH, dtype) else rows
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _times(hidden_CH: Tensor, linear: nn.Linear) -> Tensor:
    """[C, V], of a head that may be kept in another dtype than that of `hidden_CH`."""
    weight_VH, bias = linear.weight, linear.bias
    if weight_VH.dtype == hidden_CH.dtype:
        return nn.functional.linear(hidden_CH, weight_VH, bias)
    out_CV = hidden_CH.new_empty((hidden_CH.shape[0], weight_VH.shape[0]))
    for rows in _slices(weight_VH, hidden_CH.dtype):
        out_CV[:, rows] = hidden_CH @ weight_VH[rows].to(hidden_CH.dtype).t()
    return out_CV if bias is None else out_CV.add_(bias)


class _MeanLoss(torch.autograd.Function):
    """Mean cross-entropy, with its gradients taken along."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        head, hidden_SH, targets_S, dtype, trained, weight_VH, bias_V = arguments
        if not trained:
            return cast(Tensor, head.losses(hidden_SH[None], targets_S, dtype).mean())
        tokens = hidden_SH.shape[0]
        sinks = _Sinks(
            head._linear,
            weight=weight_VH.requires_grad,
            bias=bias_V is not None and bias_V.requires_grad,
            later=head.adds_up
            and adds_in_slices(tokens, weight_VH.shape[1], dtype.itemsize, is_sliced=_is_sliced(weight_VH, dtype)),
        )
        grad_SH = torch.empty_like(hidden_SH)
        total = torch.zeros((), dtype=torch.float32, device=hidden_SH.device)
        for rows in head._chunks(tokens):
            with torch.enable_grad():
                chunk = _Chunk(head, hidden_SH[rows].detach().to(dtype).requires_grad_())
            loss, grad_CV = _loss_and_gradient(chunk.logits.detach(), targets_S[rows], tokens)
            total += loss
            grad_SH[rows] = chunk.back(grad_CV, sinks)
        ctx.found, ctx.sinks = [grad_SH, sinks.weight_VH, sinks.bias_V], sinks
        return total.div_(tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        found, ctx.found = ctx.found, None
        ctx.sinks.add_up(grads[0])
        grad_SH, *own = (None if one is None else one.mul_(grads[0]) for one in found)
        found.clear()
        return None, grad_SH, None, None, None, *own


def _loss_and_gradient(logits_CV: Tensor, targets_C: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies, and what it makes of the mean over so many tokens: the logits' gradient, fp32."""
    shares_CV = torch.log_softmax(logits_CV, dim=-1, dtype=torch.float32)
    targets_C1 = targets_C[:, None]
    loss = -shares_CV.gather(1, targets_C1).sum()
    grad_CV = shares_CV.exp_()
    grad_CV.scatter_add_(1, targets_C1, grad_CV.new_full((1, 1), -1.0).expand_as(targets_C1))
    return loss, grad_CV.div_(tokens)
