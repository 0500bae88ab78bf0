"""README.md's shell blocks: each command, as it stands, ends with exit code 0 for somebody who starts with nothing.

The blocks are taken out of the page and run on a copy of the tree, each part of the page with an empty HOME. What a
command is decides how it is run, so that the page may change without this file: a coordinator and a worker run beside
the others until they are interrupted; a join link that only shows its form becomes one that `invite` printed, with
loopback for a name that leads nowhere from here; installing (pip, git, apt) is left out, as the packages are there
already. Of `make`, everything but the installation is run. By default the number of rounds and workers is smaller than
the page says, and `make soak` runs the lines to the letter.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 900.0
"""For one command; on two cores that have nothing else to do, each takes seconds."""
PATIENCE_S = 300.0
SMALL = {"--workers": "4", "--rounds": "1", "--byzantine": "1"}
INSTALLING = {"apt-get", "cd", "conda", "curl", "git", "pip", "pipx", "python", "python3", "source", ".", "sudo", "uv"}


@dataclass(frozen=True, slots=True)
class Command:
    """One line of a shell block, without its comment."""

    part: str
    """The heading above it."""
    line: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)

    @property
    def program(self) -> str:
        words = [word for word in self.words if "=" not in word.partition("/")[0]]
        return words[0] if words[0] in INSTALLING else Path(words[0]).name

    def starts(self, *words: str) -> bool:
        given = self.words
        return self.program == "barnraise" and tuple(given[1 : 1 + len(words)]) == words


def commands_of(page: str) -> list[Command]:
    """The commands of every block whose language is `sh`, in order."""
    found, part, inside = [], "", None
    for line in page.replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            inside = None if inside is not None else line.removeprefix("```").strip()
        elif inside is None and line.startswith("#"):
            part = line.strip("# ").strip()
        elif inside in {"sh", "bash", "shell", "console"} and shlex.split(line, comments=True):
            found.append(Command(part, _without_comment(line)))
    return found


def _at_most(most: str, found: re.Match[str]) -> str:
    return str(found[1]) + min(found[2], most, key=int)


def _without_comment(line: str) -> str:
    """`line` up to the # that the shell takes for a comment's."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split = True
    source: Any = lexer.instream
    ends = [0]
    while lexer.get_token() is not None:
        ends.append(source.tell())
    return line[: ends[-1]].strip()


