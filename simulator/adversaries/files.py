"""An attack by its name: a row of the table, one of byzfl's, or one in a researcher's own file.

Decides the spelling: `NAME`, `byzfl:CLASS`, or `PATH.py:NAME`, where NAME is an `Attack` at the file's top level.
Touches that file, which is run as the researcher's own code that it is: nothing of a run or of a network comes here.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from protocol.errors import ConfigError
from simulator.adversaries.attack import Attack
from simulator.adversaries.byzfl import BYZFL_ATTACKS
from simulator.adversaries.table import ATTACKS


def attack_named(name: str) -> Attack:
    """The attack that `name` stands for; ConfigError, with what to do, where there is none."""
    if name in ATTACKS:
        return ATTACKS[name]
    if name in BYZFL_ATTACKS:
        return BYZFL_ATTACKS[name]
    path, colon, row = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path), row)
    if name.startswith("byzfl:"):
        raise ConfigError(f"unknown attack {name!r}; of byzfl there are {', '.join(BYZFL_ATTACKS)}")
    raise ConfigError(f"unknown attack {name!r}; known: {', '.join(ATTACKS)}; or FILE.py:NAME for one of your own")


def whole_name(name: str) -> str:
    """The same name, for a process with another working directory."""
    path, colon, row = name.rpartition(":")
    return f"{Path(path).resolve()}:{row}" if colon and path.endswith(".py") else name


def _from_file(path: Path, row: str) -> Attack:
    if not path.is_file():
        raise ConfigError(f"attack {path}:{row}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"attack_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"attack {path}:{row}: {path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise ConfigError(f"attack {path}:{row}: the file does not load: {type(error).__name__}: {error}") from error
    rows = {known: value for known, value in vars(module).items() if isinstance(value, Attack)}
    if row not in rows:
        found = getattr(module, row, None)
        what = f"there is no `{row}`" if found is None else f"`{row}` is {type(found).__name__}, not Attack"
        hint = f"it has {', '.join(sorted(rows))}" if rows else "it has none: see CONTRIBUTING.md, Add an attack"
        raise ConfigError(f"attack {path}:{row}: {what} in it; {hint}")
    return rows[row]
