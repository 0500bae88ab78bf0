"""How a setting of a run is changed, and how `settings.toml` is held against the journal.

Decides when a file is refused: the journal says what counts, and a file that says something else was edited. One case
is not an edit: the file is written after the event is durable, so a process that dies in between leaves the former
value in it. What was surely written is kept beside the events (`SETTINGS_WRITTEN`), and what was changed since is
brought into line at the next start. Touches the run folder; only its coordinator, or the holder of its lock, does so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import tomlkit

from coordinator.engine.arithmetic import caution_after
from coordinator.engine.changes import DERIVED, FIXED, settings_of, with_setting
from coordinator.engine.config import EngineConfig
from coordinator.engine.events import SettingChanged
from coordinator.engine.phases import Phase
from coordinator.engine.records import to_plain
from coordinator.engine.state import EngineState
from coordinator.run.pump import load_engine
from coordinator.run.stopped_run import StoppedRun, stopped_run
from coordinator.setting_counts import Counts, counts
from coordinator.settings import RunSettings, check_engine, value_of
from coordinator.store.journal import Journal
from protocol.errors import ConfigError
from protocol.ids import RunId
from protocol.local_place import own_name
from protocol.private_files import read_private, write_private

if TYPE_CHECKING:
    from coordinator.run.folder import RunFolder

SETTINGS_WRITTEN = "settings_written"
"""Number of the last change that is known to be in the file."""

_log = structlog.get_logger("coordinator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What `set` did."""

    key: str
    before: Any
    value: Any
    from_round: int
    """The first round that it counts in."""
    file_trouble: str = ""
    """Why `settings.toml` does not show it yet; the next start, or the next change, writes it."""
    caution: str = ""
    """What an operator should know who chose this; empty where it is as usual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingRow:
    """One setting."""

    key: str
    counts: Counts
    value: Any
    next_value: Any
    """From the next round on."""


class SettingsFile:
    """One run's `settings.toml`, beside an open journal."""

    def __init__(self, folder: RunFolder, journal: Journal) -> None:
        self._folder = folder
        self._path: Path = folder.root / "settings.toml"
        self.written = int(journal.meta(SETTINGS_WRITTEN) or 0)

    def unfixed(self, state: EngineState) -> dict[str, str]:
        """What no event has fixed yet, with the file's values: the run, or the setting, is older than the check."""
        return {key: value for key, value in self._fixed().items() if key not in state.fixed_settings}

    def check(self, state: EngineState) -> None:
        """ConfigError where the file was edited against the journal, with all that differs and what to do."""
        problems = [
            f"`{key}` is {value} there and {state.fixed_settings[key]} in the journal: it is fixed, put it back"
            for key, value in self._fixed().items()
            if state.fixed_settings.get(key, value) != value
        ]
        journalled, lagging = settings_of(state.chosen_config), self._may_lag(state)
        for key, value in self._folder.settings().stated(state.config).items():
            if value != journalled[key] and json.dumps(value) not in lagging.get(key, ()):
                there, here = json.dumps(value), json.dumps(journalled[key])
                command = f"barnraise coordinator set {self._folder.root} {key} {_as_typed(value)}"
                todo = "it is fixed, put it back" if key in FIXED else f"put it back, or have it so with `{command}`"
                problems.append(f"`{key}` is {there} there and {here} in the journal: {todo}")
        if problems:
            raise ConfigError(f"{self._path} was edited, and the run goes by its journal. {'; '.join(problems)}")

    def write(self, state: EngineState, key: str | None = None) -> str:
        """Have the file show `key` and whatever was changed since it was written; why not, where it cannot be."""
        changes = state.setting_changes
        late = {change.key for change in changes if change.number > self.written} | ({key} if key else set())
        values = settings_of(state.chosen_config)
        try:
            text = read_private(self._path).decode()
            fresh = with_engine_settings(text, {key: values[key] for key in sorted(late)})
            if fresh != text:
                write_private(self._path, fresh.encode())
        except (ConfigError, ValueError) as error:
            _log.warning("settings_file_not_written", reason=str(error))
            return str(error)
        self.written = changes[-1].number if changes else 0
        return ""

    def _may_lag(self, state: EngineState) -> dict[str, set[str]]:
        """Key to the earlier values that the file may still have."""
        found: dict[str, set[str]] = {}
        for change in state.setting_changes:
            if change.number > self.written:
                found.setdefault(change.key, set()).add(change.before)
        return found

    def _fixed(self) -> dict[str, str]:
        return self._folder.fixed_settings(self._folder.settings())