COMMANDS = commands_of((ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_page_has_commands_for_all_three_roles() -> None:
    assert {command.program for command in COMMANDS} >= {"make", "barnraise"}
    for words in (("worker", "join"), ("coordinator", "run"), ("coordinator", "invite"), ("status",), ("simulate",)):
        assert any(command.starts(*words) for command in COMMANDS), words


def test_every_command_is_of_a_kind_that_is_run_or_known_to_install() -> None:
    for command in COMMANDS:
        assert command.program in {"make", "barnraise", *INSTALLING}, command.line


@dataclass
class Reader:
    """Somebody who does what the page says, in a fresh copy of the tree."""

    tree: Path
    home: Path
    beside: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        here = {"HOME": str(self.home), "PATH": f"{self.tree / '.venv' / 'bin'}:{os.environ['PATH']}"}
        return {**kept, **here, "PYTHONPATH": str(self.tree), "OMP_NUM_THREADS": "1"}

    def run(self, line: str, **more: str) -> str:
        """Run it to its end; its output."""
        done = subprocess.run(
            ["sh", "-ec", line],
            cwd=self.tree,
            env=self.environment() | more,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{line}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.told()}"
        return done.stdout

    def start(self, line: str, until: str) -> None:
        """Run it beside the others, and wait until it says `until`."""
        log = self.tree / f"beside-{len(self.beside)}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                ["sh", "-ec", f"exec {line}"],
                cwd=self.tree,
                env=self.environment(),
                stdout=file,
                stderr=file,
                text=True,
            )
        self.beside[line] = process
        # Patient without sleeping: the process' own end, or a short wait for it, is what time passes by.
        for _ in range(int(PATIENCE_S)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
            if until in log.read_text() or process.returncode is not None:
                break
        assert until in log.read_text(), f"{line}\n{log.read_text()}"

    def told(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in sorted(self.tree.glob("beside-*.log")))

    def interrupt(self) -> None:
        """Ctrl-C to everything that runs beside, the latest first; each must end well."""
        for line, process in reversed(self.beside.items()):
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0, f"{line}\n{self.told()}"


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    tree, home = tmp_path / "tree", tmp_path / "home"
    home.mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    for name in filter(None, tracked.stdout.split("\0")):
        if (source := ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, tree / name)
    if not tree.exists():
        pytest.skip("not a clone, so there is no telling what belongs to the tree")
    # What `make` and the page's lines would install: the commands, out of this copy, with the packages that are here.
    programs = {"barnraise": f'exec "{sys.executable}" -m barnraise "$@"', "python": f'exec "{sys.executable}" "$@"'}
    made = [command.words[3] for command in COMMANDS if command.words[1:3] == ["-m", "venv"]]
    for environment in (".venv", *made):
        (tree / environment / "bin").mkdir(parents=True)
        for name, line in programs.items():
            (program := tree / environment / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
            program.chmod(0o755)
    (tree / ".venv" / ".ready").touch()
    someone = Reader(tree, home)
    yield someone
    for process in someone.beside.values():
        process.kill()
        process.wait()


def smaller(line: str) -> str:
    """`line` with no more rounds, workers and liars than a test has time for."""
    for option, most in SMALL.items():
        line = re.sub(rf"({option}[ =])(\d+)", partial(_at_most, most), line)
    return line


def with_a_real_link(line: str, links: list[str]) -> str:
    """`line` with a link that was printed in place of the one that only shows its form."""
    link = re.sub(r"//[^/#]*:(\d+)/", r"//127.0.0.1:\1/", links.pop()) if links else "no-link-was-printed"
    return re.sub(r"barnraise://[^'\"\s]+", link, line)


def invites_in_passing(reader: Reader) -> list[str]:
    """The links that the page's own `invite` line prints."""
    (line,) = [command.line for command in COMMANDS if command.starts("coordinator", "invite")][:1]
    return re.findall(r"^barnraise://\S+", reader.run(line), flags=re.MULTILINE)


def of_role(*roles: tuple[str, ...]) -> list[Command]:
    """The commands of each part of the page in which one of these stands, the parts in the order of `roles`."""
    parts: dict[str, None] = {}
    for role in roles:
        parts |= dict.fromkeys(command.part for command in COMMANDS if command.starts(*role))
    return [command for part in parts for command in COMMANDS if command.part == part]


def obey(reader: Reader, command: Command, *, small: bool) -> None:
    line = smaller(command.line) if small else command.line
    if small and command.starts("coordinator", "init") and "--port" not in line:
        line += " --port 0"  # several copies of this test may run on one machine
    if command.program in INSTALLING:
        return
    if command.starts("coordinator", "run"):
        reader.start(line, until="listening on port")
        # The volunteer, who stands above on the page, was sent a link by now.
        reader.links += invites_in_passing(reader)
        for joining in (other for other in COMMANDS if other.starts("worker", "join")):
            reader.start(with_a_real_link(joining.line, reader.links), until="enrolled")
    elif command.starts("worker", "join"):
        pass  # joined when the coordinator was there
    else:
        reader.run(line)


def test_operator_and_volunteer_find_every_command_to_work(reader: Reader) -> None:
    for command in of_role(("coordinator", "run"), ("worker", "join")):
        obey(reader, command, small=True)
    reader.interrupt()


def test_a_researcher_finds_every_command_to_work(reader: Reader) -> None:
    for command in of_role(("simulate",)):
        obey(reader, command, small=True)


@pytest.mark.soak
def test_the_lines_work_to_the_letter(reader: Reader) -> None:
    for command in of_role(("coordinator", "run"), ("worker", "join"), ("simulate",)):
        obey(reader, command, small=False)
    reader.interrupt()


def test_make_knows_what_the_page_asks_of_it(reader: Reader) -> None:
    """Without the installation, and without running all tests inside of a test."""
    targets = [command.words[1] for command in COMMANDS if command.program == "make"]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        planned = reader.run(f"make --dry-run {target}")
        assert "pip install" not in planned
        for line in planned.splitlines():
            if line.startswith(".venv/bin/barnraise "):
                reader.run(f"{line} --help")
            elif line.startswith(".venv/bin/python -m pytest"):
                assert "::" in reader.run(f"{line} --collect-only tests/protocol")


@pytest.mark.soak
def test_make_demo(reader: Reader) -> None:
    reader.run("make demo")


def test_blocks_are_taken_apart() -> None:
    page = "# A\n```sh\n# only words\nbarnraise status run   # why\n\nbarnraise \\\n  sample m --prompt '# def '\n```\n"
    page += "## B\n```text\nnot a command\n```\n```sh\nmake test\n```\n"
    assert [(command.part, command.words) for command in commands_of(page)] == [
        ("A", ["barnraise", "status", "run"]),
        ("A", ["barnraise", "sample", "m", "--prompt", "# def "]),
        ("B", ["make", "test"]),
    ]
    assert smaller("barnraise simulate --workers 8 --rounds 20 --byzantine=2 --seed 7") == (
        "barnraise simulate --workers 4 --rounds 1 --byzantine=1 --seed 7"
    )
    real = with_a_real_link(
        "barnraise worker join 'barnraise://H:P/#F.I' --columns 2", ["barnraise://a.example:7/#f.i"]
    )
    assert real == "barnraise worker join 'barnraise://127.0.0.1:7/#f.i' --columns 2"
