"""Models of a family as people have them: tied, with another rotary embedding, with windows, with more tokens.

Decides how each is said of a family's smallest model, so that tests and docs speak of the same; touches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from moe.config import config_from_json
from moe.families.family import Family
from moe.families.micro import micro_values
from moe.families.rope import CLOSED, PLAIN
from moe.layout import layout
from protocol.errors import ConfigError, MalformedMessage
from protocol.residency import FROZEN

VARIANTS: Final = ("tied", "linear", "yarn", "window", "vocabulary")
_STRETCHED: Final[Mapping[str, Mapping[str, Any]]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
}
_WINDOWED: Final = ("sliding_attention", "hybrid_sliding")


def variant(family: Family, name: str) -> dict[str, Any]:
    """The closed form of that variant of the family's smallest model; ConfigError says why there is none."""
    values = micro_values(family)
    if name == "tied":
        values["tie_word_embeddings"] = True
    elif name == "vocabulary":
        values["vocab_size"] = 1000
    elif name == "window":
        values = _windowed(family, values)
    else:
        stretched = _stretched(values, _STRETCHED[name])
        values = {key: value for key, value in values.items() if key not in (PLAIN, CLOSED)} | stretched
    try:
        cut = layout(config_from_json(values), FROZEN)
    except MalformedMessage as error:
        raise ConfigError(" ".join(str(error).split()).removeprefix("model configuration: ")) from error
    if name == "tied" and not cut.tied:
        raise ConfigError("its class gives it an output head of its own, whatever tie_word_embeddings says")
    return values


def _windowed(family: Family, values: dict[str, Any]) -> dict[str, Any]:
    types = values.get("layer_types") or []
    if not set(types).isdisjoint(_WINDOWED):
        return values  # its smallest model has one
    if "use_sliding_window" in family.must_be_off:
        raise ConfigError("use_sliding_window is not supported: it must be off")
    if "sliding_window" not in values:
        raise ConfigError("no layer of it can look at a window only")
    windowed = {**values, "sliding_window": 4}
    if "use_sliding_window" in values:
        windowed["use_sliding_window"] = True
    if types and "sliding_attention" in family.keys["layer_types"].choices:
        windowed["layer_types"] = ["sliding_attention", *types[1:]]
    return windowed


def _stretched(values: Mapping[str, Any], how: Mapping[str, Any]) -> dict[str, Any]:
    """Every rotary embedding of the model, stretched so, if it is a plain one of several; what else is said stays."""
    if PLAIN in values:
        return {CLOSED: {"rope_theta": values[PLAIN], **how}}
    if CLOSED not in values:
        raise ConfigError("it has no rotary embeddings that could be stretched")
    given = values[CLOSED]
    if "rope_type" in given:
        return {CLOSED: _one(given, how)}
    plain = {label for label, one in given.items() if one is not None and one["rope_type"] == "default"}
    return {CLOSED: {label: _one(one, how) if label in plain else one for label, one in given.items()}}


def _one(given: Mapping[str, Any], how: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: given[key] for key in ("rope_theta", "partial_rotary_factor") if key in given}
    return {**kept, **how}