def planned(state: EngineState, key: str, text: str) -> tuple[str, Any, Any]:
    """The setting's whole key, its value and its new value; ConfigError where it cannot be changed to that."""
    key = key.strip().removeprefix("engine.")
    if state.phase in {Phase.FINISHING, Phase.OVER}:
        raise ConfigError("the run has taken its last step: no round follows in which a setting could count")
    value = chosen_value(state.chosen_config, key, text)
    return key, settings_of(state.chosen_config)[key], value


def chosen_value(config: EngineConfig, key: str, text: str) -> Any:
    """What `text` makes of the setting `key` of a run with `config`: as in TOML, a bare word, or `none`.

    ConfigError where there is no such setting, it does not change while a run goes on, or the whole would not do.
    """
    values = settings_of(config)
    if key not in values or key in DERIVED:
        raise ConfigError(_why_not_settable(key))
    value = None if text == "none" else value_of(text.strip())
    path, _, name = key.rpartition(".")
    table = {one: setting for one, setting in to_plain(config, EngineConfig).items() if one not in DERIVED}
    (table[path] if path else table)[name] = value
    try:
        checked = check_engine(table, config.codec)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    typed = settings_of(checked)[key]
    if typed != values[key] or key in FIXED:
        with_setting(config, key, typed)
    return typed


def with_engine_settings(text: str, values: Mapping[str, Any]) -> str:
    """`text`, a settings.toml, with these settings of the engine in it; None takes one out. Comments stay."""
    document = tomlkit.parse(text)
    for key, value in values.items():
        table: Any = document
        *path, name = f"engine.{key}".split(".")
        for step in path:
            if step not in table:
                table[step] = tomlkit.table()
            table = table[step]
        if value is not None:
            table[name] = value
        elif name in table:
            del table[name]
    return tomlkit.dumps(document)


def first_round(state: EngineState) -> int:
    """The round from which on the settings that were chosen last count."""
    return int(state.round.round) + (state.next_config is not None)


def change_while_stopped(folder: RunFolder, key: str, text: str) -> Change:
    """Change a setting of a run that nobody serves at present; ConfigError when somebody does."""
    with stopped_run(folder) as run:
        return _change_in(folder, run, key, text)


def _change_in(folder: RunFolder, run: StoppedRun, key: str, text: str) -> Change:
    state, file = run.state, SettingsFile(folder, run.journal)
    key, before, value = planned(state, key, text)
    if value != before:
        run.record(SettingChanged(at_s=run.now_s, actor=own_name(), key=key, value=json.dumps(value)))
    trouble = file.write(state, key)
    run.journal.set_meta(SETTINGS_WRITTEN, str(file.written))
    return Change(
        key=key,
        before=before,
        value=value,
        from_round=first_round(state),
        file_trouble=trouble,
        caution=caution_after(state.chosen_config, key),
    )


def setting_rows(run: RunFolder) -> list[SettingRow]:
    """By the journal, but for what is this machine's: what can be changed, then the latter, then what is fixed."""
    journal = Journal.open(run.journal_path, writable=False)
    try:
        state = load_engine(journal, run.draw_secret(), only_read=True)[0].state
    finally:
        journal.close()
    settings = run.settings()
    plain = settings.model_dump(mode="json", exclude={"engine"})
    plain |= {key: json.loads(text) for key, text in state.fixed_settings.items() if key in plain}
    rows = [SettingRow(key=key, counts=counts(key), value=value, next_value=value) for key, value in plain.items()]
    chosen = settings_of(state.chosen_config)
    rows += [
        SettingRow(key=key, counts=counts(key), value=value, next_value=chosen[key])
        for key, value in settings_of(state.config).items()
        if key not in DERIVED
    ]
    order = (Counts.ROUND, Counts.MACHINE, Counts.RUN)
    return sorted(rows, key=lambda row: order.index(row.counts))


def _as_typed(value: Any) -> str:
    """As an operator types it."""
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def _why_not_settable(key: str) -> str:
    if key in RunSettings.model_fields and key != "engine":
        if counts(key) is Counts.MACHINE:
            return f"`{key}` is this machine's: edit it in settings.toml, it counts from the next start on"
        return f"`{key}` is fixed for the whole run"
    settable = (one for one in settings_of(EngineConfig(run_id=RunId(""), columns=1, train_sequences=1)))
    known = ", ".join(one for one in settable if counts(one) is Counts.ROUND)
    return f"there is no setting `{key}`; these change while a run goes on: {known}"
