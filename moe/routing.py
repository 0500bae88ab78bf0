"""Looks into a model's routers while it runs, and can take columns away from them.

Decides what a router does when only some columns are there: softmax and top-k over those, gates renormalised. That is
bit for bit what the smaller model of an `absent` shard computes, but for the rounding of sums, without building it.
Holds always: without `held` nothing that the model computes is changed; when the tap is closed, neither way.

Shapes: S tokens (all of a batch, in order), E experts, K experts a token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.config import config_to_json, normalises_gates
from moe.families import family_named
from protocol.errors import ConfigError, LocalError

NEEDS_RENORMALISED_GATES = (
    "its gates are not renormalised after top-k (norm_topk_prob), so there is no routing with columns absent"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """What one layer's router did with S tokens."""

    logits: Tensor
    """[S, E] fp32, of all experts, whichever are held."""
    chosen: Tensor
    """[S, K] int64: the experts that each token was sent to."""


def routers(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Each layer's router, by the layer's index; dense layers have none."""
    return _by_layer(model, family_named(model.config.model_type).router[0].suffix)


def expert_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Each layer's experts, likewise."""
    return _by_layer(model, family_named(model.config.model_type).experts[0].suffix)


def _by_layer(model: PreTrainedModel, suffix: str) -> dict[int, nn.Module]:
    """The modules that hold a parameter whose name ends so."""
    found = {}
    for name, _ in model.named_parameters():
        if name.endswith(suffix):
            path = name.rpartition(".")[0]
            layer = path.split(".layers.", 1)[1].split(".", 1)[0]
            found[int(layer)] = model.get_submodule(path)
    if not found:
        raise LocalError(f"{type(model).__name__} has no {suffix} that could be looked into")
    return dict(sorted(found.items()))


class RouterTap:
    """Reads, while it is open, what every router of `model` does; with `held`, lets them route over those columns only.

    `held` needs at least top-k columns and a model whose gates are renormalised; ConfigError otherwise.
    """

    def __init__(self, model: PreTrainedModel, *, held: Iterable[int] | None = None) -> None:
        self._routers = routers(model)
        self._held = None if held is None else _checked(model, held)
        self._seen: dict[int, list[Routing]] = {layer: [] for layer in self._routers}
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for layer, router in self._routers.items():
            self._hooks.append(router.register_forward_hook(self._hook(layer)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def take(self) -> dict[int, Routing]:
        """What was routed since the last call, by layer; the tokens of several passes one after the other."""
        if not all(self._seen.values()):
            raise LocalError("the model has not run since the routers were last asked")
        found = {
            layer: Routing(
                logits=torch.cat([one.logits for one in parts]),
                chosen=torch.cat([one.chosen for one in parts]),
            )
            for layer, parts in self._seen.items()
        }
        for parts in self._seen.values():
            parts.clear()
        return found

    def _hook(self, layer: int) -> Any:
        def on_output(_router: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> Any:
            logits_SE, gates_SK, chosen_SK = output
            if self._held is not None:
                gates_SK, chosen_SK = _route_within(self._held, logits_SE, gates_SK)
            self._seen[layer].append(Routing(logits=logits_SE.float(), chosen=chosen_SK))
            return None if self._held is None else (logits_SE, gates_SK, chosen_SK)

        return on_output


def _route_within(held: tuple[int, ...], logits_SE: Tensor, gates_SK: Tensor) -> tuple[Tensor, Tensor]:
    """Gates and choices over the held columns, in the numbers of the whole model."""
    held_D = torch.tensor(held, device=logits_SE.device)
    # As the routers of every family in the table do it: softmax in fp32, the largest K, divided by their sum.
    shares_SD = logits_SE[:, held_D].float().softmax(dim=-1)
    best_SK, places_SK = shares_SD.topk(gates_SK.shape[-1], dim=-1)
    return (best_SK / best_SK.sum(dim=-1, keepdim=True)).to(gates_SK.dtype), held_D[places_SK]


def _checked(model: PreTrainedModel, held: Iterable[int]) -> tuple[int, ...]:
    values = config_to_json(model.config)
    columns, top_k, given = values["num_experts"], values["num_experts_per_tok"], tuple(sorted(held))
    if not normalises_gates(values):
        raise ConfigError(NEEDS_RENORMALISED_GATES)
    if len(set(given)) != len(given) or len(given) < top_k or given[0] < 0 or given[-1] >= columns:
        raise ConfigError(
            f"routing within a set of columns needs at least {top_k} different ones of 0 to {columns - 1}, "
            f"got {list(given)}"
        )
    return given
