"""Settings that change while a run goes on: which may, and from when on they count.

Decides that a change counts from the next round on, and that a round of which nothing is leased yet is not open. Holds
always: leases that are out keep what is written in them; the configuration as a whole is one that a run could begin
with; what earlier leases or the blocks' meaning rest on never changes. See docs/decisions/0015.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from coordinator.engine import pacing
from coordinator.engine.config import EngineConfig, check_config
from coordinator.engine.events import SettingChanged, SettingsFixed
from coordinator.engine.history import SettingChange, remembered
from coordinator.engine.phases import Phase
from coordinator.engine.placement import redrawn_holders
from coordinator.engine.records import from_plain, to_plain
from coordinator.engine.state import EngineState
from coordinator.engine.turn import Turn
from protocol.errors import ConfigError, IllegalEvent, LocalError

DERIVED = frozenset({"run_id", "columns", "train_sequences", "min_columns", "codec"})
"""What follows from the model, the data and the run's own settings, and nobody sets here."""
MEMORY = frozenset(
    {
        "inner.optimizer",
        "inner.masters",
        "inner.moments",
        "inner.frozen_dtype",
        "inner.trunk",
        "inner.lora_rank",
    }
)
FIXED = frozenset({*DERIVED, *MEMORY, "heartbeat_interval_s", "max_staleness", "screening.enabled"})
"""What never changes. Sessions that are open keep the heartbeat they were told, and the memory that a lease takes; a
submission that was accepted late counts by the staleness of its acceptance; what arrived unmeasured cannot be
judged."""

LARGEST = 2**53
"""Up to here every whole number is a float, too; no setting means anything above."""


def settings_of(config: EngineConfig) -> dict[str, Any]:
    """Every setting under its whole key, as `quorum` and `inner.learning_rate`, with its value."""
    return flat(to_plain(config, EngineConfig))


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables under whole keys."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def with_setting(config: EngineConfig, key: str, value: Any) -> EngineConfig:
    """`config` with one setting changed; ConfigError for an unknown name, an impossible value, or one that is fixed."""
    plain = to_plain(config, EngineConfig)
    *path, name = key.split(".")
    table = plain
    for step in path:
        table = table.get(step)
        if not isinstance(table, dict):
            raise ConfigError(f"there is no setting `{key}`")
    if name not in table or isinstance(table[name], dict):
        raise ConfigError(f"there is no setting `{key}`")
    if key in FIXED:
        raise ConfigError(f"`{key}` is fixed for the whole run")
    if isinstance(value, int | float) and not abs(value) <= LARGEST:
        raise ConfigError(f"`{key}` must be a number of at most {LARGEST}, got {value}")
    table[name] = value
    try:
        changed = from_plain(plain, EngineConfig)
    except LocalError as error:
        raise ConfigError(f"`{key}` cannot be {json.dumps(value)}") from error
    check_config(changed)
    return changed


def on_setting_changed(turn: Turn, event: SettingChanged) -> None:
    """One setting is another from the next round on; from now on where nothing of this one is leased."""
    state = turn.state
    chosen = state.chosen_config
    try:
        changed = with_setting(chosen, event.key, json.loads(event.value))
    except (ConfigError, ValueError) as error:
        raise IllegalEvent(f"setting {event.key} to {event.value}: {error}") from error
    row = SettingChange(
        number=1 + (state.setting_changes[-1].number if state.setting_changes else 0),
        at_s=state.now_s,
        key=event.key,
        before=json.dumps(settings_of(chosen)[event.key]),
        value=event.value,
    )
    state.setting_changes = remembered(state.setting_changes, row)
    state.next_config = changed
    if state.phase is Phase.GATHERING and state.round.next_lease == 1:
        adopt(state)
        current = state.round
        redrawn = redrawn_holders(state.config, turn.draws, current.round, current.sticky)
        state.open_round(replace(current, redrawn=redrawn))


def on_settings_fixed(turn: Turn, event: SettingsFixed) -> None:
    """What is fixed already stays."""
    turn.state.fixed_settings = {**event.settings, **turn.state.fixed_settings}


def adopt(state: EngineState) -> None:
    """What was set since the last round opened counts from here on."""
    before, config = state.config, state.next_config
    if config is None:
        return
    state.config, state.next_config = config, None
    if config.inner == before.inner:
        return
    # Honest norms follow the recipe: those of another one are no measure. Late ones are brought to the new steps.
    state.norm_history, state.gain_spread = {}, 0.0
    for lease_id, record in list(state.leases.items()):
        scale = pacing.norm_scale(config, record.lease) / pacing.norm_scale(before, record.lease)
        if record.norms and record.counted_in is None and scale != 1.0:
            norms = tuple(replace(norm, norm_l2=norm.norm_l2 * scale) for norm in record.norms)
            state.update_lease(lease_id, norms=norms)
