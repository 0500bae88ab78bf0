"""The table of guards is in step with the product, the tests and docs/security.md. `make soak` cuts each one out."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guards.guard import ROOT, TESTS, Cut, Guard, Moved
from tests.guards.table import EXCEPTIONS, GUARDS

PAGE = ROOT / "docs" / "security.md"


def names_of_tests() -> set[str]:
    """Without the case that is named, where one is."""
    return {test.partition("[")[0] for guard in GUARDS for test in guard.tests}


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_is_where_the_table_says(guard: Guard) -> None:
    for path, content in guard.edits(ROOT).items():
        assert content != path.read_text(encoding="utf-8")
        ast.parse(content)  # what is left without it is a program: it is to fail its test, not its import


def test_a_guard_that_moved_or_stands_twice_is_told() -> None:
    cut = Cut(file="x", text="if bad:", without="if False:")
    for content in ("if worse:", "if bad:\nif bad:"):
        with pytest.raises(Moved, match="the guard has moved"):
            cut.applied(content)


def test_every_guard_is_there_once() -> None:
    cuts = {(guard.cuts[0].text, guard.cuts[0].without, *guard.tests) for guard in GUARDS}  # as `--resume` knows them
    assert len(cuts) == len(GUARDS)


def test_every_test_named_exists() -> None:
    there = {
        f"{path.name}::{node.name}"
        for path in (ROOT / TESTS).glob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert names_of_tests() - there == set()


def test_every_test_of_the_page_is_that_of_a_guard() -> None:
    page = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+\.py::test_\w+)`", page))
    assert named - names_of_tests() == set(EXCEPTIONS)
    assert names_of_tests() <= named
    assert f"{len(GUARDS)} guards" in page


@pytest.mark.soak
def test_every_test_fails_without_its_guard(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.guards", "--json", str(tmp_path / "guards.json")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(ran.stdout[-2000:])
    assert ran.returncode == 0, ran.stdout + ran.stderr
