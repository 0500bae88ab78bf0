"""What a `transformers` MoE class is made of, as data.

Decides which of a model's tensors are experts and router rows, and how its configuration is spelt; touches nothing, and
imports no model: a row of the table costs nothing until its model is built. Holds always: a parameter that a row does
not name is trunk, and so are shared experts, dense layers and routers' other tensors.

Shapes: E experts, I an expert's inner width, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moe.families.keys import COMMON, Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One architecture. Tensors are named by what their state-dict names end in."""

    model_type: str
    """As in config.json, and in the registries of `transformers`."""
    class_name: str
    """Of its causal language model; a checkpoint's config.json carries it."""
    gate_up: str = ".mlp.experts.gate_up_proj"
    """Both projections into the experts, gate above up: [E, 2I, H]."""
    down: str = ".mlp.experts.down_proj"
    """The projection out of them, in the same module: [E, H, I]."""
    router_rows: tuple[str, ...] = (".mlp.gate.weight",)
    """Tensors with a row, or one value, for each expert: first the router's matrix [E, H], whose module is the router
    and answers with logits, gates and choices."""
    own_keys: Mapping[str, Key] = field(default_factory=dict)
    """Keys of its configuration besides `COMMON`."""
    spelt: Mapping[str, str] = field(default_factory=dict)
    """Our name of a key to the class's own, where the two differ."""
    renormalises: bool | str
    """Whether gates are renormalised after top-k, or the key of its configuration that says so."""
    expert_width: str = "intermediate_size"
    """The key of I."""

    @property
    def keys(self) -> dict[str, Key]:
        """Every key of its configuration, by our names."""
        return {**COMMON, **self.own_keys}

    @property
    def projections(self) -> tuple[str, str]:
        """What the experts' module calls its two tensors: `gate_up`, then `down`."""
        return self.gate_up.rpartition(".")[2], self.down.rpartition(".")[2]

    def is_expert(self, name: str) -> bool:
        """Whether the parameter is a fused expert tensor [E, ., .]."""
        return name.endswith((self.gate_up, self.down))

    def is_router(self, name: str) -> bool:
        """Whether the parameter is one of the router's, with a row or a value for each expert."""
        return name.endswith(self.router_rows)

    def normalises_gates(self, values: Mapping[str, Any]) -> bool:
        """Whether a model with this configuration renormalises its gates after top-k."""
        return self.renormalises if isinstance(self.renormalises, bool) else bool(values[self.renormalises])

    def shrunk(self, values: Mapping[str, Any], experts: int) -> dict[str, Any]:
        """The configuration of the same model with so many experts: what an `absent` shard is."""
        return {**values, "num_experts": experts}
