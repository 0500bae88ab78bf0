"""Looks into a model's routers while it runs, and can take columns away from them.

Decides what a router does when only some columns are there: what the smaller model of an `absent` shard would do,
without building it. The router is run again with the rows of those columns alone, so scoring, biases and
renormalisation are its class's own. Holds always: without `held` nothing that the model computes is changed; when a tap
is closed, neither way. Choices are read where experts are called, since not every router answers with them.

Shapes: S tokens (all of a batch, in order), E experts, K experts a token, D held columns.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moe.config import config_to_json
from moe.families import Family, family_named
from moe.selection import chosen_in, layer_of
from moe.undispatched import APART
from protocol.errors import ConfigError, LocalError

_NO_CHOICES = (
    "its routers do not answer with choices, so they cannot be kept to some columns without building the model"
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
    return {layer: model.get_submodule(path) for layer, path in _router_paths(model).items()}


def expert_modules(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Each layer's experts, likewise."""
    family, found = family_named(model.config.model_type), dict[int, nn.Module]()
    for name, _ in model.named_parameters():
        if name.endswith(family.experts[0].suffix):
            found.setdefault(layer_of(name), model.get_submodule(in_module(family, name)[0]))
    if not found:
        raise LocalError(f"{type(model).__name__} has no {family.experts[0].suffix} that could be looked into")
    return dict(sorted(found.items()))


def in_module(family: Family, name: str) -> tuple[str, str]:
    """Path of the module that computes with an expert tensor of this name, and what it calls it."""
    # Where projections lie apart they lie in a module of their own within the experts' one.
    words = name.rsplit(".", 2 if family.undispatched == APART else 1)
    return words[0], ".".join(words[1:])


def _router_paths(model: PreTrainedModel) -> dict[int, str]:
    family = family_named(model.config.model_type)
    suffix, module = family.router[0].suffix, family.router_module
    found = {
        layer_of(name): name.removesuffix(suffix) + module if module else name.rpartition(".")[0]
        for name, _ in model.named_parameters()
        if name.endswith(suffix)
    }
    if not found:
        raise LocalError(f"{type(model).__name__} has no {suffix} that could be looked into")
    return dict(sorted(found.items()))


def _logits_place(model: PreTrainedModel, router: nn.Module) -> int | None:
    """Which of a router's answers are its logits, as `transformers` records them; None where it records none of its."""
    for owner in (type(model.base_model), type(model)):
        recorded = (getattr(owner, "_can_record_outputs", None) or {}).get("router_logits", ())
        for one in recorded if isinstance(recorded, list | tuple) else [recorded]:
            if isinstance(router, getattr(one, "target_class", ()) or ()):
                return int(one.index)
    return None


