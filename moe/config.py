"""The closed configuration of a model: which keys a run may name, and within which ranges.

Decides what a model configuration may say; touches nothing. Holds always: a dictionary that `config_from_json` accepts
names every key of its architecture and no other, so two machines that agree on it build the same model. Nothing in it
can name code, files or addresses. What makes training depend on chance (dropout, router noise) is not expressible,
because a lease must be replayable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from transformers import MixtralConfig, OlmoeConfig, PreTrainedConfig, Qwen3MoeConfig

from protocol.errors import ConfigError, MalformedMessage

Json = dict[str, Any]

ACTIVATIONS: Final = ("silu", "gelu", "gelu_pytorch_tanh", "relu")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """What one key's value may be."""

    kind: type
    low: float = 0
    high: float = 0
    multiple_of: int = 1
    optional: bool = False
    many: bool = False

    def problem(self, value: object) -> str | None:
        """Why `value` is not allowed; None when it is."""
        if value is None:
            return None if self.optional else "must not be null"
        if self.many and isinstance(value, list):
            if len(value) > self.high + 1:
                return f"has {len(value)} entries, more than {int(self.high) + 1}"
            return next((why for entry in value if (why := self._problem_of_one(entry))), None)
        return self._problem_of_one(value)

    def _problem_of_one(self, value: object) -> str | None:
        if self.kind is str:
            return None if value in ACTIVATIONS else f"expected one of {', '.join(ACTIVATIONS)}, got {value!r:.60}"
        if self.kind is bool:
            return None if isinstance(value, bool) else f"expected true or false, got {value!r:.60}"
        number = isinstance(value, int) or (self.kind is float and isinstance(value, float) and math.isfinite(value))
        if isinstance(value, bool) or not number:
            return f"expected a finite {self.kind.__name__}, got {value!r:.60}"
        assert isinstance(value, int | float)
        if not self.low <= value <= self.high:
            return f"expected {self.low:g} to {self.high:g}, got {value!r:.60}"
        if self.multiple_of > 1 and value % self.multiple_of:
            return f"expected a multiple of {self.multiple_of}, got {value!r:.60}"
        return None


MAX_EXPERTS_IN_ALL: Final = 1 << 17
"""Layers times experts: eight times the largest published model's. A million of them took 8 s just to be laid out."""

