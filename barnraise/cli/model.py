"""Commands about models: what fits in this memory, what a checkpoint writes, and which versions are installed.

Decides nothing; `moe/` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from barnraise.cli.options import MOST_SEED, Json, number, one_of
from barnraise.cli.output import parse_bytes, print_json, print_pairs, print_sample, print_table
from moe.presets import PRESETS
from protocol.residency import FROZEN, RESIDENCIES
from protocol.text import human_bytes


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
    from protocol.errors import ConfigError

    if not (checkpoint / "config.json").is_file():
        raise ConfigError(f"{checkpoint} holds no checkpoint: there is no config.json in it")
    from moe.export import sample as write_sample

    text = write_sample(checkpoint, prompt, tokens, seed, temperature=temperature)
    if as_json:
        print_json({"prompt": prompt, "text": text, "seed": seed, "temperature": temperature})
    else:
        print_sample(prompt + text)


def plan(
    preset: Annotated[str, typer.Option(help=f"{one_of(PRESETS)}.")] = "tiny",
    checkpoint: Annotated[Path | None, typer.Option(help="A Hugging Face folder instead of a preset.")] = None,
    memory: Annotated[str, typer.Option(help="Memory to train in, for example 24GB.")] = "8GB",
    residency: Annotated[str, typer.Option(help=f"{one_of(RESIDENCIES)}.")] = FROZEN,
    batch: Annotated[int, typer.Option(min=1, help="Sequences an inner step.")] = 16,
    sequence_length: Annotated[int, typer.Option(min=1, help="Tokens a sequence.")] = 128,
    as_json: Json = False,
) -> int:
    """How many expert columns fit in a given memory, and why; exit code 1 where not even one does."""
    from moe.export import checkpoint_config
    from moe.layout import layout
    from moe.planner import plan as make_plan
    from moe.presets import preset as preset_config

    config = preset_config(preset) if checkpoint is None else checkpoint_config(checkpoint.expanduser())
    found = make_plan(
        layout(config, residency), parse_bytes(memory), batch_sequences=batch, sequence_length=sequence_length
    )
    lines = [{"part": line.part, "memory_bytes": line.memory_bytes, "why": line.why} for line in found.lines]
    if as_json:
        print_json(
            {
                "columns": found.columns,
                "fits": found.fits,
                "memory_bytes": found.memory_bytes,
                "needed_bytes": found.needed_bytes,
                "reason": found.reason,
                "lines": lines,
            }
        )
        return int(not found.fits)
    print(found.reason + "\n")
    print_table(
        ("part", "memory", "why"),
        [
            {"part": row["part"], "memory": human_bytes(int(str(row["memory_bytes"]))), "why": row["why"]}
            for row in lines
        ],
    )
    if not found.fits:
        print(
            f"\nThe least memory for this is {human_bytes(found.needed_bytes)}; a smaller --batch or --sequence-length"
        )
        print("needs less, and so does a smaller model.")
    return int(not found.fits)
