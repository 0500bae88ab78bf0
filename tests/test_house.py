"""How the house is kept: no file too long to be read in one sitting, no link or path that leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

from tests.test_imports import ROOMS

ROOT = Path(__file__).parents[1]
MAX_LINES = 350
GENERATED = ("*_pb2.py", "*_pb2_grpc.py")
FOLDERS = "|".join((*ROOMS, "tests", "docs", "results"))
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[a-z0-9_/-]+\.(?:py|md|json|proto)\b")
HISTORY = ("CHANGELOG.md", "docs/log.md", "docs/decisions/*")
"""What was so when it was written."""


def test_no_file_is_too_long() -> None:
    assert long_files(ROOT) == set()


def test_every_link_of_the_docs_leads_to_a_file() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    linked = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    ]
    assert len(linked) > 30
    assert [(page.name, link) for page, link in linked if not (page.parent / link).exists()] == []


def test_every_file_that_docs_or_code_speak_of_is_there() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    code = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    read = [path for path in (*pages, *code) if not any(path.match(pattern) for pattern in HISTORY)]
    named = [(path, name) for path in read for name in PATH.findall(path.read_text(encoding="utf-8"))]
    assert len(named) > 100
    assert [(str(path.relative_to(ROOT)), name) for path, name in named if not (ROOT / name).exists()] == []


def test_a_path_is_told_from_a_placeholder() -> None:
    text = "`results/NAME.json`, our/worker/a.py, worker/gone.py; `docs/decisions/0099-x.md`"
    assert PATH.findall(text) == ["worker/gone.py", "docs/decisions/0099-x.md"]


def test_a_long_file_is_found_and_a_generated_one_is_not(tmp_path: Path) -> None:
    for room in ROOMS:
        (tmp_path / room).mkdir()
    for name, lines in {"a.py": 350, "b.py": 351, "b_pb2.py": 351}.items():
        (tmp_path / "moe" / name).write_text("pass\n" * lines)
    assert long_files(tmp_path) == {"moe/b.py"}


def long_files(root: Path) -> set[str]:
    """Python files of the rooms, other than generated ones, with more than MAX_LINES lines."""
    return {
        str(path.relative_to(root))
        for room in ROOMS
        for path in (root / room).rglob("*.py")
        if not any(path.match(pattern) for pattern in GENERATED)
        and path.read_text(encoding="utf-8").count("\n") > MAX_LINES
    }
