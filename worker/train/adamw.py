"""AdamW where a recipe saves memory: weights that are rounded to bf16 at random, moments in 8 bits.

Decides nothing that the recipe does not: with fp32 moments and fp32 weights it is AdamW (Loshchilov & Hutter 2019,
arXiv:1711.05101), which torch's own is used for. The second moment is kept as its root, whose range is half as wide.
A tensor is worked on a span at a time, so that no fp32 copy of it is ever whole. State starts fresh; everything that
the next step depends on is in `state`, and the random bits are the step's own (worker/train/rounding.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from moe.weighing import SMALLEST_CODED
from worker.train.eight_bits import BLOCK, CodedMoment, code_into, decoded, zeros
from worker.train.rounding import StepBits, round_to_bf16, spans


class SpanwiseAdamW(torch.optim.Optimizer):
    """`step_with` is what steps; a group's `rounded` says whether its weights are rounded to bf16 values."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, betas: tuple[float, float], eps: float, is_compact: bool
    ) -> None:
        usual = {"lr": 0.0, "weight_decay": 0.0, "betas": betas, "eps": eps, "rounded": False}
        super().__init__(groups, usual)
        self._is_compact = is_compact

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Not without the step's random bits."""
        raise NotImplementedError("step_with")

    @torch.no_grad()
    def step_with(self, draws: dict[int, StepBits]) -> None:
        """One update of every parameter that has a gradient; `draws` by the parameter's `id`."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, draws[id(parameter)])

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], draws: StepBits) -> None:
        state, elements = self.state[parameter], parameter.numel()
        is_coded = self._is_compact and elements >= SMALLEST_CODED
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state.update(_fresh(parameter, is_coded=is_coded))
        state["step"] += 1
        weights_P, gradient_P = parameter.view(-1), gradient.reshape(-1)
        for start, stop in spans(elements):
            moments = _Moments(state, start, stop, is_coded=is_coded)
            moved_P = moments.moved(gradient_P[start:stop], int(state["step"]), group)
            after_P = weights_P[start:stop].to(torch.float32, copy=True)
            after_P.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(moved_P, alpha=-group["lr"])
            if group["rounded"] or is_coded:
                bits_P = draws.bits(start, stop, parameter.device)
                after_P = round_to_bf16(after_P, bits_P) if group["rounded"] else after_P
                moments.keep(bits_P)
            weights_P[start:stop].copy_(after_P)


def _fresh(parameter: Tensor, *, is_coded: bool) -> dict[str, Tensor]:
    if not is_coded:
        like = torch.zeros_like(parameter, dtype=torch.float32)
        return {"first": like, "second_root": like.clone()}
    first, second = zeros(parameter.numel(), parameter.device), zeros(parameter.numel(), parameter.device)
    return {
        "first": first.codes,
        "first_scale": first.scale,
        "second_root": second.codes,
        "second_root_scale": second.scale,
    }


class _Moments:
    """Both moments of one span, in fp32 while it is worked on."""

    def __init__(self, state: dict[str, Tensor], start: int, stop: int, *, is_coded: bool) -> None:
        self._is_coded = is_coded
        if is_coded:
            end = -(-stop // BLOCK) * BLOCK
            blocks = slice(start // BLOCK, end // BLOCK)
            self._first = CodedMoment(state["first"][start:end], state["first_scale"][blocks])
            self._second = CodedMoment(state["second_root"][start:end], state["second_root_scale"][blocks])
            self._first_N = decoded(self._first, signed=True)
            self._root_N = decoded(self._second, signed=False)
        else:
            self._first_N = state["first"].view(-1)[start:stop]
            self._root_N = state["second_root"].view(-1)[start:stop]

    def moved(self, gradient_P: Tensor, step: int, group: dict[str, Any]) -> Tensor:
        """Take the gradient in; how far the weights move at a rate of 1."""
        beta1, beta2 = group["betas"]
        elements = gradient_P.numel()
        first_P, root_P = self._first_N[:elements], self._root_N[:elements]
        first_P.lerp_(gradient_P, 1.0 - beta1)
        root_P.square_().mul_(beta2).addcmul_(gradient_P, gradient_P, value=1.0 - beta2).sqrt_()
        below_P = (root_P / (1.0 - beta2**step) ** 0.5).add_(group["eps"])
        return torch.div(first_P, below_P).div_(1.0 - float(beta1) ** step)

    def keep(self, bits_P: Tensor) -> None:
        """Write them back. The upper half of the bits is theirs, the lower one the weights'."""
        if not self._is_coded:
            return
        bits_N = torch.zeros(self._first_N.numel(), dtype=torch.int32, device=bits_P.device)
        bits_N[: bits_P.numel()] = bits_P
        for kept, values_N, shift, signed in (
            (self._first, self._first_N, 16, True),
            (self._second, self._root_N, 24, False),
        ):
            chance_N = ((bits_N >> shift).bitwise_and_(0xFF) + 0.5) / 256.0
            code_into(kept, values_N, chance_N, signed=signed)
