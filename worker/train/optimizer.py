"""The inner optimizer: AdamW over everything that is held, or Muon over its matrices and AdamW over the rest.

Decides how a gradient becomes an update, from the recipe and nothing else. Holds always: only held parameters
are seen; state starts fresh; everything that the next step depends on is in `state_of`.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest
semi-orthogonal matrix, so that no direction is drowned by those with large gradients; as an inner optimizer it loses
less than AdamW when workers average (MuLoCo, arXiv:2505.23725). torch has one for single matrices; here a tensor of
experts is as many matrices as it has experts, and a fused gate-and-up projection is two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from protocol.recipe import MUON, Recipe

_QUINTIC: Final = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: steepest at zero, so five steps lift every singular value to about one."""
_ITERATIONS: Final = 5
_EPS: Final = 1e-7

MATRICES: Final = ("matrices", "turned", "fused")
"""Names of the parameter groups that Muon takes."""


class HasGroups(Protocol):
    """What the optimizer needs of `moe.shard.ShardModel`."""

    def parameter_groups(self, *, lr: float, router_lr_scale: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups over held parameters only."""


class InnerOptimizer:
    """One lease's optimizer, or one of a longer training."""

    def __init__(self, shard: HasGroups, recipe: Recipe) -> None:
        groups = shard.parameter_groups(
            lr=recipe.learning_rate,
            router_lr_scale=recipe.router_lr_scale,
            weight_decay=recipe.weight_decay,
        )
        matrices = [group for group in groups if recipe.optimizer == MUON and group["name"] in MATRICES]
        others = [group for group in groups if not any(group is taken for taken in matrices)]
        self.parameters: list[Tensor] = [parameter for group in groups for parameter in group["params"]]
        betas = (recipe.adam_beta1, recipe.adam_beta2)
        self._optimizers: list[torch.optim.Optimizer] = []
        if matrices:
            by_muon = [{**group, "lr": recipe.muon_learning_rate} for group in matrices]
            self._optimizers.append(Muon(by_muon, momentum=recipe.muon_momentum))
        if any(group["params"] for group in others):
            self._optimizers.append(torch.optim.AdamW(others, betas=betas, eps=recipe.adam_eps, fused=True))
        self._rates = [float(group["lr"]) for group in self._groups()]
        self._clip_norm = recipe.clip_norm

    def step(self, factor: float) -> None:
        """Clip the gradients, step with `factor` times the recipe's rates, and drop the gradients."""
        for group, rate in zip(self._groups(), self._rates, strict=True):
            group["lr"] = rate * factor
        torch.nn.utils.clip_grad_norm_(self.parameters, self._clip_norm, foreach=True)
        for optimizer in self._optimizers:
            optimizer.step()
        self.drop_gradients()

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


class Muon(torch.optim.Optimizer):
    """M' = mu M + (1 - mu) G,  W' = (1 - lr wd) W - lr sqrt(max(1, rows / columns)) ortho((1 - mu) G + mu M').

    Parameters are [..., rows, columns]: every leading index is a matrix of its own; a group's `parts` (1 by default)
    says that its rows are that many matrices one below the other, or `interleaved`: a row of each in turn. What is
    `transposed` is applied from the right, and its columns are meant.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, momentum: float) -> None:
        usual = {"parts": 1, "interleaved": False, "transposed": False}
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum, **usual})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, mu = self.state[parameter], group["momentum"]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1.0 - mu)
        looking_ahead = gradient.lerp(momentum, mu)
        matrices_XMN = _matrices_of(looking_ahead.mT if group["transposed"] else looking_ahead, group)
        rows, columns = matrices_XMN.shape[-2:]
        update = orthogonalised(matrices_XMN)
        update = (update.transpose(-3, -2) if group["interleaved"] else update).flatten(-3, -2)
        if group["transposed"]:
            update = update.mT
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def _matrices_of(rows_XRN: Tensor, group: dict[str, Any]) -> Tensor:
    """[..., parts, M, N] of [..., parts * M, N]."""
    lead, parts, columns = rows_XRN.shape[:-2], group["parts"], rows_XRN.shape[-1]
    if group["interleaved"]:
        return rows_XRN.reshape(*lead, -1, parts, columns).transpose(-3, -2)
    return rows_XRN.reshape(*lead, parts, -1, columns)


def orthogonalised(matrices_XMN: Tensor) -> Tensor:
    """The semi-orthogonal matrix nearest to each [M, N] matrix, roughly: its singular values come out near 1.

    Newton-Schulz iteration with a quintic, in bf16 on a GPU (it only has to be about right) and in the input's dtype
    elsewhere. A matrix of zeros stays one.
    """
    a, b, c = _QUINTIC
    work: Tensor = matrices_XMN.bfloat16() if matrices_XMN.is_cuda else matrices_XMN
    tall = work.shape[-2] > work.shape[-1]
    work = work.mT if tall else work
    work = work / (torch.linalg.matrix_norm(work, keepdim=True) + _EPS)
    for _ in range(_ITERATIONS):
        gram = work @ work.mT
        work = a * work + (b * gram + c * gram @ gram) @ work
    return (work.mT if tall else work).to(matrices_XMN.dtype)
