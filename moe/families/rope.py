"""Rotary embeddings in the closed form of a configuration: `rope_theta` alone, or else `rope_parameters`.

Decides which kinds of rotary embedding a run may have; touches nothing. Holds always: a plain one is said by its base
(`rope_theta`), any other by `rope_parameters`, either flat or by kind of layer, and never by both, so that one model
has one closed form; nothing in it depends on the sequences seen before, because a lease must be replayable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from moe.families.keys import FLAG, Key
from protocol.errors import ConfigError

PLAIN: Final = "rope_theta"
CLOSED: Final = "rope_parameters"
DEFAULT_THETA: Final = 10000.0

KINDS: Final = ("default", "linear", "yarn", "llama3", "proportional")
_REFUSED: Final = {
    "dynamic": "it depends on the longest sequence that was seen before",
    "longrope": "it switches its frequencies by the length of the longest sequence of a batch",
}
_THETA: Final = Key(kind=float, low=1.0, high=1e12)
_FACTOR: Final = Key(kind=float, low=1e-3, high=1e6)
_BETA: Final = Key(kind=float, low=1e-3, high=1e6, optional=True)
_PARAMETERS: Final[Mapping[str, Key]] = {
    "rope_type": Key(kind=str, choices=KINDS),
    "rope_theta": _THETA,
    "factor": _FACTOR,
    "partial_rotary_factor": Key(kind=float, low=1e-3, high=1.0),
    "original_max_position_embeddings": Key(kind=int, low=1, high=1 << 24),
    "attention_factor": Key(kind=float, low=0.0, high=1e6, optional=True),
    "beta_fast": _BETA,
    "beta_slow": _BETA,
    "mscale": Key(kind=float, low=0.0, high=1e6, optional=True),
    "mscale_all_dim": Key(kind=float, low=0.0, high=1e6, optional=True),
    "truncate": FLAG,
    "low_freq_factor": _FACTOR,
    "high_freq_factor": _FACTOR,
    "mrope_section": Key(kind=int, low=0, high=512, listed=True),
    "mrope_interleaved": FLAG,
}
_NEEDED: Final = {
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}
_LABELS: Final = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "linear_attention", "hybrid",
     "hybrid_sliding", "main", "compress"}
)  # fmt: skip
"""What rotary embeddings are told apart by, where a model has several."""


def closed_rope(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entry of the closed form for `rope_parameters` of a class; ConfigError when it has none."""
    given = dict(parameters or {})
    nested = {label: value for label, value in given.items() if value is None or isinstance(value, Mapping)}
    if nested:
        return {CLOSED: {label: None if value is None else _one(value) for label, value in sorted(nested.items())}}
    flat = _one({"rope_theta": DEFAULT_THETA, **given})
    if flat.keys() == {"rope_type", "rope_theta"} and flat["rope_type"] == "default":
        return {PLAIN: flat["rope_theta"]}
    return {CLOSED: flat}


def _one(given: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in given.items() if key != "type"}
    kind = values.setdefault("rope_type", given.get("type", "default"))
    if kind in _REFUSED:
        raise ConfigError(f"rotary embedding of type {kind!r} is not supported: {_REFUSED[kind]}")
    floats = {key for key, rule in _PARAMETERS.items() if rule.kind is float}
    kept = {
        key: float(value) if key in floats and isinstance(value, int) and not isinstance(value, bool) else value
        for key, value in sorted(values.items())
    }
    if why := _problem_of_one(kept):
        raise ConfigError(f"this rotary embedding is not supported: {why}")
    return kept


def rope_problem(values: Mapping[str, Any]) -> str | None:
    """What is wrong with the rotary part of a closed form, which has one of the two keys; None when it is sound."""
    if PLAIN in values:
        why = _THETA.problem(values[PLAIN])
        return f"{PLAIN} {why}" if why else None
    given = values[CLOSED]
    if not isinstance(given, Mapping) or not given or len(given) > len(_PARAMETERS):
        return f"{CLOSED} expected an object, got {given!r:.60}"
    nested = {label: value for label, value in given.items() if value is None or isinstance(value, Mapping)}
    if not nested:
        why = _problem_of_one(given)
        return f"{CLOSED}: {why}" if why else None
    if strange := sorted(str(label)[:60] for label in given if label not in _LABELS or label not in nested)[:5]:
        return f"{CLOSED}: unknown kinds of layers {strange}"
    for label, one in nested.items():
        if one is not None and (why := _problem_of_one(one)):
            return f"{CLOSED}: {label}: {why}"
    return None


def _problem_of_one(values: Mapping[str, Any]) -> str | None:
    if strange := sorted(str(key)[:60] for key in values if key not in _PARAMETERS)[:5]:
        return f"unknown keys {strange}"
    for key, value in values.items():
        if why := _PARAMETERS[key].problem(value):
            return f"{key} {why}"
    kind = values.get("rope_type")
    if missing := [key for key in ("rope_type", "rope_theta", *_NEEDED.get(str(kind), ())) if key not in values]:
        return f"type {kind!r:.60} needs {', '.join(missing)}"
    return None


def rope_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` for the class, of a sound closed form."""
    if PLAIN in values:
        return {"rope_type": "default", "rope_theta": float(values[PLAIN])}
    return {label: dict(one) if isinstance(one, Mapping) else one for label, one in values[CLOSED].items()}
