"""The keys of a family, from what its configuration class in `transformers` says of its own fields.

Decides the range of each key: by its name where names have a meaning that all classes share, else by its kind. Touches
nothing but the class. Holds always: a key whose annotation is not a flag, a number, a word or a list of them is refused
unless its row says what it may be (`Family.own_keys`) or leaves it out (`Family.without`); what must be off to train
(dropout, noise in routers) and what does not change the model is no key.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Protocol, cast

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from moe.families.keys import ACTIVATIONS, COMMON, ESSENTIAL, FLAG, HEAD_DIM, MAX_LAYERS, TOKEN, Key
from protocol.errors import ConfigError

CANNOT_BUILD: Final = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError,
    ValueError, StrictDataclassError,
)  # fmt: skip
"""What classes of `transformers` raise for values that do not go together."""

_BASE: Final = frozenset(field.name for field in dataclasses.fields(PreTrainedConfig))
IGNORED: Final = frozenset(
    {
        "use_cache", "output_router_logits", "pretraining_tp", "use_mamba_kernels", "use_mambapy",
        "use_associative_scan", "num_logits_to_keep", "mamba_ssm_cache_dtype", "num_mtp_layers",
        "num_nextn_predict_layers", "mtp_layer_types", "mtp_mlp_layer_types", "mtp_layers_block_type",
        "mtp_loss_scaling_factor", "mtp_local_layer_ids", "mtp_hidden_states_first", "chain_hidden_post_norm",
        "rope_parameters", "rope_theta", "rope_scaling", "eod_token_id", "sep_token_id",
    }
)  # fmt: skip
"""Speed, caches, weights for guessing ahead, and the rotary embedding, which `moe.families.rope` closes."""
MUST_BE_OFF: Final = re.compile(r"(dropout|_pdrop|jitter_noise|jitter_eps)$")
"""What makes a forward pass depend on chance: a lease must be replayable."""

_LAYER_TYPES: Final = (
    "full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "linear_attention",
    "compressed_sparse_attention", "heavily_compressed_attention", "minimax_m3_sparse", "conv", "hybrid",
    "hybrid_sliding", "moe", "mlp",
)  # fmt: skip
_WORDS: Final = {
    "layer_types": _LAYER_TYPES,
    "layers_block_type": _LAYER_TYPES,
    "mlp_layer_types": ("dense", "sparse", "moe", "hash_moe"),
    "indexer_types": ("full", "shared"),
    "scoring_func": ("sigmoid", "sqrtsoftplus", "softmax"),
    "expert_selection_fn": ("softmax", "sigmoid"),
    "shared_expert_combination_strategy": ("average", "sum"),
    "topk_method": ("greedy", "group_limited_greedy"),
    "position_embedding_type": ("rope", "nope"),
    "output_gate_type": ("sigmoid", "silu"),
}
_ACTIVATION: Final = re.compile(r"(_act|activation|activation_function)$")
_BY_NAME: Final[tuple[tuple[re.Pattern[str], Key], ...]] = (
    (re.compile(r"_token_id$"), TOKEN),
    (re.compile(r"^num_(hidden_)?layers$|_every_n_layers$|_layer_(period|offset|interval)$"),
     Key(kind=int, low=0, high=MAX_LAYERS)),
    (re.compile(r"heads"), Key(kind=int, low=1, high=512)),
    (re.compile(r"^head_dim$|_head_dim$|kv_channels"), dataclasses.replace(HEAD_DIM, low=1, multiple_of=1)),
    (re.compile(r"sliding_window|window|position|seq_len|chunk_size|block_size|floor_scale|topk|budget|rel_extent|n_floor"),
     Key(kind=int, low=0, high=1 << 24)),
    (re.compile(r"vocab"), Key(kind=int, low=0, high=1 << 20)),
    (re.compile(r"(^|_)eps(ilon)?($|_)"), Key(kind=float, low=1e-30, high=1e-1)),
    (re.compile(r"layer_(start|end)_index"), Key(kind=int, low=-1, high=MAX_LAYERS)),
    (re.compile(r"_layers$|_layer_ids$"), Key(kind=int, low=0, high=MAX_LAYERS)),
    (re.compile(r"shared_experts$|_experts_num$|expert_num$"), Key(kind=int, low=0, high=256)),
)  # fmt: skip
_SIZE: Final = Key(kind=int, low=0, high=1 << 16)
_RATE: Final = Key(kind=float, low=-1e9, high=1e9)


class KeyedRow(Protocol):
    """What a row of the table (`moe.families.family.Family`) says of its keys."""

    @property
    def model_type(self) -> str:
        """As in config.json."""
        ...

    @property
    def own_keys(self) -> Mapping[str, Key]:
        """Keys of which the row says what they may be."""
        ...

    @property
    def without(self) -> tuple[str, ...]:
        """Annotated keys that are none of ours."""
        ...

    @property
    def spelt(self) -> Mapping[str, str]:
        """Our name of a key to the class's own."""
        ...

    @property
    def per_layer(self) -> tuple[str, ...]:
        """Keys that may be other in each layer."""
        ...

    @property
    def balance(self) -> str:
        """Who gives the balance loss."""
        ...


