"""`barnraise worker set` and `barnraise worker rules`: the volunteer's own rules, shown and changed.

Decides formats only; the rules stand in worker/rules, and a worker that runs reads the file again within two seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from barnraise.cli.options import Json
from barnraise.cli.output import print_json, print_table

Home = Annotated[Path | None, typer.Option(help="Where this machine's identity is kept.")]


def set_(
    key: Annotated[
        str,
        typer.Argument(
            help="As when.idle_minutes; `barnraise worker rules` lists them all. Where this machine works for several"
            " runs, runs.NAME.share is one's part of the time, against the others' (1 without being set)."
        ),
    ],
    value: Annotated[str, typer.Argument(help="As in TOML, or a bare word; a rule with many takes one word as one.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Change one of your rules; a worker that runs keeps to it within two seconds."""
    from worker.rejoin import home_root
    from worker.rules.file import RULES_FILE, set_rule

    path = home_root(home) / RULES_FILE
    before, after = set_rule(path, key, value)
    if as_json:
        print_json({"key": key, "before": before, "value": after, "file": str(path)})
    elif before == after:
        print(f"{key} is {_shown(after)}, as it was")
    else:
        print(f"{key} was {_shown(before)} and is {_shown(after)}")


def rules(
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Your rules for this machine: when it works, and what it may take."""
    from worker.rejoin import home_root
    from worker.rules.file import RULES_FILE, read_rules
    from worker.rules.model import RUNS, RunRules, keys

    path = home_root(home) / RULES_FILE
    in_force = read_rules(path).model_dump()
    rows = []
    for key, meaning, default in keys():
        section, name = key.split(".")
        value = in_force[section][name]
        rows.append({"rule": key, "value": value, "default": default, "meaning": meaning})
    for name, run in in_force[RUNS].items():
        meaning, share = RunRules.model_fields["share"].description or "", RunRules().share
        rows.append({"rule": f"{RUNS}.{name}.share", "value": run["share"], "default": share, "meaning": meaning})
    if as_json:
        print_json({"file": str(path), "rules": rows})
        return
    shown = [{**row, "value": _shown(row["value"]) + ("" if row["value"] == row["default"] else " *")} for row in rows]
    print_table(("rule", "value", "meaning"), shown)
    print(f"\n* set by you, in {path}")


def _shown(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"
