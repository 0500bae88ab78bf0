"""A family that nobody has: OLMoE with its experts and routers under other names, and another key for how many."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, OlmoeConfig, OlmoeForCausalLM
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation
from transformers.models.olmoe.modeling_olmoe import OlmoeExperts, OlmoeTopKRouter

from moe.families import Family, PerExpert


class MadeUpConfig(OlmoeConfig):
    model_type = "made_up"
    attribute_map = {"num_experts": "bank_size", "num_local_experts": "bank_size"}  # noqa: RUF012

    def __init__(self, *, bank_size: int = 8, **values: Any) -> None:
        if "num_experts" in values:
            raise TypeError("it is called bank_size")
        super().__init__(**{"norm_topk_prob": True, **values, "num_experts": bank_size})


@use_experts_implementation
class Bank(nn.Module):
    """`OlmoeExperts`, but for what its tensors are called; the properties are for the functions of `transformers`."""

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__()
        self.num_experts, self.hidden_dim = config.num_experts, config.hidden_size
        self.intermediate_dim = config.intermediate_size
        wide = 2 * self.intermediate_dim
        self.into = nn.Parameter(torch.empty(self.num_experts, wide, self.hidden_dim))
        self.out_of = nn.Parameter(torch.empty(self.num_experts, self.hidden_dim, self.intermediate_dim))
        self.act_fn = ACT2FN[config.hidden_act]

    gate_up_proj = property(lambda self: self.into)
    down_proj = property(lambda self: self.out_of)
    forward = vars(OlmoeExperts.forward)["__wrapped__"]


class Block(nn.Module):
    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__()
        self.route = OlmoeTopKRouter(config)
        self.bank = Bank(config)

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.view(-1, hidden.shape[-1])
        _, gates, chosen = self.route(flat)
        return self.bank(flat, chosen, gates).view(hidden.shape)


class MadeUpForCausalLM(OlmoeForCausalLM):
    config_class = MadeUpConfig

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Block(config)


ROW = Family(
    model_type="made_up",
    class_name="MadeUpForCausalLM",
    experts=(PerExpert(suffix=".mlp.bank.into", matrices=2), PerExpert(suffix=".mlp.bank.out_of", matrices=1)),
    router=(PerExpert(suffix=".mlp.route.weight", matrices=1),),
    derived=False,
    renormalises=True,
    spelt={"num_experts": "bank_size"},
)


def tell_transformers() -> None:
    """As a family comes to be known there: none of it is ours."""
    AutoConfig.register("made_up", MadeUpConfig, exist_ok=True)
    AutoModelForCausalLM.register(MadeUpConfig, MadeUpForCausalLM, exist_ok=True)
