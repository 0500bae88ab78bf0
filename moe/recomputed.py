"""Activations that are computed again in the backward pass, a layer at a time, with the routing of the first time.

Decides nothing about the result: on a CPU it is the same to the bit. A layer's input is kept, and what lies between is
made again when its gradient is due (Chen et al. 2016, arXiv:1604.06174). Experts are given the choices that their
router made the first time: on a device whose sums are not the same twice, a near tie could send a token elsewhere, and
the gradient would be that of no pass at all. Touches the model: hooks on its experts.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, cast

from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from moe.routing import expert_modules
from moe.selection import chosen_in, with_choices

Around = Callable[[], AbstractContextManager[None]]


def layers_of(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """Layers that can be computed again: none of a model whose layers hand keys and values on to one another."""
    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    alone = all("shared_kv_states" not in inspect.signature(one.forward).parameters for one in layers)
    return layers if alone else []


class Recomputation:
    """One model's, on or off. Made once for a module."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._layers = layers_of(model)
        self._recorded: deque[Tensor] | None = None
        self._replayed: deque[Tensor] | None = None
        self._is_hooked = False

    def switch(self, *, on: bool) -> None:
        """From the next pass in training mode on."""
        for layer in self._layers:
            layer.gradient_checkpointing = on
            again = partial(checkpoint, use_reentrant=False, context_fn=self._entered_once)
            cast(Any, layer)._gradient_checkpointing_func = again

    def _entered_once(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        first, again = self.contexts()
        return first(), again()

    def contexts(self) -> tuple[Around, Around]:
        """What makes a context around a layer's first pass, and around each later one."""
        if not self._is_hooked:
            for experts in expert_modules(self._model).values():
                experts.register_forward_pre_hook(self._on_experts, with_kwargs=True)
            self._is_hooked = True
        choices: deque[Tensor] = deque()
        return partial(self._recording, choices), partial(self._replaying, choices)

    @contextmanager
    def _recording(self, choices: deque[Tensor]) -> Iterator[None]:
        self._recorded = choices
        try:
            yield
        finally:
            self._recorded = None

    @contextmanager
    def _replaying(self, choices: deque[Tensor]) -> Iterator[None]:
        self._replayed = deque(choices)
        try:
            yield
        finally:
            self._replayed = None

    def _on_experts(self, _module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self._replayed is not None:
            return with_choices(arguments, named, self._replayed.popleft())
        if self._recorded is not None:
            self._recorded.append(chosen_in(arguments, named))
        return None
