"""Join links handed over through a folder: an operator's machine writes them, each worker takes one.

Decides who gets which link: renaming a file is atomic, so that of many workers starting at once each takes another one.
This is for machines that share a disk or a volume (containers, clusters); people paste links.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from barnraise.cli.output import print_json
from protocol.errors import ConfigError
from protocol.folders import telling_folder_trouble

LINK_SUFFIX = ".link"
POLL_S = 0.5
MAX_LINK_CHARACTERS = 2048
MAX_CLAIMANT = 200


def write_links(folder: Path, links: Sequence[str]) -> list[Path]:
    """One new file for each link, readable by this user only; each appears whole or not at all.

    No name is ever given twice, whoever writes there at the same moment; the oldest links come first by name.
    """
    require_writable(folder)
    written: list[Path] = []
    with telling_folder_trouble(folder):
        for number, link in enumerate(links, start=1):
            path = folder / f"invite-{int(time.time())}-{number:03d}-{secrets.token_hex(8)}{LINK_SUFFIX}"
            temporary = path.with_suffix(".tmp")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "w", encoding="ascii") as file:
                    file.write(link + "\n")
                temporary.rename(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            written.append(path)
    return written


def give_links(links: list[str], *, to: Path | None, as_json: bool = False) -> None:
    """Print join links, or write each into a file of its own."""
    if to is not None:
        written = [str(path) for path in write_links(to, links)]
        print_json({"files": written}) if as_json else print(f"{len(written)} join links are in {to}", flush=True)
    elif as_json:
        print_json({"join_links": links})
    else:
        for link in links:
            print(link, flush=True)


def require_writable(folder: Path) -> None:
    """ConfigError where no file can be made in `folder`: asked before links are made that could not be handed over."""
    with telling_folder_trouble(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, probe = tempfile.mkstemp(prefix=".", dir=folder)
        os.close(descriptor)
        Path(probe).unlink()


def claim_link(folder: Path, *, claimant: str | None = None, wait_s: float = 600.0) -> str:
    """This worker's link: the one that it claimed before, or the first free one, waiting until there is one."""
    claimant = re.sub(r"[^A-Za-z0-9_.-]", "_", claimant or socket.gethostname())[:MAX_CLAIMANT]  # becomes a file's name
    deadline_s = time.monotonic() + wait_s
    mine = folder / f"taken-by-{claimant}"
    while not mine.exists():
        for free in sorted(folder.glob(f"*{LINK_SUFFIX}")):
            try:
                free.rename(mine)
            except FileNotFoundError:
                continue  # another worker was faster
            break
        else:
            if time.monotonic() >= deadline_s:
                raise ConfigError(f"no free join link appeared in {folder} within {wait_s:.0f} s")
            time.sleep(POLL_S)
    return mine.read_text(encoding="ascii").strip()


def read_link(source: Path) -> str:
    """The join link in a file, or on standard input where `source` is `-`: no other user of the machine sees it."""
    if str(source) == "-":
        text = sys.stdin.readline(MAX_LINK_CHARACTERS)
    else:
        try:
            with source.open(encoding="ascii") as file:
                text = file.read(MAX_LINK_CHARACTERS)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read a join link from {source}: {error}") from error
    if not text.strip():
        raise ConfigError(f"{'standard input' if str(source) == '-' else source} holds no join link")
    return text.strip()
