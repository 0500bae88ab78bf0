"""A name means one thing in the whole product: no class shares its name with another, or with an alias elsewhere."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from tests.test_imports import ROOMS

ROOT = Path(__file__).parents[1]
SHARED: set[str] = set()
"""Those that are still to go. None may join them, and none stays here once it is gone."""


def classes_and_aliases(source: str) -> tuple[set[str], set[str]]:
    """What a file defines at its top level that others can use as a type."""
    body = ast.parse(source).body
    classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
    assigned = (node for node in body if isinstance(node, ast.Assign) and "TypeVar(" not in ast.unparse(node.value))
    targets = (target for node in assigned for target in node.targets)
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    aliases = {name for name in names if name[:1].isupper() and not name.isupper()}
    return classes, aliases


def shared_names(sources: dict[str, str]) -> set[str]:
    places, of_classes = defaultdict(list), set()
    for path, source in sources.items():
        classes, aliases = classes_and_aliases(source)
        of_classes |= {name for name in classes if not name.startswith("_")}
        for name in classes | aliases:
            places[name].append(path)
    return {name for name in of_classes if len(places[name]) > 1}


def test_no_class_shares_its_name() -> None:
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if "_pb2" not in path.name]
    assert len(files) > 200
    assert shared_names({str(path): path.read_text(encoding="utf-8") for path in files}) == SHARED


def test_a_shared_name_is_found() -> None:
    lone = {"a.py": "class Pace: ...", "b.py": "class Patience: ...\nPACE = 1"}
    assert shared_names(lone) == set()
    assert shared_names({**lone, "c.py": "class Pace: ..."}) == {"Pace"}
    assert shared_names({**lone, "c.py": "Pace = dict[str, int]"}) == {"Pace"}
