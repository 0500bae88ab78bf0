"""The closed configuration of a model: which keys a run may name, and within which ranges.

Decides what a model configuration may say; touches nothing. Holds always: a dictionary that `config_from_json` accepts
names every key of its architecture and no other, so two machines that agree on it build the same model. Nothing in it
can name code, files or addresses. What makes training depend on chance (dropout, router noise) is not expressible,
because a lease must be replayable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from transformers import PreTrainedConfig

from moe.families import FAMILIES, Family, family_named, why_not
from moe.families.derive import CANNOT_BUILD, config_class, has_rotary, switched_off
from moe.families.family import OUR_BALANCE_COEFFICIENT
from moe.families.rope import CLOSED, PLAIN, closed_rope, rope_arguments, rope_problem
from protocol.errors import ConfigError, MalformedMessage

Json = dict[str, Any]

MAX_EXPERTS_IN_ALL: Final = 1 << 17
"""Layers times experts: eight times the largest published model's. A million of them took 8 s just to be laid out."""


def normalises_gates(values: Mapping[str, Any]) -> bool:
    """Whether gate values are renormalised after top-k, of a configuration in JSON form."""
    return family_named(values["model_type"]).normalises_gates(values)


def _problem(values: Mapping[str, Any]) -> str | None:
    """The first thing that is wrong with a configuration in JSON form; None when it is sound."""
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        return f"architecture {model_type!r:.60} is not supported: {why_not(model_type)}"
    rules = FAMILIES[model_type].keys
    expected = set(rules)
    if has_rotary(model_type):
        expected.add(CLOSED if CLOSED in values else PLAIN)
    got = set(values) - {"model_type"}
    if got != expected:
        missing, unknown = sorted(expected - got), sorted(str(key)[:60] for key in got - expected)[:5]
        return f"{model_type} configuration: missing keys {missing}, unknown keys {unknown}"
    for key, rule in rules.items():
        if why := rule.problem(values[key]):
            return f"{model_type} configuration: {key} {why}"
    if has_rotary(model_type) and (why := rope_problem(values)):
        return f"{model_type} configuration: {why}"
    return _relation_problem(FAMILIES[model_type], values)


