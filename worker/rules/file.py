"""Where the rules stand: `rules.toml` in the worker's home, and beside it the note of a pause.

Decides that a file which makes no sense changes nothing: the rules that were in force go on, and the trouble is told.
Holds always: what is written is whole, and keeps the volunteer's own comments. Touches these two files only.
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table

from protocol.errors import ConfigError
from protocol.private_files import write_private
from worker.disk import private_folder
from worker.rules.model import RUNS, VolunteerRules, keys, of_run

RULES_FILE = "rules.toml"
PAUSE_FILE = "pause.json"
_HEAD = """# Your rules for this machine. A running worker reads this file again within two seconds of a change.
# `barnraise worker set KEY VALUE` edits it for you; `barnraise worker rules` shows what is in force.
"""


def read_rules(path: Path) -> VolunteerRules:
    """What the file says; without a file, nothing is ruled. ConfigError where it makes no sense."""
    return VolunteerRules.checked(_document(path).unwrap(), str(path))


def set_rule(path: Path, key: str, text: str) -> tuple[Any, Any]:
    """Set one rule, in TOML or as a bare word; its value before and after. ConfigError, and nothing is changed, where
    there is no such rule or it cannot have that value."""
    known = [name for name, _, _ in keys()]
    if key not in known and of_run(key) is None:
        part = key.rpartition(".")[2]
        near = [name for name in known if part and part in name] or get_close_matches(key, known, n=1, cutoff=0.6)
        meant = f"did you mean {' or '.join(near[:3])}? " if near else ""
        raise ConfigError(f"there is no rule {key!r}: {meant}`barnraise worker rules` lists them all")
    document, before = _document(path), read_rules(path)
    *sections, name = _parts(key)
    table: Any = document
    for section in sections:
        if section not in table:
            table[section] = tomlkit.table(is_super_table=section == RUNS)
        table = table[section]
        if not isinstance(table, Table):
            raise ConfigError(f"{path}: {section} is no table")
    table[name] = _value(text, _at(before, key))
    after = VolunteerRules.checked(document.unwrap(), f"{key} stays as it was")
    private_folder(path.parent)
    write_private(path, tomlkit.dumps(document).encode())
    return _at(before, key), _at(after, key)


def template() -> str:
    """The file with every rule as it is without being set."""
    lines, section = [_HEAD], ""
    for key, meaning, default in keys():
        table, _, name = key.partition(".")
        if table != section:
            lines.append(f"\n[{table}]\n")
            section = table
        value = list(default) if isinstance(default, tuple) else default
        lines.append(f"# {meaning}\n{name} = {tomlkit.item(value).as_string()}\n")
    return "".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseNote:
    """The volunteer said: no work for now. It outlives the worker's process."""

    until_s: float | None = None
    """Seconds since 1970; None: until they say otherwise."""

    def is_over(self, wall_s: float) -> bool:
        """Whether it has ended by itself."""
        return self.until_s is not None and wall_s >= self.until_s


def note_pause(home: Path, note: PauseNote | None) -> None:
    """Write it down; None: there is none any more."""
    path = home / PAUSE_FILE
    if note is None:
        path.unlink(missing_ok=True)
    else:
        private_folder(home)
        write_private(path, json.dumps(asdict(note)).encode())


def noted_pause(home: Path) -> PauseNote | None:
    """What was written; a note that cannot be read is a pause without an end: that is what was meant."""
    try:
        content = (home / PAUSE_FILE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError:
        return PauseNote()
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        until_s = json.loads(content)["until_s"]
        return PauseNote(until_s=float(until_s) if until_s is not None and math.isfinite(until_s) else None)
    return PauseNote()


def _document(path: Path) -> tomlkit.TOMLDocument:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = template()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _at(rules: VolunteerRules, key: str) -> Any:
    if (run := of_run(key)) is not None:
        return rules.share_of((run,))
    section, name = key.split(".")
    return getattr(getattr(rules, section), name)


def _parts(key: str) -> tuple[str, ...]:
    """A key's tables and its name; a run's name may have dots of its own."""
    run = of_run(key)
    return tuple(key.split(".")) if run is None else (RUNS, run, "share")


def _value(text: str, before: Any) -> Any:
    """What was written, as the rule wants it: one word for many is one of them, and a number may be a word."""
    try:
        value = tomlkit.value(text)
    except TOMLKitError:
        value = tomlkit.item(text)
    plain = value.unwrap() if hasattr(value, "unwrap") else value
    if isinstance(before, tuple) and not isinstance(plain, list):
        return [plain]
    return text if isinstance(before, str) and not isinstance(plain, str) else value
