"""The outer optimizer: how a round's aggregated pseudo-gradient moves the global blocks.

SGD with Nesterov momentum as in DiLoCo (Douillard et al. 2023, arXiv:2311.08105), block by block:

    m' = mu m + g,    theta' = theta - lr (g + mu m')

At mu = 0 and lr = 1 this is plain averaging: theta' = theta - g, bit for bit. Tensors that are told apart (`averaged`)
are averaged plainly whatever lr and mu are: theirs are steps of a controller, not of a descent, and momentum would
carry it past its mark (docs/decisions/0038). A block that nobody returned is not stepped at all, momentum included;
that is the caller's decision, by not calling. What is finite stays finite: where a sum would overflow, it is the
largest number of its type. Goes by granules: beside what it gives, it takes no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregation.pieces import granules
from protocol.errors import LocalError

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class OuterStep:
    """One outer step's settings."""

    learning_rate: float = 1.0
    momentum: float = 0.0
    share: float = 1.0
    """How much of the step is taken; lr is times this."""
    averaged: frozenset[str] = frozenset()
    """Tensors that move by `share` of the pseudo-gradient and have no momentum."""

    def __post_init__(self) -> None:
        rate = self.learning_rate * self.share
        if not 0.0 < rate < float("inf") or not 0.0 <= self.momentum < 1.0:
            raise LocalError(
                f"outer step: expected learning rate > 0 and momentum in [0, 1), got {rate} and {self.momentum}"
            )

    def step(
        self,
        block: Mapping[str, Tensor],
        pseudo_gradient: Mapping[str, Tensor],
        momentum_buffer: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensors, Tensors | None]:
        """The new block, and its new momentum (None at momentum 0).

        The pseudo-gradient, contiguous, is used up: the new block takes its memory. Nothing else is changed.
        """
        _check_alike("pseudo-gradient", block, pseudo_gradient)
        if momentum_buffer is not None:
            _check_alike("momentum", block, momentum_buffer)
        new_block: Tensors = {}
        new_momentum: Tensors = {}
        for name, gradient in pseudo_gradient.items():
            old_P, gradient_P = block[name].reshape(-1), gradient.view(-1)
            if name in self.averaged:
                self._step(old_P, gradient_P, None, None, self.share)
                after = torch.zeros_like(gradient) if self.momentum else None
            else:
                before_P = None if momentum_buffer is None else momentum_buffer[name].reshape(-1)
                after = torch.empty_like(gradient) if self.momentum else None
                after_P = None if after is None else after.view(-1)
                self._step(old_P, gradient_P, before_P, after_P, self.learning_rate * self.share)
            new_block[name] = gradient
            if after is not None:
                new_momentum[name] = after
        return new_block, new_momentum if self.momentum else None

    def _step(
        self, block_P: Tensor, gradient_P: Tensor, before_P: Tensor | None, after_P: Tensor | None, rate: float
    ) -> None:
        """`gradient_P` becomes the new values, `after_P` the new momentum, where there is any."""
        for start, stop in granules(gradient_P.numel()):
            update_C = gradient_P[start:stop]
            if after_P is not None:
                after_C = after_P[start:stop]
                if before_P is None:
                    after_C.copy_(update_C)
                else:
                    torch.mul(before_P[start:stop], self.momentum, out=after_C).add_(update_C)
                _finite(update_C.add_(_finite(after_C), alpha=self.momentum))
            _finite(torch.sub(block_P[start:stop], update_C, alpha=rate, out=update_C))


def _finite(sums: Tensor) -> Tensor:
    """In place: sums of finite numbers that overflowed become the largest finite ones."""
    largest = torch.finfo(sums.dtype).max
    return sums.clamp_(-largest, largest)


def _check_alike(what: str, block: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    if block.keys() != other.keys():
        odd = sorted(block.keys() ^ other.keys())
        raise LocalError(f"outer step: {what} and block differ in names: {', '.join(odd[:4])}")
    for name, tensor in block.items():
        if tensor.shape != other[name].shape:
            raise LocalError(
                f"outer step: {what} {name!r}: expected shape {tuple(tensor.shape)}, got {tuple(other[name].shape)}"
            )
