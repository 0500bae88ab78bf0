"""The inner optimizer: AdamW over all that is trained, or Muon over its matrices and AdamW over the rest, factors too.

Decides how a gradient becomes an update, from the recipe and nothing else. Holds always: only held parameters
are seen; state starts fresh; everything that the next step depends on is in `state_of`, but for random bits, which
follow from seed and step (`worker.train.rounding`).

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest
semi-orthogonal matrix, so that no direction is drowned by those with large gradients; as an inner optimizer it loses
less than AdamW when workers average (MuLoCo, arXiv:2505.23725). torch has one for single matrices; here a tensor of
experts is as many matrices as it has experts, and a fused gate-and-up projection is two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol, cast

import torch
from torch import Tensor

from moe.optimised import FACTORS, MATRICES
from moe.weighing import MATRICES_AT_ONCE
from protocol.errors import LocalError
from protocol.recipe import BF16_MASTERS, BY_LAYER, COMPACT, MUON, Recipe
from worker.machine.arithmetic import multiplies_bf16
from worker.train.adamw import SpanwiseAdamW
from worker.train.rounding import StepBits, round_to_bf16

_QUINTIC: Final = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: steepest at zero, so five steps lift every singular value to about one."""
_ITERATIONS: Final = 5
_EPS: Final = 1e-7


