"""Commands about models: what a checkpoint writes, and which versions are installed.

Decides nothing; `moe/` does.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from barnraise.cli.options import MOST_SEED, Json, number
from barnraise.cli.output import ProgressLine, SpokenSample, print_json, print_pairs, say_note
from protocol.amounts import parse_bytes
from protocol.errors import ConfigError


def version(as_json: Json = False) -> None:
    """Which versions are installed."""
    from barnraise import __version__
    from barnraise.versions import installed_versions

    found = installed_versions() | {"barnraise": __version__}
    print_json(found) if as_json else print_pairs(found.items())


def sample(
    model: Annotated[
        Path, typer.Argument(help="A Hugging Face folder, such as a run's checkpoint; or a run's folder.")
    ],
    prompt: Annotated[str, typer.Option(help="What the text begins with; - reads it from standard input.")] = "def ",
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to write, at most.")] = 200,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="The same seed writes the same text.")] = 0,
    temperature: Annotated[
        float,
        typer.Option(
            parser=number(least=0, most=100),
            metavar="NUMBER",
            help="Below 1 it is more careful; 0 always takes the likeliest token.",
        ),
    ] = 0.8,
    top_p: Annotated[
        float,
        typer.Option(
            parser=number(above=0, most=1),
            metavar="NUMBER",
            help="Draw from the likeliest tokens that have this probability together; 1 leaves none out.",
        ),
    ] = 1.0,
    dtype: Annotated[
        str, typer.Option(help="What it computes in: fp32 or bf16; auto is bf16 where the weights are kept in it.")
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="For experts that are kept in memory, for example 4GB; half of what is free unless said.",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A folder that has the tokenizer, where the model's own has none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a model write some text. Memory holds what every token passes, and of the experts what there is room for: the
    others are read from the disk when a token goes to them, so a model is tried that this machine could not hold."""
    from barnraise.writers import require_model, writer_of

    require_model(model)
    if dtype not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"dtype {dtype!r:.40}: expected auto, fp32 or bf16")
    memory_bytes = None if memory is None else parse_bytes(memory)
    begun = prompt if prompt != "-" else sys.stdin.read().removesuffix("\n")
    from moe.sampling import Chance, compute_beside_reading

    compute_beside_reading()
    with ProgressLine(quiet=as_json) as tell:
        writer = writer_of(model, dtype=dtype, tokenizer=tokenizer, memory_bytes=memory_bytes, told=tell)
    for sentence in writer.remarks:
        say_note(sentence)
    chance = Chance(seed=seed, temperature=temperature, top_p=top_p)
    if as_json:
        written = writer.write(begun, tokens, chance)
        print_json({"prompt": begun, **dataclasses.asdict(written), **dataclasses.asdict(chance)})
        return
    with SpokenSample() as say:
        say(begun)
        written = writer.write(begun, tokens, chance, say)
    if written.tokens_per_s is not None:
        pace = f"{written.tokens} tokens, {written.tokens_per_s:.2f} a second"
        say_note(f"{pace}, the first one of them after {written.first_s:.1f} s")
