"""Commands about models: what a checkpoint writes, and which versions are installed.

Decides nothing; `moe/` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from barnraise.cli.options import MOST_SEED, Json, number
from barnraise.cli.output import print_json, print_pairs, print_sample
from protocol.errors import ConfigError


def version(as_json: Json = False) -> None:
    """Which versions are installed."""
    from barnraise import __version__
    from barnraise.versions import installed_versions

    found = installed_versions() | {"barnraise": __version__}
    print_json(found) if as_json else print_pairs(found.items())


def sample(
    checkpoint: Annotated[Path, typer.Argument(help="A Hugging Face folder, such as a run's checkpoint.")],
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "def ",
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to write.")] = 200,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="The same seed writes the same text.")] = 0,
    temperature: Annotated[
        float,
        typer.Option(
            parser=number(least=0, most=100),
            metavar="NUMBER",
            help="Below 1 it is more careful; 0 always takes the likeliest token.",
        ),
    ] = 0.8,
    as_json: Json = False,
) -> None:
    """Let a checkpoint write some text."""
    if not (checkpoint / "config.json").is_file():
        raise ConfigError(f"{checkpoint} holds no checkpoint: there is no config.json in it")
    from moe.export import sample as write_sample

    text = write_sample(checkpoint, prompt, tokens, seed, temperature=temperature)
    if as_json:
        print_json({"prompt": prompt, "text": text, "seed": seed, "temperature": temperature})
    else:
        print_sample(prompt + text)
