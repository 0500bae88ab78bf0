"""Models as `transformers` builds them, first without memory, then with exactly the tensors that are given.

Decides how a model object comes to be; touches no files. Holds always: nothing is initialised at random and then
thrown away, so building a shard of a large model costs the shard's memory and no more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from moe.families import family_named
from moe.families.derive import CANNOT_BUILD, config_class
from protocol.errors import ConfigError, LocalError

PLAIN_EXPERTS: Final = "grouped_mm"
"""The experts function of `transformers` itself."""


def model_class(model_type: str) -> type[PreTrainedModel]:
    """The `transformers` class of a family; ConfigError for an architecture that has no row in the table."""
    family = family_named(model_type)
    found = MODEL_FOR_CAUSAL_LM_MAPPING[config_class(family.model_type)]
    return cast(type[PreTrainedModel], found)


def meta_model(config: PreTrainedConfig, experts_implementation: str = PLAIN_EXPERTS) -> PreTrainedModel:
    """The model with all its modules and none of its memory. Its configuration is its own copy."""
    own = copy.deepcopy(config)
    built = model_class(own.model_type)
    if built._can_set_experts_implementation():
        own._experts_implementation = experts_implementation
    try:
        with torch.device("meta"):
            return built(own)
    except CANNOT_BUILD as error:
        raise ConfigError(f"transformers cannot build this {own.model_type} model: {error!s:.300}") from error


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a checkpoint of the model, each once: its parameters, then its persistent buffers."""
    return {**dict(model.named_parameters()), **_buffers(model, persistent=True)}


def _buffers(model: nn.Module, *, persistent: bool) -> dict[str, Tensor]:
    return {
        f"{path}.{leaf}" if path else leaf: tensor
        for path, module in model.named_modules()
        for leaf, tensor in module.named_buffers(recurse=False)
        if (leaf not in module._non_persistent_buffers_set) is persistent
    }


def set_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put `tensor` where the state-dict name `name` points: as a parameter, or as the buffer of that name."""
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    there = module._buffers.get(leaf)
    if there is not None:
        setattr(module, leaf, tensor.to(there.dtype))
    else:
        parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
        module.register_parameter(leaf, parameter)


def materialise(
    model: PreTrainedModel, tensors: Mapping[str, Tensor], tied: tuple[tuple[str, str], ...], device: torch.device
) -> None:
    """Give every tensor of a meta model's checkpoint its values (taken as they are, not copied); compute the others."""
    for name, tensor in tensors.items():
        set_tensor(model, name, tensor)
    for alias, name in tied:
        set_tensor(model, alias, model.get_parameter(name))
    _compute_buffers(model, device)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise LocalError(f"tensors without values after building {type(model).__name__}: {left[:5]}")


@torch.no_grad()
def _compute_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Fill the buffers that no checkpoint carries (rotary frequencies and the like), as `from_pretrained` does.

    The class computes them from its configuration where it would also give parameters their first values; those that
    are marked keep the values they have (`_initialize_missing_keys` of `transformers`).
    """
    empty: dict[str, set[str]] = {}
    for name, tensor in _buffers(model, persistent=False).items():
        if tensor.is_meta:
            parent, _, leaf = name.rpartition(".")
            empty.setdefault(parent, set()).add(leaf)
    owners = {path: module for path, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    with init.guard_torch_init_functions():
        for path, leaves in empty.items():
            module = model.get_submodule(path)
            for leaf, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if leaf in leaves:
                    setattr(module, leaf, torch.empty_like(tensor, device="cpu"))
                else:
                    cast(Any, tensor)._is_hf_initialized = True
            owner = max((other for other in owners if path.startswith(other)), key=len)
            cast(Any, owners[owner])._init_weights(module)
            for leaf in leaves:
                setattr(module, leaf, module.get_buffer(leaf).to(device))


@torch.no_grad()
def first_value(model: PreTrainedModel, name: str, seed: int) -> Tensor:
    """What the class of a meta model begins the tensor `name` with, fp32 or as the buffer is, the same for one seed.

    Zeros for a tensor that the class leaves alone: it expects it of every checkpoint.
    """
    path, _, leaf = name.rpartition(".")
    module = copy.copy(model.get_submodule(path))
    module._parameters, module._buffers = dict(module._parameters), dict(module._buffers)
    for other, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        values = torch.zeros_like(tensor, device="cpu", requires_grad=False)
        if other in module._parameters:
            module._parameters[other] = nn.Parameter(values, requires_grad=values.is_floating_point())
        else:
            module._buffers[other] = values
    owners = [
        one for place, one in model.named_modules() if isinstance(one, PreTrainedModel) and path.startswith(place)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        cast(Any, owners[-1])._init_weights(module)
    found = module._parameters.get(leaf)
    return found.detach() if found is not None else cast(Tensor, module._buffers[leaf])