def _relation_problem(family: Family, values: Mapping[str, Any]) -> str | None:
    """What is wrong between keys that are each within their range."""
    heads, kv_heads, hidden = values["num_attention_heads"], values.get("num_key_value_heads"), values["hidden_size"]
    if not family.derived and "head_dim" not in values and hidden % (2 * heads):
        return f"hidden_size {hidden} is not an even multiple of num_attention_heads {heads}"
    if kv_heads is not None and heads % kv_heads:
        return f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
    if "kv_lora_rank" in values and kv_heads != heads:
        return f"num_key_value_heads {kv_heads} is not num_attention_heads {heads}, as low-rank keys need it"
    experts, top_k = values["num_experts"], values["num_experts_per_tok"]
    if top_k > experts:
        return f"num_experts_per_tok {top_k} exceeds num_experts {experts}"
    groups, chosen = family.groups_of(values)
    if groups > 1 and (experts % groups or experts // groups < 2 or not 1 <= chosen <= groups):
        return f"{experts} experts do not lie in {groups} groups of two or more, of which {chosen} are chosen from"
    if groups > 1 and chosen * (experts // groups) < top_k:
        return f"{chosen} groups of {experts // groups} experts have fewer than num_experts_per_tok {top_k}"
    in_all_experts = experts * values["num_hidden_layers"]
    if in_all_experts > MAX_EXPERTS_IN_ALL:
        return f"{in_all_experts} experts in all layers, at most {MAX_EXPERTS_IN_ALL} are allowed"
    if not isinstance(values.get("mlp_only_layers") or [], list):
        return "mlp_only_layers must be a list"
    if not _some_layer_has_experts(values):
        return "no layer has experts"
    eos = values["eos_token_id"]
    for token in [values["pad_token_id"], values["bos_token_id"], *(eos if isinstance(eos, list) else [eos])]:
        if token is not None and token >= values["vocab_size"]:
            return f"special token {token} lies outside the vocabulary of {values['vocab_size']}"
    return None


def _some_layer_has_experts(values: Mapping[str, Any]) -> bool:
    """False where the keys that several families share say that all layers are dense; the layout knows the others."""
    step = values.get("decoder_sparse_step") or 1
    dense = set(values.get("mlp_only_layers") or [])
    return any(layer not in dense and (layer + 1) % step == 0 for layer in range(values["num_hidden_layers"]))


def config_to_json(config: PreTrainedConfig) -> Json:
    """The closed JSON form of a `transformers` configuration; ConfigError with the reason when it has none."""
    family = family_named(config.model_type)
    _refuse_unsupported(family, config)
    values: Json = {"model_type": config.model_type}
    for key in family.keys:
        if key == "tie_word_embeddings" and has_rotary(config.model_type):  # where manifests have had it
            values |= closed_rope(config.rope_parameters)
        value = _read(family, config, key)
        values[key] = list(value) if isinstance(value, list | tuple) else value
    if why := _problem(values):
        raise ConfigError(f"this model cannot be trained in a run: {why}")
    return values


def _read(family: Family, config: PreTrainedConfig, key: str) -> Any:
    """What the configuration says of one of our keys; what holds where it says nothing."""
    name = key.removeprefix("per_layer_")
    if name != key and name in family.per_layer:
        return [getattr(one, name) for one in config.per_layer_config]
    if key in family.per_layer:
        return vars(config)[key]  # of the whole: asked as an attribute, it is refused as ambiguous
    value: Any = config
    for part in family.spelt.get(key, key).split("."):
        value = getattr(value, part, None)
    if value is not None:
        return value
    if key == "head_dim":
        return config.hidden_size // config.num_attention_heads
    if key == "router_aux_loss_coef" and family.balance == "ours":
        return OUR_BALANCE_COEFFICIENT
    return False if key == "tie_word_embeddings" else None


def _refuse_unsupported(family: Family, config: PreTrainedConfig) -> None:
    """Refuse what the closed form cannot say, rather than train another model than the one given."""
    for key in (*switched_off(family.model_type), *family.must_be_off):
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part, None)
        if value:
            raise ConfigError(f"{key}={value!s:.60} is not supported: it must be off")


def config_from_json(values: Mapping[str, Any]) -> PreTrainedConfig:
    """Build the configuration that `values`, perhaps from a stranger, describe; MalformedMessage if they do not."""
    if not isinstance(values, Mapping):
        raise MalformedMessage(f"model configuration: expected an object, got {type(values).__name__}")
    if why := _problem(values):
        raise MalformedMessage(f"model configuration: {why}")
    family = family_named(values["model_type"])
    try:
        config = _built(family, values)
        meant = config_to_json(config)
    except (*CANNOT_BUILD, ConfigError) as error:
        raise MalformedMessage(f"model configuration: {family.model_type} cannot be so: {error!s:.300}") from error
    if changed := sorted(key for key in values if meant.get(key) != values[key])[:5]:
        raise MalformedMessage(f"model configuration: {family.model_type} makes something else of {', '.join(changed)}")
    return config


def _built(family: Family, values: Mapping[str, Any]) -> PreTrainedConfig:
    keys, build = family.keys, cast(Callable[..., PreTrainedConfig], config_class(family.model_type))
    arguments: Json = dict.fromkeys(switched_off(family.model_type), 0.0)
    for key, rule in keys.items():
        value = values[key]
        if rule.kind is float and value is not None:
            value = [float(one) for one in value] if isinstance(value, list) else float(value)
        arguments[family.spelt.get(key, key)] = list(value) if isinstance(value, list) else value
    for key in family.per_layer:
        for layer, value in enumerate(arguments.pop(f"per_layer_{key}")):
            arguments.setdefault("per_layer_config", {}).setdefault(layer, {})[key] = value
    for path in [path for path in arguments if "." in path]:
        part, _, key = path.partition(".")
        arguments.setdefault(part, {})[key] = arguments.pop(path)
    if has_rotary(family.model_type):
        arguments["rope_parameters"] = rope_arguments(values)
    return build(**arguments, architectures=[family.class_name], dtype="float32")
