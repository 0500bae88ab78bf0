"""Shared by all rooms' tests: a small corpus, which come first, and signals that reach what they start."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)  # a machine that is busy with something else has found nothing
settings.load_profile("unhurried")

LONGEST = ("test_readme.py", "test_compose.py")
"""Begun first: at the end one process would wait for them alone."""


def pytest_configure() -> None:
    """Where the suite was started to ignore them (`nohup`, a shell's background), its programs would, too.

    What is ignored stays so through exec, what is handled does not; the suite itself goes on as it was told to.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Otherwise in the order in which they stand."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real text, small enough to be prepared in a moment: this project's own sources."""
    folder = tmp_path_factory.mktemp("corpus")
    room = Path(__file__).parents[1] / "simulator"
    for source in sorted(room.rglob("*.py")):
        name = "-".join(source.relative_to(room).parts)
        (folder / name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return folder