# Widths are multiples of 8: torch's grouped_mm wants every bf16 row to start on a 16-byte boundary.
_WIDTH = _Rule(kind=int, low=8, high=1 << 16, multiple_of=8)
# Upper ends lie above every published model of these architectures and keep a hostile number from building for hours.
_COMMON: Final[Mapping[str, _Rule]] = {
    "vocab_size": _Rule(kind=int, low=2, high=1 << 20),
    "hidden_size": _WIDTH,
    "intermediate_size": _WIDTH,
    "num_hidden_layers": _Rule(kind=int, low=1, high=256),
    "num_attention_heads": _Rule(kind=int, low=1, high=512),
    "num_key_value_heads": _Rule(kind=int, low=1, high=512),
    "num_experts": _Rule(kind=int, low=1, high=4096),
    "num_experts_per_tok": _Rule(kind=int, low=1, high=256),
    "hidden_act": _Rule(kind=str),
    "max_position_embeddings": _Rule(kind=int, low=1, high=1 << 24),
    "initializer_range": _Rule(kind=float, low=1e-6, high=10.0),
    "rms_norm_eps": _Rule(kind=float, low=1e-12, high=1e-1),
    "rope_theta": _Rule(kind=float, low=1.0, high=1e9),
    "tie_word_embeddings": _Rule(kind=bool),
    "router_aux_loss_coef": _Rule(kind=float, low=0.0, high=10.0),
    "pad_token_id": _Rule(kind=int, low=0, high=1 << 20, optional=True),
    "bos_token_id": _Rule(kind=int, low=0, high=1 << 20, optional=True),
    "eos_token_id": _Rule(kind=int, low=0, high=1 << 20, optional=True, many=True),
}
_HEAD_DIM = _Rule(kind=int, low=2, high=1024, multiple_of=2)
_OWN: Final[Mapping[str, Mapping[str, _Rule]]] = {
    "olmoe": {
        "norm_topk_prob": _Rule(kind=bool),
        "attention_bias": _Rule(kind=bool),
        "clip_qkv": _Rule(kind=float, low=1e-3, high=1e6, optional=True),
    },
    "mixtral": {
        "head_dim": _HEAD_DIM,
        "sliding_window": _Rule(kind=int, low=1, high=1 << 24, optional=True),
    },
    "qwen3_moe": {
        "norm_topk_prob": _Rule(kind=bool),
        "attention_bias": _Rule(kind=bool),
        "head_dim": _HEAD_DIM,
        "moe_intermediate_size": _WIDTH,
        "decoder_sparse_step": _Rule(kind=int, low=1, high=256),
        "mlp_only_layers": _Rule(kind=int, low=0, high=255, many=True),
    },
}
_CLASSES: Final[Mapping[str, Callable[..., PreTrainedConfig]]] = {
    "olmoe": OlmoeConfig,
    "mixtral": MixtralConfig,
    "qwen3_moe": Qwen3MoeConfig,
}
MODEL_CLASSES: Final[Mapping[str, str]] = {
    "olmoe": "OlmoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""Architecture to the name of its `transformers` class, which a checkpoint's config.json carries."""


def _rules(model_type: str) -> dict[str, _Rule]:
    return {**_COMMON, **_OWN[model_type]}


def moe_layers(values: Mapping[str, Any]) -> list[int]:
    """Indices of the layers that have experts, of a configuration in JSON form."""
    layers = range(values["num_hidden_layers"])
    step = values.get("decoder_sparse_step", 1)
    dense = set(values.get("mlp_only_layers", []))
    return [layer for layer in layers if layer not in dense and (layer + 1) % step == 0]


def normalises_gates(values: Mapping[str, Any]) -> bool:
    """Whether gate values are renormalised after top-k. Mixtral always does and has no key for it."""
    return bool(values.get("norm_topk_prob", values["model_type"] == "mixtral"))


def _problem(values: Mapping[str, Any]) -> str | None:
    """The first thing that is wrong with a configuration in JSON form; None when it is sound."""
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in _OWN:
        return f"architecture: expected one of {', '.join(_OWN)}, got {model_type!r:.60}"
    rules = _rules(model_type)
    got, expected = set(values) - {"model_type"}, set(rules)
    if got != expected:
        missing, unknown = sorted(expected - got), sorted(str(key)[:60] for key in got - expected)[:5]
        return f"{model_type} configuration: missing keys {missing}, unknown keys {unknown}"
    for key, rule in rules.items():
        if why := rule.problem(values[key]):
            return f"{model_type} configuration: {key} {why}"
    return _relation_problem(values)


def _relation_problem(values: Mapping[str, Any]) -> str | None:
    """What is wrong between keys that are each within their range."""
    heads, kv_heads, hidden = values["num_attention_heads"], values["num_key_value_heads"], values["hidden_size"]
    if "head_dim" not in values and hidden % (2 * heads):
        return f"hidden_size {hidden} is not an even multiple of num_attention_heads {heads}"
    if heads % kv_heads:
        return f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
    if values["num_experts_per_tok"] > values["num_experts"]:
        return f"num_experts_per_tok {values['num_experts_per_tok']} exceeds num_experts {values['num_experts']}"
    experts = values["num_experts"] * values["num_hidden_layers"]
    if experts > MAX_EXPERTS_IN_ALL:
        return f"{experts} experts in all layers, at most {MAX_EXPERTS_IN_ALL} are allowed"
    if not isinstance(values.get("mlp_only_layers", []), list):
        return "mlp_only_layers must be a list"
    if not moe_layers(values):
        return "no layer has experts"
    eos = values["eos_token_id"]
    for token in [values["pad_token_id"], values["bos_token_id"], *(eos if isinstance(eos, list) else [eos])]:
        if token is not None and token >= values["vocab_size"]:
            return f"special token {token} lies outside the vocabulary of {values['vocab_size']}"
    return None


def config_to_json(config: PreTrainedConfig) -> Json:
    """The closed JSON form of a `transformers` configuration; ConfigError with the reason when it has none."""
    if config.model_type not in _OWN:
        raise ConfigError(f"architecture {config.model_type!r} is not supported; one of {', '.join(_OWN)} is")
    _refuse_unsupported(config)
    values: Json = {"model_type": config.model_type}
    for key in _rules(config.model_type):
        if key == "rope_theta":
            values[key] = float((config.rope_parameters or {}).get("rope_theta", 10000.0))
        elif key == "head_dim":
            values[key] = getattr(config, key, None) or config.hidden_size // config.num_attention_heads
        else:
            value = getattr(config, key)
            values[key] = list(value) if isinstance(value, list | tuple) else value
    if why := _problem(values):
        raise ConfigError(f"this model cannot be trained in a run: {why}")
    return values


def _refuse_unsupported(config: PreTrainedConfig) -> None:
    """Refuse what the closed form cannot say, rather than train another model than the one given."""
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    if rope_type != "default":
        raise ConfigError(f"rotary embedding of type {rope_type!r} is not supported; only 'default' is")
    for key in ("attention_dropout", "router_jitter_noise", "use_sliding_window"):
        if getattr(config, key, 0):
            raise ConfigError(f"{key}={getattr(config, key)} is not supported: it must be off")


def config_from_json(values: Mapping[str, Any]) -> PreTrainedConfig:
    """Build the configuration that `values`, perhaps from a stranger, describe; MalformedMessage if they do not."""
    if not isinstance(values, Mapping):
        raise MalformedMessage(f"model configuration: expected an object, got {type(values).__name__}")
    if why := _problem(values):
        raise MalformedMessage(f"model configuration: {why}")
    model_type = values["model_type"]
    rules = _rules(model_type)
    arguments = {
        key: float(value) if rules[key].kind is float and value is not None else value
        for key, value in values.items()
        if key not in ("model_type", "rope_theta")
    }
    if model_type == "mixtral":
        arguments["num_local_experts"] = arguments.pop("num_experts")
    config = _CLASSES[model_type](
        **arguments,
        rope_parameters={"rope_type": "default", "rope_theta": float(values["rope_theta"])},
        architectures=[MODEL_CLASSES[model_type]],
        dtype="float32",
    )
    config._experts_implementation = "grouped_mm"
    return config
