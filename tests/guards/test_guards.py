"""The table of guards is in step with the product, the tests and docs/security.md. `make soak` cuts each one out."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guards.cuts import Cut, Moved, always, becomes, dropped, never, planted, unquoted
from tests.guards.guard import ROOT, Guard, place_of
from tests.guards.table import EXCEPTIONS, GUARDS

PAGE = ROOT / "docs" / "security.md"


def names_of_tests() -> set[str]:
    """Without the case that is named, where one is."""
    return {test.partition("[")[0] for guard in GUARDS for test in guard.tests}


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_is_where_the_table_says(guard: Guard) -> None:
    for path, content in guard.edits(ROOT).items():
        assert ast.dump(ast.parse(content)) != ast.dump(ast.parse(path.read_text(encoding="utf-8")))


PROGRAM = """
import checks
LIMIT = {"size": 3, "age": 4}
class Reader:
    def feed(self, frame, given=None):
        if self.closed:
            raise Closed("closed")
        if len(frame) > LIMIT["size"] or not frame:
            raise Bad(f"got {frame[:8]!r}")
        checks.within(frame, 1, LIMIT["age"], "age")
        given = min(given, LIMIT["age"])
        return given
def other(one, two):
    if one < two:
        raise Bad("more")
    if two < one:
        raise Bad("less")
"""
FEED = "room:Reader.feed"


@pytest.mark.parametrize(
    ("cut", "was", "is_now"),
    [
        (never(FEED, "len(_) > LIMIT['size'] or not frame"), "len(frame) > LIMIT['size'] or not frame", "False"),
        (always(FEED, "self.closed"), "self.closed", "True"),
        (never("room:other", says="less"), "two < one", "False"),
        (never("room:other", "two < one"), "two < one", "False"),
        (dropped(FEED, "not what"), "len(frame) > LIMIT['size'] or not frame", "len(frame) > LIMIT['size']"),
        (dropped(FEED, 'checks.within(..., "age")'), "        checks.within(frame, 1, LIMIT['age'], 'age')\n", ""),
        (dropped("room:LIMIT", '"age"'), ", 'age': 4", ""),
        (becomes(FEED, "min(what, _)", "what"), "min(given, LIMIT['age'])", "given"),
        (becomes(FEED, "raise Bad(...)", "pass"), "raise Bad(f'got {frame[:8]!r}')", "pass"),
        (unquoted(FEED, "frame[:8]"), "frame[:8]!r", "frame[:8]"),
        (planted(FEED, "print(what)", after="what = min(...)"), " return given", " print(given)\n        return given"),
        (planted("room:other", "print(one)"), "    if one < two", "    print(one)\n    if one < two"),
    ],
)  # fmt: skip
def test_a_cut_does_what_it_says_and_nothing_else(cut: Cut, was: str, is_now: str) -> None:
    whole = ast.unparse(ast.parse(PROGRAM))
    assert whole.count(was) == 1
    assert cut.applied(PROGRAM) == whole.replace(was, is_now)


def test_a_cut_is_found_in_another_file_and_layout_under_other_local_names(tmp_path: Path) -> None:
    cut = becomes(FEED, "min(given, LIMIT[_])", "given")
    moved = PROGRAM.replace("given", "asked").replace('LIMIT["age"])', 'LIMIT[\n            "age"  # years\n        ])')
    path = tmp_path / "room" / "deeper" / "reading.py"
    path.parent.mkdir(parents=True)
    path.write_text(moved)
    assert cut.path(tmp_path) == path
    assert "asked = asked\n" in cut.applied(path.read_text())


@pytest.mark.parametrize(
    "cut",
    [
        never(FEED, "self.open"),
        never("room:other", "low < high"),  # either of two
        never("room:Reader.read", "self.closed"),
        becomes(FEED, "LIMIT['age']", "9"),
        dropped(FEED, "checks.without(...)"),  # not a local variable's name
    ],
    ids=lambda cut: cut.told(),
)
def test_a_guard_that_moved_or_stands_twice_is_told(cut: Cut) -> None:
    with pytest.raises(Moved, match="the guard has moved"):
        cut.applied(PROGRAM)


@pytest.mark.parametrize("files", [(), ("one.py", "two.py")])
def test_a_place_that_is_nowhere_or_in_two_files_is_told(tmp_path: Path, files: tuple[str, ...]) -> None:
    (tmp_path / "room").mkdir()
    for name in files:
        (tmp_path / "room" / name).write_text(PROGRAM)
    for cut in (never(FEED, "self.closed"), never("room", "self.closed")):
        with pytest.raises(Moved, match="the guard has moved"):
            cut.path(tmp_path)


def test_every_guard_is_there_once() -> None:
    assert len({guard.key for guard in GUARDS}) == len(GUARDS)


def test_every_test_named_exists() -> None:
    there = {
        f"{path.relative_to(ROOT)}::{node.name}"
        for folder in {Path(place_of(test)).parent for test in names_of_tests()}
        for path in (ROOT / folder).glob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert set(map(place_of, names_of_tests())) - there == set()


def test_every_test_of_the_page_is_that_of_a_guard() -> None:
    page = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:tests/[\w/]+/)?test_\w+\.py::test_\w+)`", page))
    assert {test for test in named if not test.startswith("tests/")} - names_of_tests() == set(EXCEPTIONS)
    assert names_of_tests() <= named
    assert f"{len(GUARDS)} guards" in page


@pytest.mark.soak
def test_every_test_fails_without_its_guard(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.guards", "--json", str(tmp_path / "guards.json")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(ran.stdout[-2000:])
    assert ran.returncode == 0, ran.stdout + ran.stderr