class HasGroups(Protocol):
    """What the optimizer needs of `moe.shard.ShardModel`."""

    def parameter_groups(self, *, lr: float, router_lr_scale: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups over held parameters only."""


class InnerOptimizer:
    """One lease's optimizer, or one of a longer training. LocalError where the shard is not of the recipe's masters."""

    def __init__(self, shard: HasGroups, recipe: Recipe, seed: int = 0) -> None:
        groups = shard.parameter_groups(
            lr=recipe.learning_rate,
            router_lr_scale=recipe.router_lr_scale,
            weight_decay=recipe.weight_decay,
        )
        for group in groups:
            if group.get("name") == FACTORS:
                group["lr"] *= recipe.lora_lr_scale
        matrices = [group for group in groups if recipe.optimizer == MUON and group["name"] in MATRICES]
        others = [group for group in groups if not any(group is taken for taken in matrices)]
        self.parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        if any(group.get("rounded", False) for group in groups) != (recipe.masters == BF16_MASTERS):
            raise LocalError(f"the recipe's masters are {recipe.masters}, and the shard was built for others")
        self._seed = seed
        self._optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            by_muon = [{**group, "lr": recipe.muon_learning_rate} for group in matrices]
            kept_in = torch.bfloat16 if recipe.moments == COMPACT else torch.float32
            self._optimizers.append(Muon(by_muon, momentum=recipe.muon_momentum, kept_in=kept_in))
        if any(group["params"] for group in others):
            self._optimizers.append(_adamw(others, recipe))
        self._rates = [float(group["lr"]) for group in self._groups()]
        self._clip_norm = recipe.clip_norm
        self.clips_whole = recipe.clipping != BY_LAYER
        """Whether a step needs the norms of all gradients before the first of them is used."""
        layers = [layer for group in groups for layer in group.get("layers", [-1] * len(group["params"]))]
        self._clipped_as = [
            0 if self.clips_whole else layer if layer >= 0 else -1 - place for place, layer in enumerate(layers)
        ]
        self._draws: dict[int, StepBits] = {}
        self._norms: dict[int, Tensor] = {}
        self.has_moved = False
        """Whether anything may have been stepped since the step began: if it fails then, weights are half of each."""

    def step(self, factor: float, number: int = 0) -> None:
        """Clip the gradients, take step `number` with `factor` times the recipe's rates, and drop the gradients."""
        self.begin(factor, number)
        self.take_norms()
        self.step_complete()

    def begin(self, factor: float, number: int = 0) -> None:
        """Begin step `number`, which may be taken some parameters at a time, those that have gradients.

        They are clipped by norms of more than themselves: of all, if `clips_whole`, else of their layer; each
        parameter's is taken before the first of those that are clipped together is stepped.
        """
        for group, rate in zip(self._groups(), self._rates, strict=True):
            group["lr"] = rate * factor
        self._draws = {id(one): StepBits(self._seed, number, place) for place, one in enumerate(self.parameters)}
        self._norms, self.has_moved = {}, False

    def take_norms(self) -> None:
        """Remember the norms of the gradients that are there."""
        there = {place: one.grad for place, one in enumerate(self.parameters) if one.grad is not None}
        if there:
            # one by one on a CPU, all at once on a GPU; of each the same, whatever others are there
            self._norms.update(zip(there, torch._foreach_norm(list(there.values())), strict=True))

    def step_complete(self) -> None:
        """Clip the gradients that are there, step what has them, and drop them."""
        self._clip()
        self.has_moved = True
        for optimizer in self._optimizers:
            if isinstance(optimizer, Muon | SpanwiseAdamW):
                optimizer.step_with(self._draws)
            else:
                optimizer.step()
        self.drop_gradients()

    def _clip(self) -> None:
        together: dict[int, list[int]] = {}
        for place in sorted(self._norms):
            together.setdefault(self._clipped_as[place], []).append(place)
        for places in together.values():
            there = [self.parameters[place] for place in places if self.parameters[place].grad is not None]
            if there:
                norm = torch.linalg.vector_norm(torch.stack([self._norms[place] for place in places]))
                torch.nn.utils.clip_grads_with_norm_(there, self._clip_norm, norm, foreach=True)

    def drop_gradients(self) -> None:
        """Free the gradients' memory."""
        for parameter in self.parameters:
            parameter.grad = None

    def _groups(self) -> Iterator[dict[str, Any]]:
        # asked for anew each time: loading a state replaces an optimizer's groups
        return (group for optimizer in self._optimizers for group in optimizer.param_groups)

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """The parameter's moments, by name; empty before its first step. Written to, they are what goes on."""
        for optimizer in self._optimizers:
            if any(parameter is own for group in optimizer.param_groups for own in group["params"]):
                state: dict[str, Tensor] = optimizer.state[parameter]
                return state
        raise KeyError("the optimizer does not hold this parameter")

    def state_dict(self) -> list[dict[str, Any]]:
        """Everything that the next step depends on, besides the parameters."""
        return [optimizer.state_dict() for optimizer in self._optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Become what `state_dict` was taken of."""
        for optimizer, state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)
            # torch casts what is kept of a weight to that weight's dtype, codes and all
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for number, kept in state["state"].items():
                own = parameters[number]
                optimizer.state[own] = {name: value.to(own.device) for name, value in kept.items()}


def _adamw(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """torch's own, but where weights or moments are rounded."""
    betas, eps = (recipe.adam_beta1, recipe.adam_beta2), recipe.adam_eps
    if recipe.rounds_at_random:
        return SpanwiseAdamW(groups, betas=betas, eps=eps, is_compact=recipe.moments == COMPACT)
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)


class Muon(torch.optim.Optimizer):
    """M' = mu M + (1 - mu) G,  W' = (1 - lr wd) W - lr sqrt(max(1, rows / columns)) ortho((1 - mu) G + mu M').

    Parameters are [..., rows, columns]: every leading index is a matrix of its own; a group's `parts` (1 by default)
    says that its rows are that many matrices one below the other, or `interleaved`: a row of each in turn. What is
    `transposed` is applied from the right, and its columns are meant.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, momentum: float, kept_in: torch.dtype = torch.float32
    ) -> None:
        usual = {"parts": 1, "interleaved": False, "transposed": False, "rounded": False}
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum, **usual})
        self._kept_in = kept_in

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient, none of them rounded."""
        self.step_with({})

    @torch.no_grad()
    def step_with(self, draws: dict[int, StepBits]) -> None:
        """The same; `draws`, by a parameter's `id`, are for those of a group that is `rounded`."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter, dtype=self._kept_in)
                for rows in _pieces(parameter):
                    self._update(parameter, rows, group, draws)

    def _update(self, parameter: Tensor, rows: slice, group: dict[str, Any], draws: dict[int, StepBits]) -> None:
        kept, mu = self.state[parameter]["momentum"][rows], group["momentum"]
        gradient = cast(Tensor, parameter.grad)[rows]
        momentum = kept.to(torch.float32).lerp_(gradient, 1.0 - mu)
        if kept.dtype != torch.float32:
            kept.copy_(momentum)
        update, length = _levelled(gradient.lerp(momentum, mu), group)
        weights = parameter[rows]
        after = weights if weights.dtype == torch.float32 else weights.to(torch.float32)
        after.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * length)
        if group["rounded"]:
            first = rows.start * parameter[0].numel()
            bits = draws[id(parameter)].bits(first, first + after.numel(), after.device)
            weights.copy_(round_to_bf16(after, bits.view_as(after)))


def _pieces(parameter: Tensor) -> Iterator[slice]:
    """Which of its first rows are worked on together: all of a matrix, some of a tensor of many."""
    first, at_once = parameter.shape[0], parameter.shape[0]
    if parameter.ndim > 2:
        at_once = max(1, MATRICES_AT_ONCE * first // parameter.numel())
    return (slice(start, min(start + at_once, first)) for start in range(0, first, at_once))


def _levelled(looking_ahead: Tensor, group: dict[str, Any]) -> tuple[Tensor, float]:
    """The direction in which the weights move, and how far at a rate of 1."""
    matrices_XMN = _matrices_of(looking_ahead.mT if group["transposed"] else looking_ahead, group)
    rows, columns = matrices_XMN.shape[-2:]
    update = orthogonalised(matrices_XMN)
    update = (update.transpose(-3, -2) if group["interleaved"] else update).flatten(-3, -2)
    if group["transposed"]:
        update = update.mT
    return update, max(1.0, rows / columns) ** 0.5


def _matrices_of(rows_XRN: Tensor, group: dict[str, Any]) -> Tensor:
    """[..., parts, M, N] of [..., parts * M, N]."""
    lead, parts, columns = rows_XRN.shape[:-2], group["parts"], rows_XRN.shape[-1]
    if group["interleaved"]:
        return rows_XRN.reshape(*lead, -1, parts, columns).transpose(-3, -2)
    return rows_XRN.reshape(*lead, parts, -1, columns)


def orthogonalised(matrices_XMN: Tensor) -> Tensor:
    """The semi-orthogonal matrix nearest to each [M, N] matrix, roughly: its singular values come out near 1.

    Newton-Schulz iteration with a quintic, in bf16 on a GPU that has it (it only has to be about right) and in the
    input's dtype elsewhere. A matrix of zeros stays one.
    """
    a, b, c = _QUINTIC
    work: Tensor = matrices_XMN.bfloat16() if multiplies_bf16(matrices_XMN.device) else matrices_XMN
    tall = work.shape[-2] > work.shape[-1]
    work = work.mT if tall else work
    work = work / (torch.linalg.matrix_norm(work, keepdim=True) + _EPS)
    for _ in range(_ITERATIONS):
        gram = work @ work.mT
        work = a * work + (b * gram + c * gram @ gram) @ work
    return (work.mT if tall else work).to(matrices_XMN.dtype)