_DERIVED: Final[dict[str, tuple[KeyedRow, dict[str, Key]]]] = {}
"""What was derived, by model_type, and from which row: a row cannot be hashed."""


@cache
def config_class(model_type: str) -> type[PreTrainedConfig]:
    """The configuration class of an architecture that has a row."""
    return CONFIG_MAPPING[model_type]


@cache
def _annotated(model_type: str) -> dict[str, str]:
    """Field to annotation, of what the class itself declares."""
    fields = dataclasses.fields(cast(Any, config_class(model_type)))
    return {field.name: _text(field.type) for field in fields if field.name not in _BASE}


def _text(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    return (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )


def switched_off(model_type: str) -> tuple[str, ...]:
    """The keys of the class that must be off in a run, whichever families they belong to."""
    return tuple(name for name in _annotated(model_type) if MUST_BE_OFF.search(name))


def has_rotary(model_type: str) -> bool:
    """Whether the class has rotary embeddings to speak of."""
    return not {"rope_parameters", "rope_scaling"}.isdisjoint(_annotated(model_type))


def derived_keys(family: KeyedRow) -> dict[str, Key]:
    """Every key of the family by our names; ConfigError names an annotation that the row must say more of."""
    known = _DERIVED.get(family.model_type)
    if known is None or known[0] is not family:
        known = _DERIVED[family.model_type] = (family, _derived(family))
    return known[1]


def _derived(family: KeyedRow) -> dict[str, Key]:
    ours = {theirs: name for name, theirs in family.spelt.items()}
    found: dict[str, Key] = {}
    for theirs, annotation in _annotated(family.model_type).items():
        name = ours.get(theirs, theirs)
        if theirs in IGNORED or theirs in family.without or MUST_BE_OFF.search(theirs) or name in family.own_keys:
            continue
        found[name] = _key(family.model_type, name, annotation)
    for name in sorted(ESSENTIAL - found.keys()):
        found[name] = COMMON[name]
    for name in family.per_layer:
        found[f"per_layer_{name}"] = dataclasses.replace(found[name], listed=True)
    if family.balance == "ours":
        found["router_aux_loss_coef"] = COMMON["router_aux_loss_coef"]
    return {**found, **family.own_keys}


def _key(model_type: str, name: str, annotation: str) -> Key:
    optional = "None" in annotation
    if name in COMMON:
        return COMMON[name]
    if "dict" in annotation or "Config" in annotation:
        raise ConfigError(f"{model_type}: key {name} is annotated {annotation}: its row must say what it may be")
    listed = "list" in annotation
    if "bool" in annotation and "str" not in annotation:
        return dataclasses.replace(FLAG, optional=optional, listed=listed)
    words = _WORDS.get(name)
    if words or ("str" in annotation and "int" not in annotation):
        choices = words or ((*ACTIVATIONS, "relu2") if _ACTIVATION.search(name) else None)
        if choices is None:
            raise ConfigError(f"{model_type}: key {name} is a word: its row must say which ones there are")
        return Key(kind=str, choices=choices, optional=optional, listed=listed)
    if "float" in annotation:
        named = next((key for pattern, key in _BY_NAME if key.kind is float and pattern.search(name)), _RATE)
    else:
        named = next((key for pattern, key in _BY_NAME if key.kind is int and pattern.search(name)), _SIZE)
    return dataclasses.replace(named, optional=optional or named.optional, listed=listed)
