"""What a guard is: a piece of the product, what is left without it, and the tests that must then fail.

Plain data; touches nothing. A guard may need several cuts at once, where two defences overlap and either would do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.guards.cuts import Cut

ROOT = Path(__file__).parents[2]
TESTS = "tests/edge"


def place_of(test: str) -> str:
    """A test's file and name from the root: those without a folder are in `TESTS`."""
    return test if test.startswith("tests/") else f"{TESTS}/{test}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """One guard of the edge."""

    line: str
    """The line of docs/security.md that it stands behind."""
    cuts: tuple[Cut, ...]
    tests: tuple[str, ...]
    """Each must fail without the guard: `test_x.py::test_y`, with `[id]` for one case; else any case will do."""
    note: str = ""
    """Why several cuts at once, or why what is left looks as it does."""
    makes_run: bool = False
    """It is passed when a run is made: the tests make theirs anew."""

    @property
    def name(self) -> str:
        """For people: where it is and what is cut."""
        return f"{self.line}: {self.cuts[0].told()[:110]} ({self.tests[0].partition('::')[2]})"

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from every other one."""
        return (*(cut.told() for cut in self.cuts), *self.tests)

    def edits(self, root: Path) -> dict[Path, str]:
        """Each file's text without the guard; Moved where the table is out of date."""
        contents: dict[Path, str] = {}
        for cut in self.cuts:
            path = cut.path(root)
            before = contents[path] if path in contents else path.read_text(encoding="utf-8")
            contents[path] = cut.applied(before)
        return contents


def guard(
    line: str, cut: Cut, *tests: str, also: tuple[Cut, ...] = (), note: str = "", makes_run: bool = False
) -> Guard:
    """A guard that is one cut, or one cut and those that overlap it."""
    return Guard(line=line, cuts=(cut, *also), tests=tests, note=note, makes_run=makes_run)
