"""Where a model can be cut into its layers, each of which is run alone; and what stands in for them meanwhile.

Decides which models can be: those whose layers are a chain. A layer is given what the one before it answered, as it is,
and nothing else that a gradient flows through; what comes after the last one looks at its answer alone; routers lie in
layers. That is looked up by running a model without memory, so it holds for what its class does, not for its name.
Touches the model: `forward` of its layers, put back after each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from moe.head import Head
from moe.recomputed import layers_of
from moe.routing import LogitsTap
from protocol.errors import LocalError

Forward = Callable[..., Any]


class Given(NamedTuple):
    """What a layer is called with."""

    hidden: Tensor
    arguments: tuple[Any, ...]
    named: dict[str, Any]

    def of(self, forward: Forward, hidden: Tensor) -> Tensor:
        """What `forward` answers to it, with other hidden states."""
        answer = forward(hidden, *self.arguments, **self.named)
        if not isinstance(answer, Tensor):
            raise LocalError("a layer answers more than hidden states")
        return answer


StandIn = Callable[[int, Forward, Given], Tensor]
"""Called in the place of a layer, with its number and its own `forward`."""
_HIDDEN: Final = "hidden_states"


@contextmanager
def standing_in(layers: Sequence[nn.Module], called: StandIn) -> Iterator[None]:
    """While it is open `called` answers for every layer."""
    before = [layer.__dict__.get("forward") for layer in layers]
    for number, layer in enumerate(layers):
        layer.__dict__["forward"] = partial(_stand_in, number, layer.forward, called)
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            del layer.__dict__["forward"]
            if own is not None:
                layer.__dict__["forward"] = own


def _stand_in(number: int, own: Forward, called: StandIn, *arguments: Any, **named: Any) -> Tensor:
    if arguments:
        return called(number, own, Given(arguments[0], arguments[1:], named))
    return called(number, own, Given(named.pop(_HIDDEN), (), named))


def why_not_by_layers(model: PreTrainedModel) -> str:
    """Why a model, one without memory, cannot go layer by layer; empty where it can."""
    layers = layers_of(model)
    if not layers:
        return "its layers hand keys and values on to one another"
    if not Head(model).is_chunked:
        return "its head is none of the usual"
    if routers_of(model, layers) is None:
        return "a router lies outside of its layers"
    return _Chain(model, layers).why_not()


def routers_of(model: PreTrainedModel, layers: Sequence[nn.Module]) -> list[list[int]] | None:
    """Of each layer the numbers, as `LogitsTap` counts them, of the routers in it; None where one lies in none."""
    places = {id(module): number for number, layer in enumerate(layers) for module in layer.modules()}
    found: list[list[int]] = [[] for _ in layers]
    for number, router in enumerate(LogitsTap(model).routers):
        if id(router) not in places:
            return None
        found[places[id(router)]].append(number)
    return found


class _Chain:
    """One run through a model's class, its layers aside."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[nn.Module]) -> None:
        self._model, self._layers = model, layers
        self._answers: list[Tensor] = []
        self._first: Tensor | None = None
        self._broken = ""

    def why_not(self) -> str:
        # classes ask fake tensors nothing that depends on what is in them
        with FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad(), standing_in(self._layers, self._layer):
            tokens_1T = torch.zeros((1, 4), dtype=torch.long, device="meta")
            try:
                hidden = cast(Any, self._model.base_model)(input_ids=tokens_1T, use_cache=False)[0]
            except (TypeError, ValueError):  # classes that unpack what a layer answers
                return "its layers answer more than hidden states"
        if self._broken:
            return self._broken
        if len(self._answers) != len(self._layers):
            return "its layers are not run once each, in their order"
        others = [one for one in (self._first, *self._answers[:-1]) if one is not None and one.requires_grad]
        found = torch.autograd.grad(hidden.sum(), [self._answers[-1], *others], allow_unused=True)
        if found[0] is None or any(one is not None for one in found[1:]):
            return "what comes after its layers looks at more than the last one's answer"
        return ""

    def _layer(self, number: int, _own: Forward, given: Given) -> Tensor:
        if number != len(self._answers):
            self._broken = "its layers are not run once each, in their order"
        elif number and (given.hidden is not self._answers[-1] or given.hidden._version):
            self._broken = f"something is computed between its layers {number - 1} and {number}"
        elif any(one.requires_grad for one in _tensors_in(given[1:])):
            self._broken = "its layers are given more that is trained than what the layer before answered"
        if not number:
            self._first = given.hidden
        self._answers.append(torch.empty_like(given.hidden, requires_grad=True))
        return self._answers[-1]


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors_in(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors_in(one)
