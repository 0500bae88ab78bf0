"""What a `transformers` MoE class is made of, as data.

Decides which of a model's tensors are experts and router rows, how its configuration is spelt, and what its routers
make of their logits; touches nothing, and imports no model: a row of the table costs nothing until its model is built.
Holds always: a tensor that a row does not name is trunk, and so are shared experts, dense layers, persistent buffers
and routers' other tensors.

Shapes: E experts, I an expert's inner width, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from moe.families.keys import COMMON, Key

Scores = Literal["softmax", "softmax of chosen", "sigmoid", "sqrtsoftplus"]
"""How logits become scores. `softmax of chosen` is taken over a token's top-k only; the others are taken first, and
`sigmoid` and `sqrtsoftplus` look at each expert by itself."""
Balance = Literal["class", "ours", "none"]
"""Who keeps the load even by a loss: `class`, its own from router logits, with the key `router_aux_loss_coef`; `ours`,
the same loss and the same key, which the class does not know; `none`, nobody (selection biases do, or hashing)."""

OUR_BALANCE_COEFFICIENT: Final = 0.001
"""Of a model whose class knows no balance loss, where its config.json names none: the commonest default of those that
do."""


N_ROUTED: Final = {"num_experts": "n_routed_experts"}
LOCAL: Final = {"num_experts": "num_local_experts"}
"""How two kinds of classes spell the number of experts (`Family.spelt`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerExpert:
    """A tensor with a part for each expert, named by what its state-dict name ends in."""

    suffix: str
    dim: int = 0
    """Which of its dimensions counts experts."""
    flat: bool = False
    """Whether that dimension has the rows of all experts one below the other, [E * R, .], instead of [E, R, .]."""
    matrices: int = 0
    """Of a weight matrix: how many of them each part holds (gate and up: 2). 0 is a vector: a bias, a scale."""


def fused(module: str) -> tuple[PerExpert, ...]:
    """Both projections, in a module of that name: gate above up, and down."""
    return (
        PerExpert(suffix=f".{module}.gate_up_proj", matrices=2),
        PerExpert(suffix=f".{module}.down_proj", matrices=1),
    )


def router_of(tensor: str) -> tuple[PerExpert, ...]:
    """A router that has nothing for each expert but this matrix."""
    return (PerExpert(suffix=f".{tensor}", matrices=1),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One architecture. Tensors are named by what their state-dict names end in."""

    model_type: str
    """As in config.json, and in the registries of `transformers`."""
    class_name: str
    """Of its causal language model; a checkpoint's config.json carries it."""
    experts: tuple[PerExpert, ...] = fused("mlp.experts")
    """Tensors of the experts' module: first the projection into the experts (gate above up: [E, 2I, H]), the last
    matrix the one out of them ([E, H, I]), then biases."""
    undispatched: str = ""
    """How its class holds experts, where not through the experts-function registry: a name of `moe.undispatched`."""
    transposed: bool = False
    """Whether the experts' matrices are applied from the right: [E, H, 2I] and [E, I, H]."""
    router: tuple[PerExpert, ...] = router_of("mlp.gate.weight")
    """Tensors with a row, or one value, for each expert: first the router's matrix [E, H]."""
    router_module: str = ""
    """What the module that answers with (logits, gates, choices) is called, where that is not the matrix's own."""
    answers_shares: bool = False
    """Whether its routers answer with shares, the softmax of their logits, in the place of logits."""
    selection_bias: PerExpert | None = None
    """The vector that is added to scores for choosing and not for gates, which no class trains by itself: a persistent
    buffer, or a parameter that no gradient reaches."""
    scores: Scores | str = "softmax"
    """How logits become scores, or the key of its configuration that says so."""
    renormalises: bool | str
    """Whether gates are renormalised after top-k, or the key of its configuration that says so."""
    balance: Balance = "class"
    hashed: str = ""
    """What the table ends in that says which experts a token of the vocabulary is sent to, [V, K], if there is one."""
    groups: tuple[str, str] | None = None
    """The keys of how many groups the experts are in, and of how many groups a token may choose from."""
    never_absent: str = ""
    """Why its columns cannot be absent from a shard, if they cannot."""
    expert_width: str = "intermediate_size"
    """The key of I."""
    own_keys: Mapping[str, Key] = field(default_factory=dict)
    """Keys of its configuration besides `COMMON`; of a `derived` family, those that its class has not annotated, or
    whose range is another than their name says."""
    derived: bool = True
    """Whether its keys are those of the configuration class of `transformers` (`moe.families.derive`)."""
    without: tuple[str, ...] = ()
    """Annotated keys that the closed form leaves out: what the class makes of the others, or ignores."""
    must_be_off: tuple[str, ...] = ()
    """Keys that a model may not have set, besides those that `moe.families.derive` finds by their names."""
    spelt: Mapping[str, str] = field(default_factory=dict)
    """Our name of a key to the class's own, where the two differ; `a.b` is key b of its part a."""
    per_layer: tuple[str, ...] = ()
    """Keys that may be other in each layer: the closed form lists them, too, under `per_layer_` and the name."""
    micro: Mapping[str, Any] = field(default_factory=dict)
    """What is other than usual in the smallest model of the family that tests build (`moe.families.micro`)."""

    @property
    def keys(self) -> dict[str, Key]:
        """Every key of its configuration, by our names, but for the rotary embedding's (`moe.families.rope`)."""
        if not self.derived:
            return {**COMMON, **self.own_keys}
        from moe.families.derive import derived_keys

        return derived_keys(self)

    @property
    def projections(self) -> tuple[str, ...]:
        """What the experts' module calls its matrices: into the experts first, out of them last."""
        return tuple(part.suffix.rpartition(".")[2] for part in self.experts if part.matrices)

    def per_expert(self, name: str) -> PerExpert | None:
        """What the row says of this tensor; None for one that is trunk whatever the residency."""
        parts = (*self.experts, *self.router, *((self.selection_bias,) if self.selection_bias else ()))
        return next((part for part in parts if name.endswith(part.suffix)), None)

    def is_expert(self, name: str) -> bool:
        """Whether the tensor is one of the experts' own."""
        return name.endswith(tuple(part.suffix for part in self.experts))

    def is_router(self, name: str) -> bool:
        """Whether the tensor is one of the router's, with a row or a value for each expert."""
        return self.per_expert(name) is not None and not self.is_expert(name)

    def is_selection_bias(self, name: str) -> bool:
        """Whether the tensor is a selection bias."""
        return self.selection_bias is not None and name.endswith(self.selection_bias.suffix)

    def normalises_gates(self, values: Mapping[str, Any]) -> bool:
        """Whether a model with this configuration renormalises its gates after top-k."""
        return self.renormalises if isinstance(self.renormalises, bool) else bool(values[self.renormalises])

    def gates_are_one(self, values: Mapping[str, Any]) -> bool:
        """Whether the one gate of a top-1 model with this configuration is 1 whatever the router says."""
        return self.scores_of(values) == "softmax of chosen" or self.normalises_gates(values)

    def scores_of(self, values: Mapping[str, Any]) -> str:
        """How logits become scores in a model with this configuration."""
        return str(values.get(self.scores, self.scores))

    def why_not_absent(self, values: Mapping[str, Any]) -> str:
        """Why no shard of such a model can do with some columns only, in a sentence; empty where one can."""
        if self.never_absent:
            return self.never_absent
        groups, chosen = self.groups_of(values)
        if chosen < groups:
            return (
                f"its experts are in {groups} groups, of which a token chooses {chosen}: a shard would need as many "
                "columns of each, and columns are not granted so"
            )
        if self.scores_of(values) != "softmax" or self.normalises_gates(values):
            return ""
        return (
            "its gates are not renormalised after top-k (norm_topk_prob): the weight of the experts that are there "
            "would depend on the logits of those that are not"
        )

    def groups_of(self, values: Mapping[str, Any]) -> tuple[int, int]:
        """How many groups the experts of such a model are in, and how many a token may choose from: (1, 1) is all."""
        if self.groups is None:
            return 1, 1
        many, chosen = (values.get(key) or 1 for key in self.groups)
        return int(many), int(chosen)

    def remarks(self, values: Mapping[str, Any]) -> list[str]:
        """Sentences for whoever begins a run with such a model: what it does that they may not expect."""
        found = []
        if values["num_experts_per_tok"] == 1 and self.gates_are_one(values):
            found.append(
                "each token goes to one expert, whose gate is renormalised to 1: its routers learn from the balance "
                "loss and not from what comes out"
            )
        if self.balance == "ours":
            coefficient = self.balance_coefficient(values)
            found.append(
                f"{self.class_name} has no balance loss: the usual one is added, router_aux_loss_coef {coefficient:g}"
            )
        if self.selection_bias is not None:
            found.append("its routers have selection biases, which no gradient reaches: they are moved by a rule")
        return found

    def balance_coefficient(self, values: Mapping[str, Any]) -> float:
        """What the balance loss is multiplied by: 0 where nothing is to be balanced by a loss."""
        return float(values.get("router_aux_loss_coef", 0.0)) if self.balance != "none" else 0.0

    def shrunk(self, values: Mapping[str, Any], experts: int) -> dict[str, Any]:
        """The configuration of the same model with so many experts: what an `absent` shard is."""
        # Where every group may be chosen there might as well be one, of however many experts.
        one = {key: 1 for key in self.groups or () if values.get(key) is not None}
        return {**values, **one, "num_experts": experts}
