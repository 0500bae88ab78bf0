"""How a secret is asked for: on the terminal, or over a file descriptor.

Decides that it is never in an argument or the environment, where other users and child processes see it.
"""

from __future__ import annotations

import getpass
import os
import sys
from typing import Annotated

import typer

Descriptor = Annotated[
    int | None,
    typer.Option(
        "--passphrase-fd",
        metavar="N",
        min=0,
        help="Read the passphrase from this file descriptor, up to the first line's end: for scripts.",
    ),
]


def passphrase(descriptor: int | None, *, twice: bool = False, word: str = "Passphrase") -> str:
    """What somebody types, or what stands on the first line of a file descriptor."""
    from protocol.errors import ConfigError

    if descriptor is not None:
        try:
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.readline(4096).decode().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"nothing could be read from file descriptor {descriptor}: {error}") from error
    if not sys.stdin.isatty():
        raise ConfigError(f"nobody is there to be asked for the {word.lower()}: give --passphrase-fd N")
    given = getpass.getpass(f"{word}: ")
    if twice and getpass.getpass("Again: ") != given:
        raise ConfigError("the two are not the same; nothing was written")
    return given
