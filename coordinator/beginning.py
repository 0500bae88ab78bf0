"""What a run begins with where its operator said nothing: rates, audits, the codec; and one engine table over another.

Decides defaults that depend on what kind of run it is; those that do not are the fields' own, in
`coordinator.engine.config` and `coordinator.settings`. Touches nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, get_type_hints

from coordinator.engine.config import EngineConfig
from protocol.codecs_int import INT4

GOING_ON: Mapping[str, Any] = {"learning_rate": 4e-3, "muon_learning_rate": 0.02, "warmup_rounds": 2}
"""What a run that begins with a checkpoint has in place of the recipe's rates (a quarter), unless it is told otherwise:
at the recipe's own, every step away from a checkpoint whose training ended at low rates raises the loss at first."""

OPEN_AUDITS: Mapping[str, Any] = {"budget": 1.0}
"""What an open run begins with in place of the engine's none, unless it is told otherwise (docs/decisions/0028)."""

USUAL_CODEC: Final = INT4.name
"""A quarter of bf16's bytes, nothing kept between leases, and measured to cost nothing (docs/decisions/0057)."""

NESTED: Mapping[str, Any] = {
    name: kind for name, kind in get_type_hints(EngineConfig).items() if dataclasses.is_dataclass(kind)
}
"""The engine's settings that are tables of their own."""


def begun(engine: Mapping[str, Any], *, goes_on: bool) -> dict[str, Any]:
    """The engine table with which a run begins; `goes_on`: with a checkpoint."""
    table = going_on(engine) if goes_on else dict(engine)
    return merged({"audits": OPEN_AUDITS}, table) if table.get("open_run") else table


def merged(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """An engine table with `overrides` in it, setting by setting."""
    whole = {**table, **overrides}
    for name in NESTED.keys() & table.keys() & overrides.keys():
        if isinstance(table[name], Mapping) and isinstance(overrides[name], Mapping):
            whole[name] = {**table[name], **overrides[name]}
    return whole


def going_on(engine: Mapping[str, Any]) -> dict[str, Any]:
    """The engine table of a run that begins with a checkpoint: `engine`, above what `GOING_ON` says."""
    gentle = dict(GOING_ON)
    rounds = engine.get("max_rounds")
    if isinstance(rounds, int) and rounds <= gentle["warmup_rounds"]:
        del gentle["warmup_rounds"]
    return merged({"inner": gentle}, engine) if "inner" in engine else {**engine, "inner": gentle}
