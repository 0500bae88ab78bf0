"""The ten questions of docs/commands.md: each command is one, with its options; each place is on the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from barnraise.cli.app import app
from coordinator.edge.status import WorkerState
from coordinator.engine.stages import Stage
from coordinator.page.rendering import Sheet, render
from tests.coordinator.page.doors import MARIA, Behind, Caller
from tests.coordinator.page.pictures import picture

ROOT = Path(__file__).parents[2]
EXAMPLES = {"ROUND": "3", "LEASE": "r3.9", "WORKER": "otter"}


def questions() -> list[tuple[str, str, str]]:
    page = (ROOT / "docs" / "commands.md").read_text()
    table = page.partition("## Ten questions")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ") and "?" in line]
    return [(question, command, place) for question, command, place in rows]


def parsed(words: list[str]) -> Any:
    """As the command itself would take them; raises where it would not. Nothing is done."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    return command.make_context("barnraise", list(words))


def test_there_are_ten() -> None:
    assert len(questions()) == 10


@pytest.mark.parametrize("command", [command for _, command, _ in questions()])
def test_each_command_takes_what_the_table_says(command: str, tmp_path: Path) -> None:
    lines = re.findall(r"`([^`]+)`", command)
    assert lines
    assert lines[0].startswith("barnraise ")
    whole = ""
    for line in lines:
        whole = line if line.startswith("barnraise ") else f"{whole} {line}"  # an option, of the one before
        words = [str(tmp_path) if word == "RUN" else EXAMPLES.get(word, word) for word in shlex.split(whole)]
        taken = parsed(words[1:]).params
        assert taken.get("state", "") in {"", *WorkerState}
        assert taken.get("stage", "") in {"", *Stage}


def test_a_wrong_option_would_be_seen(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"--rouns"):
        parsed(["status", str(tmp_path), "--rouns"])


async def test_each_place_is_on_the_page() -> None:
    from coordinator.page.app import page_app
    from coordinator.page.board import Board
    from coordinator.page.operator import OperatorPages

    view, behind = picture(), Behind()
    board = Board(lambda: view.at_s, operators=True)
    board.publish(view)
    caller = Caller(page_app(board, names=set(), abort=lambda _: None, operators=OperatorPages(board, behind.door())))
    await caller.log_in(behind.access.ticket(MARIA))
    pages = [render(sheet, view, 1).document.decode() for sheet in Sheet]
    pages.append((await caller.get("/operator")).body.decode())
    panels: dict[str, str] = {}
    for panel in re.findall(r"<section .*?</section>", "".join(pages), flags=re.DOTALL):
        (title, *_) = re.findall(r"<h2[^>]*>(.*?)</h2>", panel)
        panels[title] = panels.get(title, "") + panel
    for question, _, place in questions():
        panel = None
        for part in place.split("; "):
            named = [title for title in panels if part.startswith(title)]
            panel = panels[max(named, key=len)] if named else panel
            assert panel is not None, f"{question} {part}: no such panel among {sorted(panels)}"
            for words in re.findall(r"\*([^*]+)\*", part):
                assert words in panel.replace("&#39;", "'"), f"{question} {part}: {words!r} is not in that panel"
