"""How the house is kept: no import circle, no file too long to be read in one sitting, no link that leads nowhere.

What is too long still stands in a list here, which may only get shorter: an entry that holds again fails the test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("barnraise", "simulator", "coordinator", "worker", "aggregation", "moe", "protocol", "benchmarks")
MAX_LINES = 350
GENERATED = ("*_pb2.py", "*_pb2_grpc.py")

STILL_LONG = {
    "benchmarks/scale.py",
    "coordinator/run/pump.py",
    "simulator/deterministic/planted.py",
    "simulator/deterministic/training.py",
    "simulator/deterministic/world.py",
    "worker/agent.py",
    "worker/client.py",
    "worker/session.py",
}


def test_no_file_is_too_long() -> None:
    assert long_files(ROOT) == STILL_LONG


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph(*ROOMS, cache_dir=None)  # imports inside of functions, and for types alone, count too
    assert circles(graph.modules, graph.find_modules_directly_imported_by) == set()


def test_every_link_of_the_docs_leads_to_a_file() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    linked = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    ]
    assert len(linked) > 30
    assert [(page.name, link) for page, link in linked if not (page.parent / link).exists()] == []


def test_every_file_that_a_contributor_is_sent_to_is_there() -> None:
    named = re.findall(r"`([\w./]+/[\w.]+\.\w+)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_long_file_is_found_and_a_generated_one_is_not(tmp_path: Path) -> None:
    for room in ROOMS:
        (tmp_path / room).mkdir()
    for name, lines in {"a.py": 350, "b.py": 351, "b_pb2.py": 351}.items():
        (tmp_path / "moe" / name).write_text("pass\n" * lines)
    assert long_files(tmp_path) == {"moe/b.py"}


@pytest.mark.parametrize(
    ("imports", "expected"),
    [
        ({"a": "bc", "b": "c", "c": ""}, []),
        ({"a": "b", "b": "c", "c": "a", "d": "a"}, ["abc"]),
        ({"a": "b", "b": "a", "c": "bd", "d": "c"}, ["ab", "cd"]),
        ({"a": "bc", "b": "a", "c": "a"}, ["abc"]),
    ],
)
def test_circles_are_found(imports: dict[str, str], expected: list[str]) -> None:
    assert circles(imports, lambda module: imports[module]) == {frozenset(one) for one in expected}


def long_files(root: Path) -> set[str]:
    """Python files of the rooms, other than generated ones, with more than MAX_LINES lines."""
    return {
        str(path.relative_to(root))
        for room in ROOMS
        for path in (root / room).rglob("*.py")
        if not any(path.match(pattern) for pattern in GENERATED)
        and path.read_text(encoding="utf-8").count("\n") > MAX_LINES
    }


def circles(modules: Iterable[str], imported_by: Callable[[str], Iterable[str]]) -> set[frozenset[str]]:
    """Sets of more than one module in which each reaches each other by imports."""
    reached = {module: _reached_from(module, imported_by) for module in modules}
    together = ({other for other in reached[module] if module in reached[other]} | {module} for module in reached)
    return {frozenset(one) for one in together if len(one) > 1}


def _reached_from(module: str, imported_by: Callable[[str], Iterable[str]]) -> set[str]:
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = set(imported_by(waiting.pop())) - found
        found |= new
        waiting += new
    return found
