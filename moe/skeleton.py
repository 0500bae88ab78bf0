"""Models as `transformers` builds them, first without memory, then with exactly the tensors that are given.

Decides how a model object comes to be; touches no files. Holds always: nothing is initialised at random and then
thrown away, so building a shard of a large model costs the shard's memory and no more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Final, cast

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from moe.families import family_named
from protocol.errors import LocalError

PLAIN_EXPERTS: Final = "grouped_mm"
"""The experts function of `transformers` itself."""


def model_class(model_type: str) -> type[PreTrainedModel]:
    """The `transformers` class of a family; ConfigError for an architecture that has no row in the table."""
    family = family_named(model_type)
    found = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family.model_type]]
    return cast(type[PreTrainedModel], found)


def meta_model(config: PreTrainedConfig, experts_implementation: str = PLAIN_EXPERTS) -> PreTrainedModel:
    """The model with all its modules and none of its memory. Its configuration is its own copy."""
    own = copy.deepcopy(config)
    own._experts_implementation = experts_implementation
    with torch.device("meta"):
        return model_class(own.model_type)(own)


def set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put `parameter` where the state-dict name `name` points."""
    parent, _, leaf = name.rpartition(".")
    model.get_submodule(parent).register_parameter(leaf, parameter)


def materialise(
    model: PreTrainedModel, tensors: Mapping[str, Tensor], tied: tuple[tuple[str, str], ...], device: torch.device
) -> None:
    """Give every parameter of a meta model its tensor (taken as is, not copied) and compute the rotary tables."""
    for name, tensor in tensors.items():
        set_parameter(model, name, nn.Parameter(tensor))
    for alias, name in tied:
        set_parameter(model, alias, model.get_parameter(name))
    # Rotary frequencies are buffers that no state dict carries: the module computes them from the configuration.
    rotary = model.get_submodule("model.rotary_emb")
    model.model.rotary_emb = type(rotary)(config=model.config).to(device)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise LocalError(f"tensors without values after building {type(model).__name__}: {left[:5]}")
