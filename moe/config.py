"""The closed configuration of a model: which keys a run may name, and within which ranges.

Decides what a model configuration may say; touches nothing. Holds always: a dictionary that `config_from_json` accepts
names every key of its architecture and no other, so two machines that agree on it build the same model. Nothing in it
can name code, files or addresses. What makes training depend on chance (dropout, router noise) is not expressible,
because a lease must be replayable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from transformers import CONFIG_MAPPING, PreTrainedConfig

from moe.families import FAMILIES, family_named
from protocol.errors import ConfigError, MalformedMessage

Json = dict[str, Any]

MAX_EXPERTS_IN_ALL: Final = 1 << 17
"""Layers times experts: eight times the largest published model's. A million of them took 8 s just to be laid out."""


def moe_layers(values: Mapping[str, Any]) -> list[int]:
    """Indices of the layers that have experts, of a configuration in JSON form."""
    layers = range(values["num_hidden_layers"])
    step = values.get("decoder_sparse_step", 1)
    dense = set(values.get("mlp_only_layers", []))
    return [layer for layer in layers if layer not in dense and (layer + 1) % step == 0]


def normalises_gates(values: Mapping[str, Any]) -> bool:
    """Whether gate values are renormalised after top-k, of a configuration in JSON form."""
    return family_named(values["model_type"]).normalises_gates(values)


def _problem(values: Mapping[str, Any]) -> str | None:
    """The first thing that is wrong with a configuration in JSON form; None when it is sound."""
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        return f"architecture: expected one of {', '.join(FAMILIES)}, got {model_type!r:.60}"
    rules = FAMILIES[model_type].keys
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
    family = family_named(config.model_type)
    _refuse_unsupported(config)
    values: Json = {"model_type": config.model_type}
    for key in family.keys:
        if key == "rope_theta":
            values[key] = float((config.rope_parameters or {}).get("rope_theta", 10000.0))
        elif key == "head_dim":
            values[key] = getattr(config, key, None) or config.hidden_size // config.num_attention_heads
        else:
            value = getattr(config, family.spelt.get(key, key))
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
    family = family_named(values["model_type"])
    keys, config_class = family.keys, cast(Callable[..., PreTrainedConfig], CONFIG_MAPPING[family.model_type])
    arguments = {
        family.spelt.get(key, key): float(value) if keys[key].kind is float and value is not None else value
        for key, value in values.items()
        if key not in ("model_type", "rope_theta")
    }
    config = config_class(
        **arguments,
        rope_parameters={"rope_type": "default", "rope_theta": float(values["rope_theta"])},
        architectures=[family.class_name],
        dtype="float32",
    )
    config._experts_implementation = "grouped_mm"
    return config