class _Hooked:
    """Hooks that are there while it is open."""

    def __init__(self) -> None:
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class LogitsTap(_Hooked):
    """Reads, while it is open, every router's logits [S, E], in the order of layers; gradients flow through them."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._shares = family_named(model.config.model_type).answers_shares
        there = [model.get_submodule(path) for path in _router_paths(model).values()]
        # What has no logits to record (it sends tokens where a table says) has nothing to balance.
        self._routers = [(router, place) for router in there if (place := _logits_place(model, router)) is not None]
        self._seen: dict[int, Tensor] = {}

    def __enter__(self) -> Self:
        for number, (router, place) in enumerate(self._routers):
            self._hooks.append(router.register_forward_hook(self._hook(number, place)))
        return self

    @property
    def logits(self) -> tuple[Tensor, ...]:
        """Of the last pass."""
        return tuple(logits_SE for _, logits_SE in sorted(self._seen.items()))

    @property
    def routers(self) -> tuple[nn.Module, ...]:
        """Those that are read, in the order of their logits."""
        return tuple(router for router, _ in self._routers)

    def take(self, number: int) -> Tensor:
        """The logits of one router, which are kept here no longer."""
        return self._seen.pop(number)

    def _hook(self, number: int, place: int) -> Any:
        def on_output(_router: nn.Module, _inputs: Any, output: Any) -> None:
            self._seen[number] = _logits_of(output, place, shares=self._shares)

        return on_output


class RouterTap(_Hooked):
    """Reads, while it is open, what every router of `model` does; with `held`, lets them route over those columns only.

    `held` must be columns that an `absent` shard could hold; ConfigError otherwise.
    """

    def __init__(self, model: PreTrainedModel, *, held: Iterable[int] | None = None) -> None:
        super().__init__()
        self._model = model
        self._routers = _router_paths(model)
        self._experts = expert_modules(model)
        self._held = None if held is None else _checked(model, held)
        self._family = family_named(model.config.model_type)
        self._logits: dict[int, list[Tensor]] = {layer: [] for layer in self._routers}
        self._chosen: dict[int, list[Tensor]] = {layer: [] for layer in self._routers}

    def __enter__(self) -> Self:
        for layer, path in self._routers.items():
            router = self._model.get_submodule(path)
            hook = self._on_router(layer, _logits_place(self._model, router) or 0, self._smaller(router, path))
            self._hooks.append(router.register_forward_hook(hook, with_kwargs=True))
            experts = self._experts[layer]
            self._hooks.append(experts.register_forward_pre_hook(self._on_experts(layer), with_kwargs=True))
        return self

    def take(self) -> dict[int, Routing]:
        """What was routed since the last call, by layer; the tokens of several passes one after the other."""
        if not all(self._chosen.values()):
            raise LocalError("the model has not run since the routers were last asked")
        found = {
            layer: Routing(logits=torch.cat(self._logits[layer]), chosen=torch.cat(self._chosen[layer]))
            for layer in self._routers
        }
        for parts in (*self._logits.values(), *self._chosen.values()):
            parts.clear()
        return found

    def _smaller(self, router: nn.Module, path: str) -> nn.Module | None:
        if self._held is None:
            return None
        held_D = torch.tensor(self._held, device=next(router.parameters()).device)
        return _with_rows(router, f"{path}.", self._family, held_D)

    def _on_router(self, layer: int, place: int, smaller: nn.Module | None) -> Any:
        def on_output(_router: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
            logits_SE = _logits_of(output, place, shares=self._family.answers_shares).float()
            self._logits[layer].append(logits_SE)
            if smaller is None:
                return None
            experts, held_D = logits_SE.shape[-1], torch.tensor(self._held, device=logits_SE.device)
            tokens, *rest = arguments
            rest = [_rows_of(one, experts, held_D) for one in rest]
            named = {key: _rows_of(one, experts, held_D) for key, one in named.items()}
            _, gates_SK, places_SK, *more = smaller.forward(tokens, *rest, **named)
            return output[0], gates_SK, held_D[places_SK], *more

        return on_output

    def _on_experts(self, layer: int) -> Any:
        def on_inputs(_experts: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._chosen[layer].append(chosen_in(arguments, named))

        return on_inputs


def _logits_of(output: Any, place: int, *, shares: bool) -> Tensor:
    """[S, E]. Logarithms of shares are logits whose softmax these are."""
    logits: Tensor = output[place] if isinstance(output, tuple | list) else output
    if shares:
        logits = logits.clamp_min(torch.finfo(logits.dtype).tiny).log()
    return logits.flatten(0, -2)


def _rows_of(argument: Any, experts: int, held_D: Tensor) -> Any:
    """What a router is told besides its tokens, of the held columns: a selection bias that lies outside of it."""
    return argument[held_D] if isinstance(argument, Tensor) and argument.shape == (experts,) else argument


def _with_rows(module: nn.Module, prefix: str, family: Family, held_D: Tensor) -> nn.Module:
    """A copy of a router that has the rows of some columns only; what is no row is shared."""
    twin = copy.copy(module)
    for kind in ("_parameters", "_buffers"):
        tensors = dict(getattr(module, kind))
        for leaf, tensor in tensors.items():
            part = family.per_expert(f"{prefix}{leaf}")
            if part is not None and tensor is not None:
                rows = tensor.detach().index_select(part.dim, held_D)
                tensors[leaf] = nn.Parameter(rows, requires_grad=False) if kind == "_parameters" else rows
        twin.__dict__[kind] = tensors
    twin.__dict__["_modules"] = {
        leaf: child and _with_rows(child, f"{prefix}{leaf}.", family, held_D) for leaf, child in module._modules.items()
    }
    if hasattr(module, "num_experts"):
        twin.num_experts = len(held_D)  # type: ignore[assignment]  # a plain number
    return twin


def why_not_within(values: Mapping[str, Any]) -> str:
    """Why routers of a model with this configuration cannot be kept to some columns; empty where they can."""
    family = family_named(values["model_type"])
    return family.why_not_absent(values) or (_NO_CHOICES if family.undispatched else "")


def _checked(model: PreTrainedModel, held: Iterable[int]) -> tuple[int, ...]:
    values = config_to_json(model.config)
    columns, top_k, given = values["num_experts"], values["num_experts_per_tok"], tuple(sorted(held))
    if why := why_not_within(values):
        raise ConfigError(why)
    if len(set(given)) != len(given) or len(given) < top_k or given[0] < 0 or given[-1] >= columns:
        raise ConfigError(
            f"routing within a set of columns needs at least {top_k} different ones of 0 to {columns - 1}, "
            f"got {list(given)}"
        )
    return given
