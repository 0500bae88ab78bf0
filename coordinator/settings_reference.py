"""`docs/settings.md` from the code: every setting with its type, default, meaning, and when it counts; and the comments
of a new run's `settings.toml`.

    python -m coordinator.settings_reference            writes the page
    python -m coordinator.settings_reference --check    exit code 1 where the page is another

Decides how the page reads; what is on it stands in the fields and the sentences below them. Touches the page alone.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator.engine.changes import DERIVED
from coordinator.engine.config import EngineConfig
from coordinator.setting_counts import Counts, counts
from coordinator.settings import RunSettings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
_HEAD = """# Settings

<!-- Made by `python -m coordinator.settings_reference`; `make lint` says when it is stale. -->

A run's settings stand in `settings.toml` in its folder: the run's own at the top, those of the rounds in `[engine]`,
`[engine.inner]` and `[engine.screening]`. There is one truth about them, the journal, and three classes:

| class | counts | is changed by |
|---|---|---|
| machine | at each start | editing `settings.toml` |
| run | at `init`, for the whole run | nothing: begin another run |
| round | from the next round on; leases that are out keep theirs | `barnraise coordinator set RUN KEY VALUE` |

- `barnraise coordinator settings RUN` lists what a run has. `KEY` is as below, `VALUE` as in TOML or a bare word;
  `none` takes out what may be left out. The whole is checked as at `init`.
- A round of which nothing is leased yet takes a change at once: a run that waits for more workers than come is freed by
  `set RUN min_workers 2`.
- `set` works while the run is served and while it is not. The change is journalled first, then the file is written,
  its comments and order kept; a process that dies in between leaves a file that the next start brings into line.
- A file that was edited against the journal is refused at the start, with both values and what to do. What `[engine]`
  does not name, the journal decides.
- A change of `inner.*` makes screening forget the norms it has seen: they belong to another recipe. For one round norms
  are compared with those of that round alone, as in a run's first.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One setting."""

    key: str
    kind: str
    default: str
    meaning: str
    counts: Counts


def entries() -> list[Entry]:
    """Every setting that there is, in the order of the code."""
    return [*_run_entries(), *_engine_entries(EngineConfig, "")]


def page() -> str:
    """The whole of docs/settings.md."""
    found, parts = entries(), [_HEAD]
    for title, among in (
        ("The run's own", [one for one in found if one.key in RunSettings.model_fields]),
        ("`[engine]`", [one for one in found if one.key not in RunSettings.model_fields and "." not in one.key]),
        *((f"`[engine.{name}]`", [one for one in found if one.key.startswith(f"{name}.")]) for name in _tables(found)),
    ):
        parts.append(f"\n## {title}\n\n| key | type | default | class | meaning |\n|---|---|---|---|---|\n")
        parts += [f"| `{e.key}` | {e.kind} | {e.default} | {e.counts} | {e.meaning} |\n" for e in among]
    return "".join(parts)


_WIDTH = 100
_CHANGED_BY = {
    Counts.MACHINE: "edit it here; it counts from the next start on",
    Counts.RUN: "fixed for the whole run",
    Counts.ROUND: "changed by `barnraise coordinator set RUN KEY VALUE`",
}


def commented(toml: str) -> str:
    """`toml`, a run's settings, with what each means above it, and how it is changed."""
    known = {one.key: one for one in entries()}
    lines = ["# A run's settings. What is not here has its default: docs/settings.md.", ""]
    table = ""
    for line in toml.splitlines():
        name = line.partition(" = ")[0]
        if line.startswith("["):
            table = f"{line.strip('[]')}.".removeprefix("engine.")
        elif (entry := known.get(table + name)) is not None:
            meaning = entry.meaning.replace("\\|", "|").replace("`", "")
            told = f"{meaning} ({_CHANGED_BY[entry.counts]})" if meaning else _CHANGED_BY[entry.counts]
            lines += [f"# {part}" for part in textwrap.wrap(told, _WIDTH)]
        lines.append(line)
    return "\n".join(lines) + "\n"


def _tables(found: list[Entry]) -> list[str]:
    return list(dict.fromkeys(one.key.partition(".")[0] for one in found if "." in one.key))


def _run_entries() -> Iterator[Entry]:
    meanings = _meanings(RunSettings)
    for name, field in RunSettings.model_fields.items():
        if name != "engine":
            yield _entry(name, field.annotation, field.default, meanings.get(name, ""))


def _engine_entries(kind: Any, prefix: str) -> Iterator[Entry]:
    meanings, hints = _meanings(kind), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if prefix + field.name in DERIVED:
            continue
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _engine_entries(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield _entry(prefix + field.name, hints[field.name], field.default, meanings.get(field.name, ""))


def _entry(key: str, annotation: Any, default: Any, meaning: str) -> Entry:
    return Entry(
        key=key,
        kind=_kind(annotation),
        default="none" if default is None else f"`{json.dumps(default)}`",
        meaning=meaning.replace("|", "\\|"),
        counts=counts(key),
    )


def _kind(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{one}`" for one in arguments)
    if type(None) in arguments:
        return f"{_kind(next(one for one in arguments if one is not type(None)))} or none"
    if origin is tuple:
        return f"list of {_kind(arguments[0])}"
    return {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}[annotation]


def _meanings(kind: type) -> dict[str, str]:
    """Field to the sentence below it, also of the classes that `kind` inherits from."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if one.__module__.partition(".")[0] not in {"coordinator", "protocol"}:
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def main(arguments: list[str]) -> int:
    """Write the page, or say whether it is what would be written."""
    fresh = page()
    if arguments == ["--check"]:
        if PAGE.is_file() and PAGE.read_text("utf-8") == fresh:
            return 0
        print(f"{PAGE.name} is stale: run `make generate`", file=sys.stderr)
        return 1
    PAGE.write_text(fresh, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
